"""What completes prompts: one small protocol, and our own engine on the training model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from trl.models import unwrap_model_for_generation

from ..common.model.chat import ChatEncoder
from ..common.model.generation import Completion, Sampling, sample
from ..common.model.prompt import EncodedPrompt


class RolloutEngine(Protocol):
    """Samples completions from the policy."""

    is_policy: bool
    """Whether completions are sampled with the very probabilities that the trainer computes; if not, each completion is
    a `SampledCompletion`, which says with which."""

    def policy(self, step: int) -> AbstractContextManager[None]:
        """The engine with the policy's weights of this step, for as long as the block lasts; all processes enter it."""

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, counts: Sequence[int], keys: Sequence[int]
    ) -> Sequence[Sequence[Completion]]:
        """``counts[i]`` completions for prompt i, determined by ``sampling.seed`` and the prompt's key."""


class TrainingModelEngine:
    """Our own engine (`common.model.generation`), which prefills each prompt once, on the training model itself."""

    is_policy = True

    def __init__(self, trainer: Any, encoder: ChatEncoder, prompts_at_once: int) -> None:
        self.trainer, self.encoder, self.prompts_at_once = trainer, encoder, prompts_at_once
        self._model: Any = None

    @contextmanager
    def policy(self, step: int) -> Iterator[None]:
        """Under ZeRO-3 the weights are gathered for the block, so ranks need not make the same number of passes."""
        with unwrap_model_for_generation(self.trainer.model_wrapped, self.trainer.accelerator) as self._model:
            yield
        self._model = None

    def generate(
        self, prompts: Sequence[EncodedPrompt], sampling: Sampling, counts: Sequence[int], keys: Sequence[int]
    ) -> Sequence[Sequence[Completion]]:
        """See `RolloutEngine`; prompts of which equally many completions are wanted share batches."""
        groups: dict[int, list[Completion]] = {}
        for n in sorted(set(counts), reverse=True):
            chosen = [i for i, count in enumerate(counts) if count == n]
            batch = n * self.prompts_at_once
            args = ([prompts[i] for i in chosen], sampling, n, batch, [keys[i] for i in chosen])
            groups |= dict(zip(chosen, sample(self._model, self.encoder, *args), strict=True))
        return [groups[i] for i in range(len(prompts))]
