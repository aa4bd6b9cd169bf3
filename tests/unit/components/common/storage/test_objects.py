"""Objects and files of a real S3 server: what arrives is what was sent."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.names import (
    StorageError,
    join,
    split_uri,
)
from vthink.components.common.storage.s3 import Storage


def contents(path: Path) -> dict[str, bytes]:
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_bytes_and_json_come_back_as_written(storage: Storage) -> None:
    root = storage.config.root_uri
    data = os.urandom(1000)
    storage.write_bytes(join(root, "a b/ü.bin"), data)
    storage.write_json(join(root, "x.json"), {"é": [1, 2.5, None]})
    assert storage.read_bytes(join(root, "a b/ü.bin")) == data
    assert storage.read_json(join(root, "x.json")) == {"é": [1, 2.5, None]}


def test_exists_tells_objects_and_prefixes_that_are_there_from_others(storage: Storage) -> None:
    root = storage.config.root_uri
    storage.write_bytes(join(root, "runs/7/a"), b"x")
    assert storage.exists(join(root, "runs/7/a"))
    assert storage.exists(join(root, "runs/7/"))
    assert not storage.exists(join(root, "runs/7/b"))
    assert storage.exists(join(root, "runs")) is False
    assert not storage.exists(join(root, "run/"))


def test_a_prefix_does_not_also_mean_longer_names(storage: Storage) -> None:
    root = storage.config.root_uri
    for name in ("runs/7/a", "runs/70/a", "runs/7.txt"):
        storage.write_bytes(join(root, name), b"x")
    assert [item.uri for item in storage.list(join(root, "runs/7"))] == [join(root, "runs/7/a")]
    storage.delete_prefix(join(root, "runs/7"))
    assert [item.uri for item in storage.list(root)] == [join(root, "runs/7.txt"), join(root, "runs/70/a")]


def test_a_listing_longer_than_one_page_is_whole(storage: Storage) -> None:
    root = storage.config.root_uri
    with ThreadPoolExecutor(8) as pool:
        uris = [join(root, f"many/{number:05d}") for number in range(1203)]
        list(pool.map(lambda uri: storage.write_bytes(uri, b"x"), uris))
    listed = list(storage.list(join(root, "many")))
    assert [split_uri(item.uri)[1].rpartition("/")[2] for item in listed] == [f"{n:05d}" for n in range(1203)]
    assert {item.size for item in listed} == {1}


def test_deleting_a_whole_bucket_is_refused(storage: Storage) -> None:
    with pytest.raises(StorageError, match="refusing"):
        storage.delete_prefix(f"s3://{storage.config.bucket}/")


def test_a_missing_object_is_named(storage: Storage) -> None:
    uri = join(storage.config.root_uri, "nothing")
    with pytest.raises(StorageError, match="does not exist") as error:
        storage.read_bytes(uri)
    assert uri in one_line(error)


def test_text_that_is_not_json_is_named(storage: Storage) -> None:
    uri = join(storage.config.root_uri, "cut.json")
    storage.write_bytes(uri, b'{"a": ')
    with pytest.raises(StorageError, match="not JSON") as error:
        storage.read_json(uri)
    assert uri in one_line(error)


def test_a_missing_bucket_is_created_once_and_otherwise_named(s3: StorageConfig, tmp_path: Path) -> None:
    config = s3.model_copy(update={"bucket": f"new-{time.time_ns()}"})
    with pytest.raises(StorageError, match=r"bucket of .* does not exist") as error:
        Storage(config).write_bytes(join(config.root_uri, "x"), b"")
    one_line(error)
    Storage(config).ensure_bucket()
    Storage(config).ensure_bucket()
    Storage(config).check()
    assert list(Storage(config).list(config.root_uri)) == []


def test_a_large_file_goes_in_parts_and_comes_back_equal(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "large", tmp_path / "there" / "large"
    source.write_bytes(os.urandom(2**20) * 70)
    uri = join(storage.config.root_uri, "large")
    storage.upload_file(source, uri)
    storage.download_file(uri, target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["large"]


def test_a_download_that_fails_leaves_the_old_file_and_no_other(storage: Storage, tmp_path: Path) -> None:
    target = tmp_path / "there" / "file"
    target.parent.mkdir()
    target.write_text("old")
    with pytest.raises(StorageError, match="does not exist"):
        storage.download_file(join(storage.config.root_uri, "nothing"), target)
    assert contents(tmp_path / "there") == {"file": b"old"}
