"""A workspace with its object store up, and what is prepared or trained in it."""

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from ...components.common.context import RunContext
from ...components.common.errors import UserError
from ...components.common.launch.workspace import S3Endpoint, Workspace
from ...components.common.storage.manifest import Manifest
from ...components.common.storage.names import MANIFEST, as_prefix, join
from ...components.common.storage.s3 import Storage
from ..config import Config


@dataclass(frozen=True)
class Session:
    """A workspace with its object store up, as every command that reads or writes artifacts needs it."""

    config: Config
    workspace: Workspace
    storage: Storage
    context: RunContext


@contextmanager
def session(config: Config, folder: Path, exclusive: bool = True) -> Iterator[Session]:
    """Open the workspace: lock it, start its object store (unless one is given), point the environment at it.

    Args:
        config: where storage and tracking are; null values there mean the workspace's own.
        folder: the workspace, ``.vthink`` by default.
        exclusive: take the lock; commands that only read do without and may work beside a run.

    Raises:
        UserError: another ``vthink`` works there; the object store cannot be started or reached, or refuses the keys.
    """
    workspace = Workspace(folder)
    before = dict(os.environ)
    with workspace.lock() if exclusive else nullcontext():
        url = config.storage.endpoint_url
        endpoint = S3Endpoint(url) if url else workspace.start_s3()
        try:
            endpoint.export()
            tracking_uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or workspace.mlflow_uri
            storage = Storage(config.storage.model_copy(update={"endpoint_url": endpoint.url}))
            storage.ensure_bucket()
            if exclusive:
                storage.check()
            context = RunContext(
                run_id=config.name,
                work_dir=str(workspace.work_dir),
                storage=storage.config,
                tracking=config.tracking.model_copy(update={"uri": tracking_uri}),
                launch=config.launch,
            )
            yield Session(config, workspace, storage, context)
        finally:
            endpoint.stop()
            os.environ.clear()
            os.environ.update(before)


def experiment_id(opened: Session) -> str:
    """MLflow's number of the configuration's experiment, which is made when there is none."""
    from ...components.common.tracking.client import ensure_experiment, registry_client

    client = registry_client(opened.context.tracking, opened.storage.config)
    return ensure_experiment(client, opened.context.tracking.experiment, opened.storage.config.root_uri + "mlflow")


def prepare_data(opened: Session, source: str | None = None) -> str:
    """Prepare the rows of the configuration (or of ``source``), or find them prepared; the manifest's URI."""
    from ...components.data_prep import prepare

    section = opened.config.data
    if source is not None:
        section = type(section).load(section.model_dump() | {"source": source}, "--data")
    return prepare.prepare_data(opened.context.to_json(), section.to_json(), opened.config.video.to_json())


def find_data(opened: Session, name: str | None) -> str:
    """The manifest of the prepared set that a person means: a set, rows to prepare, or the configuration's rows."""
    from ...components.data_prep.formats.read import SUFFIXES

    if name is None or (name.endswith(SUFFIXES) and posixpath.basename(name) != MANIFEST):
        return prepare_data(opened, name)
    return find_manifest(opened, name)


def find_manifest(opened: Session, name: str) -> str:
    """The manifest that a person means by its URI, its prefix, or the folder in the workspace's store.

    Raises:
        UserError: a path outside of the store, or there is no such manifest."""
    uri = name
    if "://" not in name:
        store, path = opened.workspace.s3_dir.resolve(), Path(name).resolve()
        if not path.is_relative_to(store):
            raise UserError(f"{name}: neither an s3:// URI nor a folder below {shown_path(store)}")
        uri = f"s3://{path.relative_to(store).as_posix()}"
    if not uri.endswith(".json"):
        uri = join(as_prefix(uri), MANIFEST)
    return Manifest.read(opened.storage, uri).manifest_uri


def shown_path(path: Path) -> Path:
    """The path as a person in this folder would type it."""
    with suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
