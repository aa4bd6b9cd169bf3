"""The model that a person means."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.model.config import ModelConfig
from ...common.storage.names import as_prefix, fingerprint
from ...common.storage.s3 import Storage
from ...common.tracking.config import TrackingConfig
from ...common.video.config import VideoConfig
from ..config import EvaluationConfig
from .endpoint import EndpointModel
from .local import LocalModel
from .model import Model, ModelIdentity


def needs_store(reference: str) -> bool:
    """Whether a model's name leads to the object store."""
    return not is_endpoint(reference) and not Path(reference).is_dir()


def is_endpoint(reference: str) -> bool:
    """Whether a model's name is the URL of a server."""
    return reference.startswith(("http://", "https://"))


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
        config: how it is asked.
        work_dir: scratch space; fetched models are kept there.
        storage: needed for everything but folders and URLs.
        tracking: where the registry is.
        video: how videos become frames for a model that does not say.
        override: settings of `VideoConfig` that win over what the model says.

    Raises:
        UserError: there is no such model.
        StorageError: the store lacks it.
    """
    video = video or VideoConfig()
    if is_endpoint(reference):
        return EndpointModel(reference, model, config)
    if Path(reference).is_dir():
        folder = Path(reference).resolve()
        about = ModelIdentity(kind="folder", uri=str(folder), fingerprint=_folder_fingerprint(folder))
        return LocalModel(lambda: _with_card(folder, reference, model, video, work_dir), model, config, about, override)
    if storage is None:
        raise UserError(f"model '{reference}': no such folder, and no object store to look in")
    from ...common.model.store import ensure_base_model, fetch_model

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

    from ...common.tracking.client import registry_client

    match = re.fullmatch(r"models:/([^/@\s]+)(?:@([^/@\s]+)|/([0-9]{1,9}))", reference)
    if match is None or tracking is None:
        raise UserError(f"model '{reference}': a registered model is models:/name@alias or models:/name/3")
    name, alias, version = match.groups()
    client = registry_client(tracking, storage.config)
    try:
        registered = (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
        )
    except MlflowException as error:
        raise UserError(f"model '{reference}': {str(error).strip().splitlines()[0][:300]}") from None
    return int(registered.version), str(registered.source)


def _folder_fingerprint(folder: Path) -> str:
    """Of names, sizes and times of change: contents of many gigabytes are not read again for it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return fingerprint("folder", [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def _with_card(folder: Path, reference: str, model: ModelConfig, video: VideoConfig, work_dir: Path) -> Path:
    """A folder that is the model with its ``vthink.json``; a Hugging Face folder gets one beside links to its files."""
    from ...common.model.folder import CARD, Lineage, ModelCard, check_folder

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
