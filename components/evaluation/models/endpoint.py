"""Models behind an OpenAI-compatible server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...common.chat_endpoint.config import ChatEndpointConfig
from ...common.chat_endpoint.endpoint import BlockingEndpoint, EndpointError
from ...common.chat_endpoint.media import DataUrls, media_part, text_part
from ...common.errors import UserError
from ...common.model.config import ModelConfig
from ...common.model.prompts import build_messages, get_template
from ...common.rows.sample import Sample
from ...common.storage.names import fingerprint
from ...common.video.config import VideoConfig
from ..ask import Completion, Predict
from ..conditions import NO_VIDEO, seed_of
from ..config import EvaluationConfig
from ..results import ModelIdentity

API_KEY = "VTHINK_API_KEY"
"""Environment variable with the key that an endpoint wants."""


class EndpointModel:
    """A model of an OpenAI-compatible server, which is sent the video file with every question.

    This package's own server puts the question into the prompt that its model was trained with; any other is sent the
    whole prompt of ``model.prompt``."""

    video: VideoConfig | None = None

    def __init__(self, url: str, model: ModelConfig, config: EvaluationConfig) -> None:
        """Ask the server what it serves; a `UserError` where there is none, or none of this kind."""
        self._config = config
        try:
            server = ChatEndpointConfig(
                url=url,
                api_key_env=API_KEY if os.environ.get(API_KEY) else None,
                concurrency=config.requests,
                timeout_s=config.request_timeout_s,
                retries=0,
            )
        except ValidationError:
            raise UserError(f"'{url}' is not a server's address; e.g. http://127.0.0.1:8080") from None
        with BlockingEndpoint(server) as endpoint:
            served = endpoint.models()[0]
        name = str(served.get("id"))
        own = served.get("vthink") if served.get("owned_by") == "vthink" else None
        self._is_ours = isinstance(own, Mapping)
        limit = own.get("max_new_tokens") if isinstance(own, Mapping) else None
        if isinstance(limit, int) and limit < config.max_new_tokens:
            raise UserError(
                f"{url} answers with at most {limit} tokens; ask for no more "
                f"(--set evaluation.max_new_tokens={limit}), or serve with more"
            )
        self._template = get_template(own.get("prompt", "") if isinstance(own, Mapping) else model.prompt)
        # Ours refuses a question without its video.
        self.conditions: Sequence[str] = () if self._is_ours else ("blind",)
        self.answer_format = self._template.answer_format
        base_url = server.base_url.removesuffix("/v1")
        self.about = ModelIdentity(
            kind="endpoint",
            uri=base_url,
            name=name,
            fingerprint=fingerprint("endpoint", base_url, name, own or None),
            prompt=self._template.name,
            frames="the server's own",
        )
        self._server = server.model_copy(update={"model": name, "retries": config.request_attempts - 1})
        self._endpoint: BlockingEndpoint | None = None

    def predict(self) -> Predict:
        """Asks the server, several questions at once."""
        if self._endpoint is None:
            self._endpoint = BlockingEndpoint(self._server).__enter__()
        return self._predict

    def release(self) -> None:
        """Close the connections."""
        if self._endpoint is not None:
            self._endpoint.__exit__(None, None, None)
            self._endpoint = None

    def _predict(self, samples: Sequence[Sample], files: Sequence[Any]) -> Sequence[Completion | Exception]:
        paths = [None if file is NO_VIDEO else file.path for file in files]
        urls = DataUrls(path for path in paths if path is not None)
        with ThreadPoolExecutor(min(self._config.requests, len(samples))) as pool:
            return list(pool.map(lambda sample, path: self._answer(sample, path, urls), samples, paths))

    def _answer(self, sample: Sample, path: Path | None, urls: DataUrls) -> Completion | Exception:
        assert self._endpoint is not None  # `predict` opened it
        media = sample.media
        try:
            if path is not None and not self._is_ours and (media.start_s is not None or media.end_s is not None):
                raise UserError("a part of a video can be asked of this package's server alone")
            part = None if path is None else media_part(urls.take(path, media.kind), media.kind)
            reply = self._endpoint.complete(self._messages(sample, part), self._parameters(sample))
        except (EndpointError, UserError) as error:
            return error
        return Completion(reply.text, reply.token_ids or (), reply.finish_reason)

    def _messages(self, sample: Sample, part: dict[str, Any] | None) -> list[dict[str, Any]]:
        if self._is_ours:
            return [{"role": "user", "content": [part, text_part(sample.question)]}]
        shown = None if part is None else sample.media.kind
        messages = build_messages(sample.question, sample.options, sample.problem_type, shown, self._template)
        for message in messages:
            message["content"] = [part if block["type"] == shown else block for block in message["content"]]
        return messages

    def _parameters(self, sample: Sample) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "max_tokens": self._config.max_new_tokens,
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "seed": seed_of(self._config.seed, "sampling", sample.id) % 2**31,
        }
        if self._is_ours:
            media = sample.media
            about: dict[str, Any] = {"options": list(sample.options), "problem_type": sample.problem_type}
            about |= {"start_s": media.start_s, "end_s": media.end_s}
            parameters |= {"vthink": {name: value for name, value in about.items() if value}, "return_token_ids": True}
        return parameters
