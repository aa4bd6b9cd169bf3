"""The model that a person means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.model.config import ModelConfig
from ...common.storage.names import as_prefix, fingerprint
from ...common.storage.s3 import Storage
from ...common.tracking.config import TrackingConfig
from ...common.video.config import VideoConfig
from ..answers import EvaluationError
from ..config import EvaluationConfig
from .endpoint import Endpoint
from .local import LocalModel, _folder_fingerprint, _with_card
from .model import Engine


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
        UserError: it cannot be used.
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
    from ...common.model.store import ensure_base_model, fetch_model

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

    from ...common.tracking.client import registry_client

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
