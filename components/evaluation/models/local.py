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
from ..ask import Completion, Predict
from ..conditions import CONDITIONS, NO_VIDEO, ORDERED, seed_of
from ..config import EvaluationConfig
from ..results import ModelIdentity

if TYPE_CHECKING:
    from ...common.model.card import ModelCard
    from ...common.model.chat import ChatEncoder
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
        """Nothing is fetched yet; ``folder`` gives the folder on this machine.

        ``model``: dtype, attention, and the prompt where ``about`` names one. ``override``: settings of
        `VideoConfig` in place of those that the model was trained with."""
        self._fetch, self._model, self._config, self._about = folder, model, config, about
        self._override = override or {}
        self._predict: Predict | None = None

    @cached_property
    def folder(self) -> Path:
        """Where it is; a `UserError` where it is not a model folder."""
        from ...common.model.folder import check_folder

        folder = self._fetch()
        check_folder(folder)
        return folder

    @cached_property
    def card(self) -> ModelCard:
        """What its ``vthink.json`` says."""
        from ...common.model.card import ModelCard

        return ModelCard.read(self.folder)

    @property
    def template(self) -> PromptTemplate:
        """The prompt template: the configuration's where its name was given, else the card's."""
        return get_template(self._model.prompt) if self._about.prompt else self.card.template

    @cached_property
    def video(self) -> VideoConfig:
        """How videos become frames."""
        return VideoConfig.load({**self.card.video.model_dump(), **self._override}, str(self.folder))

    @cached_property
    def about(self) -> ModelIdentity:
        """What identifies it, with its prompt."""
        return self._about.model_copy(update={"prompt": self.template.name})

    @property
    def answer_format(self) -> str:
        """The shape of response that it is asked for."""
        return self.template.answer_format

    def predict(self) -> Predict:
        """Its predictor; the first call loads the weights."""
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

    sampling = Sampling(**{n: getattr(config, n) for n in ("max_new_tokens", "temperature", "top_p", "seed")})

    def predict(samples: Sequence[Sample], clips: Sequence[Clip]) -> Sequence[Completion]:
        blind = all(clip is NO_VIDEO for clip in clips)
        prompts = encode_together(model.encoder, samples, clips)
        # With a temperature, a completion depends on its sample, not on its neighbours.
        keys = [seed_of("sampling", row.id) % 2**31 for row in samples]
        how: dict[str, Any] = {"batch_size": config.batch_size, "keys": keys, "blind": blind}
        try:
            completions = sample(model.model, model.encoder, prompts, sampling, **how)
        except torch.cuda.OutOfMemoryError:
            free_memory()  # for the smaller batches that follow
            raise
        return [Completion(c.text, c.token_ids, c.finish_reason) for c, *_ in completions]

    return predict


def encode_together(encoder: ChatEncoder, samples: Sequence[Sample], clips: Sequence[Clip]) -> list[EncodedPrompt]:
    """Prompts of questions about clips (or `NO_VIDEO`); those about the same clip share one tensor of pixels.

    By that the generation engine knows which prompts begin alike, and takes in each beginning once."""
    prompts: dict[int, EncodedPrompt] = {}
    same: dict[int, list[int]] = {}
    for place, clip in enumerate(clips):
        same.setdefault(id(clip), []).append(place)
    for places in same.values():
        rows, clip = [samples[place] for place in places], clips[places[0]]
        questions = [(row.question, row.options, row.problem_type) for row in rows]
        blind = clip is NO_VIDEO
        made = [encoder.encode_blind(*q) for q in questions] if blind else encoder.encode_many(questions, clip)
        prompts |= dict(zip(places, made, strict=True))
    return [prompts[place] for place in range(len(samples))]
