"""Models whose weights are loaded here."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.model.config import ModelConfig
from ...common.model.prompts import PromptTemplate, get_template
from ...common.rows.sample import Sample
from ...common.video.config import VideoConfig
from ..answers import Completion, Predict
from ..conditions import CONDITIONS, NO_VIDEO, ORDERED, seed_of
from ..config import EvaluationConfig
from .model import ModelIdentity

if TYPE_CHECKING:
    from ...common.model.chat import ChatEncoder
    from ...common.model.folder import ModelCard
    from ...common.model.prompt import EncodedPrompt
    from ...common.video.clip import Clip


class LocalModel:
    """A model folder with its ``vthink.json``; fetched when it is first needed, loaded when it is first asked."""

    conditions: Sequence[str] = tuple(name for name in CONDITIONS if name != ORDERED)

    def __init__(
        self,
        folder: Callable[[], Path],
        model: ModelConfig,
        config: EvaluationConfig,
        about: ModelIdentity,
        override: Mapping[str, Any] | None = None,
    ) -> None:
        """Nothing is fetched yet.

        Args:
            folder: gives the folder on this machine.
            model: dtype and attention.
            config: how it is asked.
            about: what identifies it.
            override: settings of `VideoConfig` in place of those that the model was trained with.
        """
        self._fetch = folder
        self._model = model
        self._config = config
        self._about = about
        self._override = override or {}
        self._predict: Predict | None = None

    @cached_property
    def folder(self) -> Path:
        """Where it is.

        Raises:
            UserError: it is not a model folder.
        """
        from ...common.model.folder import check_folder

        folder = self._fetch()
        check_folder(folder)
        return folder

    @cached_property
    def card(self) -> ModelCard:
        """What its ``vthink.json`` says."""
        from ...common.model.folder import ModelCard

        return ModelCard.read(self.folder)

    @property
    def template(self) -> PromptTemplate:
        """The prompt template: the configuration's where its name was given, else the card's."""
        return get_template(self._model.prompt) if self._about.prompt else self.card.template

    @cached_property
    def video(self) -> VideoConfig:
        """See `Model`."""
        return VideoConfig.load({**self.card.video.model_dump(), **self._override}, str(self.folder))

    @cached_property
    def about(self) -> ModelIdentity:
        """See `Model`."""
        return self._about.model_copy(update={"prompt": self.template.name})

    @property
    def answer_format(self) -> str:
        """See `Model`."""
        return self.template.answer_format

    def predict(self) -> Predict:
        """See `Model`."""
        if self._predict is None:
            from ...common.model.load import load_model

            loaded = load_model(self.folder, dtype=self._model.dtype, attention=self._model.attention)
            self._predict = predictor(loaded, self._config)
        return self._predict

    def release(self) -> None:
        """Free the weights before the next model comes."""
        if self._predict is not None:
            self._predict = None
            free_memory()


def free_memory() -> None:
    """Give back what torch keeps of the accelerator's memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def predictor(model: Any, config: EvaluationConfig) -> Predict:
    """Ask a `LoadedModel`, through the engine that rollouts and the server use."""
    import torch

    from ...common.model.generation import Sampling, sample

    sampling = Sampling(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )

    def predict(samples: Sequence[Sample], clips: Sequence[Clip]) -> Sequence[Completion]:
        blind = all(clip is NO_VIDEO for clip in clips)
        prompts = encode_together(model.encoder, samples, clips)
        # With a temperature, a completion depends on its sample, not on its neighbours.
        keys = [seed_of("sampling", row.id) % 2**31 for row in samples]
        try:
            completions = sample(
                model.model, model.encoder, prompts, sampling, batch_size=config.batch_size, keys=keys, blind=blind
            )
        except torch.cuda.OutOfMemoryError:
            free_memory()  # for the smaller batches that follow
            raise
        return [group[0] for group in completions]

    return predict


def encode_together(encoder: ChatEncoder, samples: Sequence[Sample], clips: Sequence[Clip]) -> list[EncodedPrompt]:
    """Prompts of questions about clips (or `NO_VIDEO`); those about the same clip share one tensor of pixels.

    By that the generation engine knows which prompts begin alike, and takes in each beginning once.
    """
    prompts: dict[int, EncodedPrompt] = {}
    same: dict[int, list[int]] = {}
    for place, clip in enumerate(clips):
        same.setdefault(id(clip), []).append(place)
    for places in same.values():
        asked = [(samples[place].question, samples[place].options, samples[place].problem_type) for place in places]
        clip = clips[places[0]]
        made = [encoder.encode_blind(*one) for one in asked] if clip is NO_VIDEO else encoder.encode_many(asked, clip)
        prompts |= dict(zip(places, made, strict=True))
    return [prompts[place] for place in range(len(samples))]
