"""Ask a served model about a video file: what `vthink ask` and the smoke test use.

Works against this package's server and against any OpenAI-compatible one that takes ``video_url`` parts; the
structured answer comes from the former, or is parsed here. Imports neither torch nor KServe.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import mimetypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from .server.reply import structured

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Files that are sent as images."""


API_KEY = "VTHINK_API_KEY"
"""Environment variable with the key that a server asks for, on its side and on the caller's."""


class AskError(RuntimeError):
    """A question that got no answer, in one line."""


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def media_part(path: Path, kind: str | None = None) -> dict[str, Any]:
    """A content part that holds the file as a data URL.

    Args:
        path: the file.
        kind: ``video`` or ``image``; None: by the name's ending.

    Raises:
        AskError: the file cannot be read.
    """
    kind = kind or ("image" if path.suffix.lower() in IMAGE_SUFFIXES else "video")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AskError(f"{path}: {error.strerror}") from error
    if not data:
        raise AskError(f"{path}: the file is empty")
    mime = mimetypes.guess_type(path.name)[0] or ""
    if not mime.startswith(f"{kind}/"):
        mime = "video/mp4" if kind == "video" else "image/png"
    url = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def ask(
    url: str,
    video_path: str | Path,
    question: str,
    options: Sequence[str] = (),
    on_delta: Callable[[str], None] | None = None,
    *,
    problem_type: str | None = None,
    kind: str | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    timeout_s: float = 600.0,
    api_key: str | None = None,
    plain: bool = False,
) -> dict[str, Any]:
    """Ask one question about one video or image file.

    Args:
        url: the server, e.g. ``http://127.0.0.1:8080``.
        video_path: the file; it is sent with the request.
        question: the question.
        options: answer options without letters, for a multiple-choice question.
        on_delta: called with each piece of the answer as it is generated.
        problem_type: see `common.samples`; None: multiple choice with options, else free-form.
        kind: ``video`` or ``image``; None: by the file's name.
        start_s, end_s: the part of the video that is asked about, in seconds.
        model: the served model's name; None: whatever is served.
        max_tokens, temperature, top_p, seed: sampling; None: the server's own.
        timeout_s: seconds to wait for the server, between two pieces of a stream.
        api_key: bearer token that the server asks for.
        plain: ask a server that lacks our extension (vLLM): options and problem type go to the chat template that
            `rollout.serving_template` gave it; a part of a video cannot be asked about.

    Returns:
        ``answer``, ``reasoning``, ``segments`` (each ``start_s end_s caption thought``), ``media``, ``text`` (the whole
        response), ``finish_reason``, ``token_ids``, ``usage``, ``model``.

    Raises:
        AskError: no server, a refusal (with the server's words), or an answer that broke off.
    """
    extension: dict[str, Any] = {"options": list(options) or None, "problem_type": problem_type}
    extension |= {"start_s": start_s, "end_s": end_s}
    extension = {key: value for key, value in extension.items() if value is not None}
    content = [media_part(Path(video_path), kind), {"type": "text", "text": question}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "return_token_ids": True}
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "model": model}
    body |= {key: value for key, value in sampling.items() if value is not None}
    if plain:
        body["chat_template_kwargs"] = {key: extension[key] for key in ("options", "problem_type") if key in extension}
    elif extension:
        body["vthink"] = extension
    if on_delta is not None:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    endpoint = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0))
    try:
        # A proxy of the environment is for addresses elsewhere.
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with httpx.Client(timeout=timeout, trust_env=not _loopback(url), headers=headers) as client:
            with client.stream("POST", endpoint, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise AskError(f"{url} refused the question (HTTP {response.status_code}): {_message(response)}")
                if on_delta is None:
                    response.read()
                    return _whole(response.json())
                return _streamed(url, response, on_delta)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise AskError(f"'{url}' is not a server's address; expected something like http://127.0.0.1:8080") from error
    except httpx.ConnectError as error:
        raise AskError(f"no server at {url} ({error}); start one with `vthink serve`") from error
    except httpx.TimeoutException as error:
        raise AskError(f"{url} did not answer within {timeout_s:g} s") from error
    except httpx.HTTPError as error:
        raise AskError(f"the connection to {url} broke ({error or type(error).__name__})") from error
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise AskError(f"{url} does not answer like an OpenAI-compatible server ({error!r})") from error


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (json.JSONDecodeError, KeyError, TypeError):
        return response.text.strip()[:200] or "no reason given"


def _result(text: str, last: dict[str, Any], choice: dict[str, Any], usage: Any) -> dict[str, Any]:
    return {
        **(last["vthink"] if "vthink" in last else structured(text)),
        "text": text,
        "finish_reason": choice["finish_reason"],
        "token_ids": choice.get("token_ids"),
        "usage": usage,
        "model": last["model"],
    }


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    choice = body["choices"][0]
    return _result(choice["message"]["content"], body, choice, body.get("usage"))


def _streamed(url: str, response: httpx.Response, on_delta: Callable[[str], None]) -> dict[str, Any]:
    pieces: list[str] = []
    last: dict[str, Any] | None = None
    usage = None
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise AskError(f"{url} gave up: {chunk['error']['message']}")
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content")
            if piece:
                pieces.append(piece)
                on_delta(piece)
            if choice["finish_reason"] is not None:
                last = chunk
    if last is None:
        raise AskError(f"{url} broke off in the middle of the answer")
    return _result("".join(pieces), last, last["choices"][0], usage)
