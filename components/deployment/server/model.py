"""The model in service: what the chat route needs of one, and a loaded one."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

from ...common.video.config import VideoConfig
from .errors import ApiError
from .reply import GeneratedAnswer
from .request import ChatQuestion

if TYPE_CHECKING:
    from ...common.model.load import LoadedModel
    from ...common.video.clip import Clip


class ServedModel(Protocol):
    """The model in service."""

    fingerprint: str
    """Of the model, for ``system_fingerprint``."""
    system: str | None
    """System message of the model's prompt template."""
    video: VideoConfig
    """How the model's videos become frames."""

    def stream(self, question: ChatQuestion, clip: Clip) -> Generator[str | GeneratedAnswer, None, None]:
        """Yield the answer's text as it grows, then the whole. Closing the iterator stops the generation."""


class TorchModel:
    """A loaded model: encodes and decodes with the code that evaluation runs."""

    def __init__(self, loaded: LoadedModel) -> None:
        from ...common.model.folder import read_card

        self._loaded = loaded
        self.video: VideoConfig = loaded.video
        self.system: str | None = loaded.encoder.template.system
        self.lineage: dict[str, Any] = read_card(loaded.folder).get("lineage", {})
        self.fingerprint = str(self.lineage.get("fingerprint", ""))
        self.max_model_len = int(loaded.model.config.get_text_config().max_position_embeddings)

    def stream(self, question: ChatQuestion, clip: Clip) -> Generator[str | GeneratedAnswer, None, None]:
        """Yield the answer's text as it grows, then the whole.

        Raises:
            ApiError: 400, the prompt and the longest answer do not fit the model's context.
        """
        from ...common.model.generation import Sampling, stream

        prompt = self._loaded.encoder.encode(question.text, question.options, question.problem_type, clip)
        if len(prompt) + question.max_new_tokens > self.max_model_len:
            raise ApiError(
                400,
                f"{len(prompt)} prompt tokens and up to {question.max_new_tokens} of an answer are more than the "
                f"model's {self.max_model_len}; lower max_tokens or ask about less",
                param="messages",
                code="context_length_exceeded",
            )
        sampling = Sampling(
            max_new_tokens=question.max_new_tokens,
            temperature=question.temperature,
            top_p=question.top_p,
            seed=secrets.randbits(31) if question.seed is None else question.seed,
        )
        for item in stream(self._loaded, prompt, sampling):
            if isinstance(item, str):
                yield item
            else:
                yield GeneratedAnswer(
                    text=item.text,
                    token_ids=tuple(item.token_ids),
                    finish_reason=item.finish_reason,
                    prompt_token_ids=tuple(prompt.input_ids.tolist()),
                )
