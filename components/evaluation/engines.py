"""Who answers: a model folder in this process, or an OpenAI-compatible endpoint.

A model is named as people have it: a folder, an ``s3://…/`` prefix, ``models:/name@alias`` or
``models:/name/3`` of the registry, a name on the hub, or the URL of an endpoint (this package's server, vLLM,
KServe). torch is imported when a model is loaded, not before.
"""

from __future__ import annotations

import base64
import gc
import ipaddress
import json
import mimetypes
import os
import random
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ..common.config import ModelConfig, TrackingConfig, VideoConfig
from ..common.prompts import build_messages, get_template
from ..common.samples import Sample
from ..common.storage import Storage, as_prefix, fingerprint
from .asking import NO_VIDEO, Completion, EvaluationError, Predict, seed_of
from .config import EvaluationConfig
from .expressions import FRAMES

if TYPE_CHECKING:
    from ..common.chat import ChatEncoder, EncodedPrompt
    from ..common.video import Clip

API_KEY = "VTHINK_API_KEY"
"""Environment variable with the key that an endpoint wants."""


class Engine(Protocol):
    """A model that can be asked."""

    video: VideoConfig | None
    """How videos become frames; None: it is given the files (`evaluate.LocalFile`)."""
    conditions: Sequence[str]
    """Under which of `expressions.FRAMES` it can be asked, besides ``ordered``."""
    answer_format: Any
    """The shape of response that it is asked for."""
    about: dict[str, Any]
    """What identifies it, for ``result.json``."""

    def predict(self) -> Predict:
        """Its predictor; weights are loaded by the first call."""

    def release(self) -> None:
        """Free what it holds."""


# -- in this process -----------------------------------------------------------------------------------------


class _Weights:
    """Weights that are loaded when they are first needed."""

    def __init__(self, folder: Callable[[], Path], model: ModelConfig, config: EvaluationConfig) -> None:
        self._folder = folder
        self._model = model
        self._config = config
        self._predict: Predict | None = None

    def predict(self) -> Predict:
        """See `Engine`."""
        if self._predict is None:
            from ..common.models import load_model

            loaded = load_model(self._folder(), dtype=self._model.dtype, attention=self._model.attention)
            self._predict = predictor(loaded, self._config)
        return self._predict

    def release(self) -> None:
        """Free the weights before the next model comes."""
        if self._predict is not None:
            self._predict = None
            free_memory()


class StoredModel(_Weights):
    """A model of the store, fetched when it is first asked."""

    def __init__(
        self, storage: Storage, uri: str, model: ModelConfig, config: EvaluationConfig, work_dir: Path
    ) -> None:
        from ..common.models import fetch_model

        super().__init__(lambda: fetch_model(storage, uri, work_dir), model, config)


class LocalModel(_Weights):
    """A model folder with its ``vthink.json``, loaded when it is first asked."""

    conditions: Sequence[str] = FRAMES[1:]

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        config: EvaluationConfig,
        about: Mapping[str, Any],
        video: Mapping[str, Any] | None = None,
    ) -> None:
        """Args: ``video``: settings of `VideoConfig` in place of those that the model was trained with.

        Raises:
            ModelError: not a model folder.
        """
        from ..common.models import check_folder, read_card

        check_folder(folder)
        card = read_card(folder)
        self.folder = folder
        self.video: VideoConfig | None = VideoConfig.load({**card["video"].model_dump(), **(video or {})}, str(folder))
        self.prompt = str(card["prompt"])
        self.answer_format = get_template(self.prompt).answer_format
        self.about = {**about, "prompt": self.prompt}
        super().__init__(lambda: folder, model, config)


def free_memory() -> None:
    """Give back what torch keeps of the accelerator's memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def predictor(model: Any, config: EvaluationConfig) -> Predict:
    """Ask a `LoadedModel`, through the engine that rollouts and the server use."""
    import torch

    from ..common.generation import Sampling, sample

    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
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


# -- an endpoint ---------------------------------------------------------------------------------------------


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
        prompt = str(own.get("prompt")) if isinstance(own, Mapping) else model.prompt
        self.conditions: Sequence[str] = () if self.own else ("blind",)  # ours refuses a question without its video
        self.template = get_template(prompt)
        self.answer_format = self.template.answer_format
        self.about = {
            "kind": "endpoint",
            "uri": self.url,
            "name": self.model,
            "fingerprint": fingerprint("endpoint", self.url, self.model, own or None),
            "prompt": prompt,
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


# -- by name -------------------------------------------------------------------------------------------------


def needs_store(given: str) -> bool:
    """Whether a model's name leads to the object store."""
    return not is_endpoint(given) and not Path(given).is_dir()


