"""What a finished stage says about its output."""

from __future__ import annotations

import pytest
from vthink.components.common.launch.process import free_port
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import (
    StorageError,
    digest,
    join,
)
from vthink.components.common.storage.s3 import Storage


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def manifest(storage: Storage, **values) -> Manifest:
    uri = join(storage.config.root_uri, "sft/0123/")
    return Manifest(stage="sft", fingerprint="0123", uri=uri, **values)


def test_a_manifest_comes_back_equal(storage: Storage) -> None:
    written = manifest(
        storage,
        inputs={"data": "s3://b/x"},
        counts={"rows_in": 3},
        metrics={"validation/accuracy": 0.5, "whole": 1.0},
        details={"nested": {"a": [1, 2.0, None, "ü"]}},
    )
    uri = written.write(storage)
    assert uri == join(storage.config.root_uri, "sft/0123/manifest.json")
    assert Manifest.read(storage, uri) == written
    assert Manifest.find(storage, written.uri) == written


def test_a_stored_manifest_without_a_commit_is_not_given_the_readers(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTHINK_GIT_COMMIT", "the readers")
    uri = manifest(storage).write(storage)
    assert Manifest.read(storage, uri).git_commit == "the readers"  # its twin: what is stored is read
    data = storage.read_json(uri)
    for name in ("sha256", "git_commit", "version"):
        del data[name]
    storage.write_json(uri, {**data, "sha256": digest(data)})
    read = Manifest.read(storage, uri)
    assert (read.git_commit, read.version) == (None, "")


def test_an_altered_manifest_is_refused_by_name(storage: Storage) -> None:
    uri = manifest(storage, metrics={"accuracy": 0.5}).write(storage)
    data = storage.read_json(uri)
    data["metrics"]["accuracy"] = 0.9
    storage.write_json(uri, data)
    with pytest.raises(StorageError, match="checksum") as error:
        Manifest.read(storage, uri)
    assert uri in one_line(error)
    assert Manifest.find(storage, manifest(storage).uri) is None


def test_a_manifest_that_was_cut_off_counts_as_not_there(storage: Storage) -> None:
    uri = manifest(storage).write(storage)
    storage.write_bytes(uri, storage.read_bytes(uri)[:-30])
    assert Manifest.find(storage, manifest(storage).uri) is None
    assert Manifest.find(storage, join(storage.config.root_uri, "nowhere")) is None


def test_an_unreachable_store_is_not_mistaken_for_a_missing_manifest(s3: StorageConfig) -> None:
    away = Storage(s3.model_copy(update={"endpoint_url": f"http://127.0.0.1:{free_port()}"}))
    with pytest.raises(StorageError, match="cannot reach"):
        Manifest.find(away, "s3://b/x/")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_manifest_holds_no_metric_that_is_not_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Manifest(stage="sft", fingerprint="0", uri="s3://b/x/", metrics={"loss": value})
