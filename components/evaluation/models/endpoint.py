"""Models behind an OpenAI-compatible server."""

from __future__ import annotations

import base64
import ipaddress
import json
import mimetypes
import os
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlsplit

from ...common.model.config import ModelConfig
from ...common.model.prompts import build_messages, get_template
from ...common.rows.sample import Sample
from ...common.storage.names import fingerprint
from ...common.video.config import VideoConfig
from ..answers import Completion, EvaluationError, Predict
from ..conditions import NO_VIDEO, seed_of
from ..config import EvaluationConfig
from .model import API_KEY


@dataclass(frozen=True, slots=True)
class Said:
    """A completion from an endpoint."""

    text: str
    finish_reason: str
    token_ids: list[int] = field(default_factory=list)


class EndpointError(EvaluationError):
    """An endpoint that refused a question, or did not answer."""


class Endpoint:
    """An OpenAI-compatible server, which is sent the video file with every question.

    This package's own server puts the question into the prompt that its model was trained with; any other is
    sent the whole prompt of ``model.prompt``.
    """

    video: VideoConfig | None = None

    def __init__(self, url: str, model: ModelConfig, config: EvaluationConfig) -> None:
        """Ask the server what it serves.

        Raises:
            EvaluationError: no server, or none of this kind.
        """
        import httpx

        self.url = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get(API_KEY)
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.request_timeout_s, connect=min(config.request_timeout_s, 10.0)),
            trust_env=not _loopback(url),  # a proxy of the environment is for addresses elsewhere
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=config.requests),
        )
        self._config = config
        card = self._card()
        self.model = str(card.get("id"))
        own = card.get("vthink") if card.get("owned_by") == "vthink" else None
        self.own = isinstance(own, Mapping)
        if isinstance(own, Mapping):
            limit = own.get("max_new_tokens")
            if isinstance(limit, int) and limit < config.max_new_tokens:
                raise EvaluationError(
                    f"{url} answers with at most {limit} tokens; ask for no more "
                    f"(--set evaluation.max_new_tokens={limit}), or serve with more"
                )
        self.conditions: Sequence[str] = () if self.own else ("blind",)  # ours refuses a question without its video
        self.template = get_template(own.get("prompt", "") if isinstance(own, Mapping) else model.prompt)
        self.answer_format = self.template.answer_format
        self.about = {
            "kind": "endpoint",
            "uri": self.url,
            "name": self.model,
            "fingerprint": fingerprint("endpoint", self.url, self.model, own or None),
            "prompt": self.template.name,
            "frames": "the server's own",
        }

    def _card(self) -> Mapping[str, Any]:
        import httpx

        try:
            response = self._client.get(f"{self.url}/v1/models")
            response.raise_for_status()
            card = response.json()["data"][0]
            if not isinstance(card, Mapping):
                raise TypeError
            return card
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise EvaluationError(f"'{self.url}' is not a server's address; e.g. http://127.0.0.1:8080") from None
        except httpx.HTTPStatusError as error:
            raise EvaluationError(f"{self.url} answered {error.response.status_code} to /v1/models") from None
        except httpx.HTTPError as error:
            raise EvaluationError(f"no server at {self.url} ({error or type(error).__name__})") from None
        except (ValueError, LookupError, TypeError):
            raise EvaluationError(f"{self.url} does not list its models like an OpenAI-compatible server") from None

    def predict(self) -> Predict:
        """See `Engine`."""
        return self._predict

    def release(self) -> None:
        """Close the connections."""
        self._client.close()

    def _predict(self, samples: Sequence[Sample], files: Sequence[Any]) -> Sequence[Completion | Exception]:
        paths = [None if file is NO_VIDEO else file.path for file in files]
        urls = _DataUrls([path for path in paths if path is not None])
        with ThreadPoolExecutor(min(self._config.requests, len(samples))) as pool:
            return list(pool.map(lambda sample, path: self._attempt(sample, path, urls), samples, paths))

    def _attempt(self, sample: Sample, path: Path | None, urls: _DataUrls) -> Completion | Exception:
        try:
            return self._ask(sample, None if path is None else urls.take(path, sample.media.kind))
        except (EndpointError, OSError) as error:
            return error

    def _body(self, sample: Sample, data_url: str | None) -> dict[str, Any]:
        kind, media = f"{sample.media.kind}_url", sample.media
        part = {"type": kind, kind: {"url": data_url}}
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self._config.max_new_tokens,
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
            "seed": seed_of(self._config.seed, "sampling", sample.id) % 2**31,
        }
        if self.own:
            text = sample.question
            about: dict[str, Any] = {"options": list(sample.options), "problem_type": sample.problem_type}
            about |= {"start_s": media.start_s, "end_s": media.end_s}
            body |= {"vthink": {name: value for name, value in about.items() if value}, "return_token_ids": True}
            return body | {"messages": [{"role": "user", "content": [part, {"type": "text", "text": text}]}]}
        shown = None if data_url is None else media.kind
        messages = build_messages(sample.question, sample.options, sample.problem_type, shown, self.template)
        for message in messages:
            message["content"] = [part if block["type"] == shown else block for block in message["content"]]
        return body | {"messages": messages}

    def _ask(self, sample: Sample, data_url: str | None) -> Said:
        import httpx

        if (
            not self.own
            and data_url is not None
            and (sample.media.start_s is not None or sample.media.end_s is not None)
        ):
            raise EndpointError("a part of a video can be asked of this package's server alone")
        body = json.dumps(self._body(sample, data_url)).encode()
        reason = ""
        for attempt in range(self._config.request_attempts):
            if attempt:
                sleep(min(2.0 ** (attempt - 1), 30.0) * random.uniform(1, 1.2))
            try:
                response = self._client.post(
                    f"{self.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
                )
            except httpx.HTTPError as error:
                reason = f"{error or type(error).__name__}"
                continue
            if response.status_code == 200:
                return _said(response)
            reason = f"HTTP {response.status_code}: {_message(response)}"
            if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
                break
        raise EndpointError(reason)


class _DataUrls:
    """Files as data URLs, each read once for all questions about it and dropped with the last of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._left = Counter(paths)
        self._urls: dict[Path, str] = {}
        self._lock = threading.Lock()

    def take(self, path: Path, kind: str) -> str:
        """The URL for one more of the questions about a file."""
        with self._lock:
            self._left[path] -= 1
            if path not in self._urls:
                mime = mimetypes.guess_type(path.name)[0] or ""
                if not mime.startswith(f"{kind}/"):
                    mime = "video/mp4" if kind == "video" else "image/png"
                self._urls[path] = f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
            return self._urls[path] if self._left[path] else self._urls.pop(path)


def _said(response: Any) -> Said:
    try:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"] or "", choice.get("finish_reason") or ""
        tokens = choice.get("token_ids") or []
        if not isinstance(text, str) or not all(type(token) is int for token in tokens):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise EndpointError("the answer is not a chat completion") from None
    return Said(text, str(reason)[:40], list(tokens))


def _message(response: Any) -> str:
    try:
        error = response.json()["error"]
        text = str(error["message"] if isinstance(error, Mapping) else error)
    except (ValueError, LookupError, TypeError):
        text = response.text
    return " ".join(text.split())[:200] or "no reason given"


def _loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
