"""A model that can be asked: weights that are loaded here, or an OpenAI-compatible server; which one a person means."""

from __future__ import annotations

import gc
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..common.chat_endpoint.config import ChatEndpointConfig
from ..common.chat_endpoint.endpoint import BlockingEndpoint, EndpointError, is_vllm
from ..common.chat_endpoint.media import DataUrls, media_part, text_part
from ..common.errors import UserError
from ..common.model.config import ModelConfig
from ..common.model.prompts import PromptTemplate, build_messages, get_template
from ..common.rows.sample import Sample
from ..common.storage.names import as_prefix, fingerprint
from ..common.storage.s3 import Storage
from ..common.tracking.config import TrackingConfig
from ..common.video.config import VideoConfig
from .ask import Completion, Predict
from .conditions import CONDITIONS, NO_VIDEO, ORDERED, seed_of
from .config import EvaluationConfig
from .results import ModelIdentity

if TYPE_CHECKING:
    from ..common.model.chat import ChatEncoder
    from ..common.model.folder import ModelCard
    from ..common.model.prompt import EncodedPrompt
    from ..common.video.clip import Clip


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
        """Nothing is fetched yet; ``folder`` gives the folder on this machine. ``model``: dtype, attention, and the
        prompt where ``about`` names one. ``override``: settings of `VideoConfig` in place of those that the model was
        trained with."""
        self._fetch, self._model, self._config, self._about = folder, model, config, about
        self._override = override or {}
        self._predict: Predict | None = None

    @cached_property
    def folder(self) -> Path:
        """Where it is; a `UserError` where it is not a model folder."""
        from ..common.model.folder import check_folder

        folder = self._fetch()
        check_folder(folder)
        return folder

    @cached_property
    def card(self) -> ModelCard:
        """What its ``vthink.json`` says."""
        from ..common.model.folder import ModelCard

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
            from ..common.model.load import load_model

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

    from ..common.model.generation import Sampling, sample

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
    """Prompts of questions about clips (or `NO_VIDEO`); those about the same clip share one tensor of pixels. By that
    the generation engine knows which prompts begin alike, and takes in each beginning once."""
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


API_KEY = "VTHINK_API_KEY"  # environment variable with the key that an endpoint wants


class EndpointModel:
    """A model of an OpenAI-compatible server, which is sent the video file with every question. This package's own
    server puts the question into the prompt that its model was trained with; any other is sent the whole prompt of
    ``model.prompt``. vLLM is told that it is whole: the chat template that a deployment of ours gives it leaves it as
    it is then, and another does not look."""

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
        self._is_ours, self._is_vllm = isinstance(own, Mapping), is_vllm(served)
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
        if self._is_vllm:
            parameters |= {"chat_template_kwargs": {"whole_prompt": True}, "return_token_ids": True}
        return parameters


_URL = ("http://", "https://")
Model = LocalModel | EndpointModel  # a model that can be asked


def needs_store(reference: str) -> bool:
    """Whether a model's name leads to the object store: it is neither a server's URL nor a folder."""
    return not reference.startswith(_URL) and not Path(reference).is_dir()


def open_model(
    reference: str,
    model: ModelConfig,
    config: EvaluationConfig,
    work_dir: Path,
    storage: Storage | None = None,
    tracking: TrackingConfig | None = None,
    video: VideoConfig | None = None,
    override: Mapping[str, Any] | None = None,
) -> Model:
    """The model that a person means.

    Args:
        reference: a folder, ``s3://…/``, ``models:/name@alias``, ``models:/name/3``, a hub name, or a URL.
        model: dtype, attention, and the prompt of a model that does not bring one (``vthink.json``).
        work_dir: scratch space; fetched models are kept there.
        storage: needed for everything but folders and URLs.
        tracking: where the registry is.
        video: how videos become frames for a model that does not say.
        override: settings of `VideoConfig` that win over what the model says.

    Raises `UserError`, `StorageError`: there is no such model."""
    video = video or VideoConfig()
    if reference.startswith(_URL):
        return EndpointModel(reference, model, config)
    if Path(reference).is_dir():
        folder = Path(reference).resolve()
        about = ModelIdentity(kind="folder", uri=str(folder), fingerprint=_folder_fingerprint(folder))
        return LocalModel(lambda: _with_card(folder, reference, model, video, work_dir), model, config, about, override)
    if storage is None:
        raise UserError(f"model '{reference}': no such folder, and no object store to look in")
    from ..common.model.store import ensure_base_model, fetch_model

    about = ModelIdentity(kind="s3", uri=reference)
    uri = reference
    if reference.startswith("models:/"):
        version, uri = _registered(reference, tracking, storage)
        about = ModelIdentity(kind="registry", uri=reference, version=version, source=uri)
    if uri.startswith("s3://") and storage.is_complete(uri) and storage.exists(as_prefix(uri) + "vthink.json"):
        uri = as_prefix(uri)
    else:
        if not uri.startswith("s3://"):
            about = about.model_copy(update={"kind": "hub"})
        uri = ensure_base_model(storage, model.model_copy(update={"name": uri}), video)
    files = {name: file.sha256 for name, file in storage.tree(uri).files.items()}
    about = about.model_copy(update={"fingerprint": fingerprint("model", files)})
    return LocalModel(lambda: fetch_model(storage, uri, work_dir), model, config, about, override)


def _registered(reference: str, tracking: TrackingConfig | None, storage: Storage) -> tuple[int, str]:
    """Version and ``s3://…/`` source of a registered model."""
    from mlflow.exceptions import MlflowException

    from ..common.tracking.client import registry_client

    match = re.fullmatch(r"models:/([^/@\s]+)(?:@([^/@\s]+)|/([0-9]{1,9}))", reference)
    if match is None or tracking is None:
        raise UserError(f"model '{reference}': a registered model is models:/name@alias or models:/name/3")
    name, alias, version = match.groups()
    client = registry_client(tracking, storage.config)
    wanted, get = (alias, client.get_model_version_by_alias) if alias else (version, client.get_model_version)
    try:
        registered = get(name, wanted)
    except MlflowException as error:
        raise UserError(f"model '{reference}': {str(error).strip().splitlines()[0][:300]}") from None
    return int(registered.version), str(registered.source)


def _folder_fingerprint(folder: Path) -> str:
    """Of names, sizes and times of change: contents of many gigabytes are not read again for it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return fingerprint("folder", [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def _with_card(folder: Path, reference: str, model: ModelConfig, video: VideoConfig, work_dir: Path) -> Path:
    """A folder that is the model with its ``vthink.json``; a Hugging Face folder gets one beside links to its files."""
    from ..common.model.folder import CARD, Lineage, ModelCard, check_folder

    if (folder / CARD).is_file():
        return folder
    check_folder(folder)
    work_dir.mkdir(parents=True, exist_ok=True)
    linked = Path(tempfile.mkdtemp(prefix="model-", dir=work_dir))
    for path in folder.iterdir():
        if path.is_file():
            (linked / path.name).symlink_to(path)
    ModelCard(prompt=model.prompt, video=video, lineage=Lineage(base=reference)).write(linked)
    return linked
