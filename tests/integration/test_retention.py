"""``vthink prune``: what is old goes, and what a model was made from never does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.launch.process import free_port
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import StorageError, join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.deployment.registry import ModelRegistry
from vthink.pipelines.retention import delete, examine

DAY = timedelta(days=1)


def stage(storage: Storage, name: str, number: int, *inputs: str) -> str:
    """A finished stage's prefix with a model; returns its manifest's URI."""
    uri = join(storage.config.root_uri, name, f"{number:016x}/")
    storage.write_bytes(join(uri, "model", "model.safetensors"), b"x" * 100)
    named = {str(index): given for index, given in enumerate(inputs)}
    return Manifest(stage=name, fingerprint=f"{number:016x}", uri=uri, inputs=named).write(storage)


def prefix(manifest_uri: str) -> str:
    return manifest_uri.removesuffix("manifest.json")


@pytest.fixture
def age(storage: Storage, s3_folder: Path) -> Callable[[], None]:
    """Make everything that is in the store now look days old."""

    def set_back() -> None:
        then = time.time() - 10 * 86_400
        for path in (s3_folder / storage.config.bucket / storage.config.prefix).rglob("*"):
            os.utime(path, (then, then))
        time.sleep(1.2)  # the server keeps listings for a second

    return set_back


def going(storage: Storage, tracking: TrackingConfig) -> set[str]:
    return {entry.uri for entry in examine(storage, tracking, DAY) if not entry.kept_by}


def test_what_a_registered_model_was_made_from_stays_and_the_rest_goes(
    storage: Storage, tracking: TrackingConfig, age: Callable[[], None]
):
    base = join(storage.config.root_uri, "models", f"{1:016x}/")
    storage.write_bytes(join(base, "_COMPLETE.json"), b"{}")
    rows, other_rows = stage(storage, "prepare", 2), stage(storage, "prepare", 3)
    sft = stage(storage, "sft", 4, rows, base)
    grpo = stage(storage, "grpo", 5, rows, sft)
    rejected = stage(storage, "grpo", 6, other_rows, sft)
    evaluation = stage(storage, "evaluate", 7, grpo)
    unfinished = join(storage.config.root_uri, "sft", f"{8:016x}/")
    storage.write_bytes(join(unfinished, "checkpoints", "checkpoint-50", "x"), b"x")
    storage.write_bytes(join(storage.config.root_uri, "mlflow", "1", "artifact"), b"x")
    storage.write_bytes(join(storage.config.root_uri, "sft", "notes.txt"), b"mine")
    ModelRegistry(tracking).register(join(prefix(grpo), "model/"), None, {"vthink.evaluation_uri": evaluation})
    assert going(storage, tracking) == set()  # everything is young

    age()
    may_go = {prefix(other_rows), prefix(rejected), unfinished}
    assert going(storage, tracking) == may_go
    found = examine(storage, tracking, DAY)
    assert {entry.kept_by for entry in found if entry.uri == base} == {"version 1"}
    before = {entry.uri for entry in storage.list(storage.config.root_uri)}
    gone = [entry.uri for entry in delete(storage, [entry for entry in found if not entry.kept_by])]
    assert set(gone) == may_go
    after = {entry.uri for entry in storage.list(storage.config.root_uri)}
    assert before - after == {uri for uri in before if uri.startswith(tuple(may_go))}
    assert going(storage, tracking) == set()


def test_what_a_young_run_uses_stays(storage: Storage, tracking: TrackingConfig, age: Callable[[], None]):
    rows, unused = stage(storage, "prepare", 2), stage(storage, "prepare", 3)
    age()
    running = join(storage.config.root_uri, "sft", f"{4:016x}/")
    storage.write_json(join(running, "job.json"), {"data": rows, "policy": ""})
    time.sleep(1.2)
    assert going(storage, tracking) == {prefix(unused)}


def test_nothing_is_judged_without_the_registry_or_over_a_damaged_manifest(
    context: RunContext,
    storage: Storage,
    tracking: TrackingConfig,
    age: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
):
    sft = stage(storage, "sft", 4)
    age()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = tracking.model_copy(update={"uri": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(UserError):
        examine(storage, away, DAY)
    ModelRegistry(tracking).register(join(prefix(sft), "model/"), None, {})
    storage.write_bytes(sft, b"{}")
    with pytest.raises(StorageError, match="damaged"):
        examine(storage, tracking, DAY)


def test_what_stays_cannot_be_deleted_by_mistake(storage: Storage, tracking: TrackingConfig):
    stage(storage, "sft", 4)
    with pytest.raises(StorageError, match="stays: recent"):
        list(delete(storage, examine(storage, tracking, DAY)))