def is_endpoint(given: str) -> bool:
    """Whether a model's name is the URL of a server."""
    return given.startswith(("http://", "https://"))


def open_engine(
    given: str,
    model: ModelConfig,
    config: EvaluationConfig,
    work_dir: Path,
    storage: Storage | None = None,
    tracking: TrackingConfig | None = None,
    video: VideoConfig | None = None,
    override: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine that a person means.

    Args:
        given: a folder, ``s3://…/``, ``models:/name@alias``, ``models:/name/3``, a hub name, or a URL.
        model: dtype, attention, and the prompt of a model that does not bring one (``vthink.json``).
        config: how it is asked.
        work_dir: scratch space; fetched models are kept there.
        storage: needed for everything but folders and URLs.
        tracking: where the registry is.
        video: how videos become frames for a model that does not say.
        override: settings of `VideoConfig` that win over what the model says.

    Raises:
        EvaluationError: there is no such model.
        ModelError: it cannot be used.
        StorageError: the store lacks it.
    """
    video = video or VideoConfig()
    if is_endpoint(given):
        return Endpoint(given, model, config)
    if Path(given).is_dir():
        folder = Path(given).resolve()
        known = {"kind": "folder", "uri": str(folder), "fingerprint": _folder_fingerprint(folder)}
        return LocalModel(_with_card(folder, given, model, video, work_dir), model, config, known, override)
    if storage is None:
        raise EvaluationError(f"model '{given}': no such folder, and no object store to look in")
    from ..common.models import ensure_base_model, fetch_model

    about: dict[str, Any] = {"kind": "s3", "uri": given}
    uri = given
    if given.startswith("models:/"):
        version, uri = _registered(given, tracking, storage)
        about = {"kind": "registry", "uri": given, "version": version, "source": uri}
    if uri.startswith("s3://") and storage.is_complete(uri) and storage.exists(as_prefix(uri) + "vthink.json"):
        uri = as_prefix(uri)
    else:
        about |= {} if uri.startswith("s3://") else {"kind": "hub"}
        uri = ensure_base_model(storage, model.model_copy(update={"name": uri}), video)
    files = {name: file.sha256 for name, file in storage.tree(uri).files.items()}
    about["fingerprint"] = fingerprint("model", files)
    return LocalModel(fetch_model(storage, uri, work_dir), model, config, about, override)


def _registered(given: str, tracking: TrackingConfig | None, storage: Storage) -> tuple[int, str]:
    """Version and ``s3://…/`` source of a registered model."""
    from mlflow.exceptions import MlflowException

    from ..common.tracking import registry_client

    match = re.fullmatch(r"models:/([^/@\s]+)(?:@([^/@\s]+)|/([0-9]{1,9}))", given)
    if match is None or tracking is None:
        raise EvaluationError(f"model '{given}': a registered model is models:/name@alias or models:/name/3")
    name, alias, version = match.groups()
    client = registry_client(tracking, storage.config)
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    except MlflowException as error:
        raise EvaluationError(f"model '{given}': {str(error).strip().splitlines()[0][:300]}") from None
    return int(found.version), str(found.source)


def _folder_fingerprint(folder: Path) -> str:
    """Of names, sizes and times of change: contents of many gigabytes are not read again for it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return fingerprint("folder", [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def _with_card(folder: Path, given: str, model: ModelConfig, video: VideoConfig, work_dir: Path) -> Path:
    """A folder that is the model with its ``vthink.json``; a Hugging Face folder gets one beside links to its files."""
    from ..common.models import CARD, check_folder, write_card

    if (folder / CARD).is_file():
        return folder
    check_folder(folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    linked = Path(tempfile.mkdtemp(prefix="model-", dir=work_dir))
    for path in folder.iterdir():
        if path.is_file():
            (linked / path.name).symlink_to(path)
    write_card(linked, model.prompt, video, {"base": given})
    return linked
