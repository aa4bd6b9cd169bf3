"""A loaded model as the chat route uses it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...common.video.config import VideoConfig
from .errors import ApiError
from .reply import Generated
from .request import Ask

if TYPE_CHECKING:
    from ...common.model.load import LoadedModel
    from ...common.video.clip import Clip


class ModelEngine:
    """A loaded model as the chat route uses it: encodes and decodes with the code that evaluation runs."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.video: VideoConfig = loaded.video
        self.system: str | None = loaded.encoder.template.system
        self.lineage: dict[str, Any] = loaded.card.lineage.known()
        self.fingerprint = loaded.card.lineage.fingerprint
        self._context = int(loaded.model.config.get_text_config().max_position_embeddings)

    def stream(self, ask: Ask, clip: Clip) -> Iterator[str | Generated]:
        """Yield the answer's text as it grows, then the whole.

        Raises:
            ApiError: 400, the prompt and the longest answer do not fit the model's context.
        """
        from ...common.model.generation import Sampling, stream

        prompt = self._loaded.encoder.encode(ask.question, ask.options, ask.problem_type, clip)
        if len(prompt) + ask.max_new_tokens > self._context:
            raise ApiError(
                400,
                f"{len(prompt)} prompt tokens and up to {ask.max_new_tokens} of an answer are more than the model's "
                f"{self._context}; lower max_tokens or ask about less",
                param="messages",
                code="context_length_exceeded",
            )
        sampling = Sampling(
            max_new_tokens=ask.max_new_tokens,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=secrets.randbits(31) if ask.seed is None else ask.seed,
        )
        for item in stream(self._loaded, prompt, sampling):
            if isinstance(item, str):
                yield item
            else:
                yield Generated(
                    text=item.text,
                    token_ids=tuple(item.token_ids),
                    finish_reason=item.finish_reason,
                    prompt_token_ids=tuple(prompt.input_ids.tolist()),
                )
