"""Folders on a real S3 server: what is unfinished never counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.storage import s3 as s3_module
from vthink.components.common.storage.names import (
    COMPLETE,
    JOURNAL,
    StorageError,
    join,
    split_uri,
)
from vthink.components.common.storage.s3 import FileInfo, Storage


def object_file(s3_folder: Path, uri: str) -> Path:
    """The file in which the S3 server keeps an object."""
    bucket, key = split_uri(uri)
    return s3_folder / bucket / key


def contents(path: Path) -> dict[str, bytes]:
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_folder_comes_back_equal(storage: Storage, prefix: str, folder: Path, tmp_path: Path) -> None:
    tree = storage.upload_dir(folder, prefix.rstrip("/"))
    assert storage.is_complete(prefix)
    assert tree.transferred_bytes == tree.total_bytes == sum(map(len, contents(folder).values()))
    got = storage.download_dir(prefix, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)
    assert got.files == tree.files == storage.tree(prefix).files
    assert not storage.exists(join(prefix, JOURNAL))


def test_a_second_upload_and_download_move_nothing(storage: Storage, prefix: str, folder: Path, tmp_path: Path) -> None:
    storage.upload_dir(folder, prefix)
    storage.download_dir(prefix, tmp_path / "copy")
    assert storage.upload_dir(folder, prefix).transferred_bytes == 0
    assert storage.download_dir(prefix, tmp_path / "copy").transferred_bytes == 0


def test_a_changed_folder_replaces_the_earlier_one_and_drops_what_is_gone(
    storage: Storage, prefix: str, folder: Path, tmp_path: Path
) -> None:
    storage.upload_dir(folder, prefix)
    storage.write_bytes(join(prefix, "someone-elses"), b"kept")
    (folder / "config.json").write_text('{"a": 2}')
    (folder / "sub" / "deep" / "ünï#+%.txt").unlink()
    tree = storage.upload_dir(folder, prefix)
    assert tree.transferred_bytes == len('{"a": 2}')
    storage.download_dir(prefix, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)
    names = {item.uri.removeprefix(prefix) for item in storage.list(prefix)}
    assert names == {"config.json", "sub/weights 1.bin", COMPLETE, "someone-elses"}


def test_an_upload_of_nothing_is_refused(storage: Storage, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="no files"):
        storage.upload_dir(tmp_path / "empty", prefix)
    with pytest.raises(StorageError, match="no such folder"):
        storage.upload_dir(tmp_path / "missing", prefix)


def test_a_folder_without_marker_is_not_complete_and_not_downloaded(
    storage: Storage, prefix: str, folder: Path, tmp_path: Path
) -> None:
    storage.upload_dir(folder, prefix)
    storage.delete(join(prefix, COMPLETE))
    assert not storage.is_complete(prefix)
    with pytest.raises(StorageError, match="never finished") as error:
        storage.download_dir(prefix, tmp_path / "copy")
    assert prefix in one_line(error)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"size": 8', b'"size": 9'),
        lambda data: b"",
    ],
    ids=["cut off", "altered", "empty"],
)
def test_a_damaged_marker_does_not_count(
    storage: Storage, prefix: str, folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    storage.upload_dir(folder, prefix)
    marker = join(prefix, COMPLETE)
    before = storage.read_bytes(marker)
    assert damage(before) != before
    storage.write_bytes(marker, damage(before))
    assert not storage.is_complete(prefix)
    storage.upload_dir(folder, prefix)
    assert storage.is_complete(prefix)


def test_one_flipped_byte_on_the_server_is_found_and_the_object_named(
    storage: Storage, prefix: str, folder: Path, tmp_path: Path, s3_folder: Path
) -> None:
    storage.upload_dir(folder, prefix)
    damaged = object_file(s3_folder, join(prefix, "sub/weights 1.bin"))
    data = bytearray(damaged.read_bytes())
    data[12345] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(StorageError, match="SHA-256") as error:
        storage.download_dir(prefix, tmp_path / "copy")
    assert join(prefix, "sub/weights 1.bin") in one_line(error)
    assert not (tmp_path / "copy" / "sub" / "weights 1.bin").exists()
    # The check is what finds it: without it the damaged file passes.
    storage.download_file(join(prefix, "sub/weights 1.bin"), tmp_path / "unchecked")
    assert (tmp_path / "unchecked").read_bytes() == bytes(data)


def test_a_shortened_object_is_named_with_its_sizes(
    storage: Storage, prefix: str, folder: Path, tmp_path: Path, s3_folder: Path
) -> None:
    storage.upload_dir(folder, prefix)
    damaged = object_file(s3_folder, join(prefix, "sub/weights 1.bin"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StorageError, match="199999 bytes instead of 200000"):
        storage.download_dir(prefix, tmp_path / "copy")


def test_a_damaged_local_copy_is_fetched_again(storage: Storage, prefix: str, folder: Path, tmp_path: Path) -> None:
    storage.upload_dir(folder, prefix)
    storage.download_dir(prefix, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text('{"a": 7}')
    assert storage.download_dir(prefix, tmp_path / "copy").transferred_bytes == 8
    assert contents(tmp_path / "copy") == contents(folder)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "", ".", "link/evil", "nul\0"])
def test_a_name_that_leaves_the_folder_is_refused(storage: Storage, prefix: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    (target / "link").symlink_to(tmp_path)
    files = {"good": FileInfo(1, "0" * 64), name: FileInfo(1, "0" * 64)}
    storage.mark_complete(prefix, files)
    storage.write_bytes(join(prefix, "good"), b"x")
    with pytest.raises(StorageError, match="outside") as error:
        storage.download_dir(prefix, target)
    one_line(error)
    assert not (tmp_path / "evil").exists()
    assert not (target / "good").exists()


UPLOAD = """
    import sys
    from vthink.components.common.storage import s3
    from vthink.components.common.storage.config import StorageConfig
    s3._JOURNAL_INTERVAL_S = 0.2  # seldom enough that the kill does not meet it: rclone keeps half an object
    class Telling(s3.Storage):
        def upload_file(self, path, uri):
            super().upload_file(path, uri)
            print(path.stat().st_size, flush=True)
    Telling(StorageConfig.load(sys.argv[1])).upload_dir(sys.argv[2], sys.argv[3])
    print("finished", flush=True)
"""


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
def test_an_upload_killed_in_the_middle_is_not_complete_and_the_next_one_finishes_it(
    storage: Storage, prefix: str, tmp_path: Path, fraction: float
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.bin").write_bytes(os.urandom(3 * 2**20))
    (folder / "large.bin").write_bytes(os.urandom(2**20) * 80)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(UPLOAD), storage.config.to_json(), str(folder), prefix],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    done, total = 0, sum(path.stat().st_size for path in folder.iterdir())
    for line in process.stdout:
        assert line.strip() != "finished", "the upload was over before it was killed"
        done += int(line)
        if done >= fraction * total:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not storage.is_complete(prefix)
    with pytest.raises(StorageError):
        storage.download_dir(prefix, tmp_path / "early")

    tree = storage.upload_dir(folder, prefix)
    assert storage.is_complete(prefix)
    if fraction >= 0.5:
        assert tree.transferred_bytes < tree.total_bytes
    storage.download_dir(prefix, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)
    assert not storage.exists(join(prefix, JOURNAL))


def test_a_journal_never_vouches_for_an_object_that_was_replaced_since(
    storage: Storage, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First version cut off, second cut off, then the first again: equal sizes must not hide the second."""
    folder = tmp_path / "source"
    folder.mkdir()
    monkeypatch.setattr(s3_module, "_JOURNAL_INTERVAL_S", 0.0)
    send = Storage.upload_file

    def version(text: str, stop_at: str | None) -> None:
        def upload(self: Storage, path: Path, uri: str) -> None:
            if path.name == stop_at:
                raise InterruptedError
            send(self, path, uri)

        for name in ("a", "b"):
            (folder / name).write_text(f"{name} {text}")
        monkeypatch.setattr(Storage, "upload_file", upload)
        monkeypatch.setattr(s3_module, "PARALLEL_FILES", 1)
        storage.upload_dir(folder, prefix)

    with pytest.raises(InterruptedError):
        version("first", stop_at="b")
    monkeypatch.setattr(s3_module, "_JOURNAL_INTERVAL_S", 1e9)
    with pytest.raises(InterruptedError):
        version("other", stop_at="b")
    version("first", stop_at=None)
    storage.download_dir(prefix, tmp_path / "copy")
    assert contents(tmp_path / "copy") == {"a": b"a first", "b": b"b first"}


def test_a_file_that_vanishes_during_an_upload_is_named(
    storage: Storage, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Storage.upload_file

    def vanish(self: Storage, path: Path, uri: str) -> None:
        (folder / "config.json").unlink(missing_ok=True)
        send(self, path, uri)

    monkeypatch.setattr(Storage, "upload_file", vanish)
    with pytest.raises(StorageError, match=r"config\.json") as error:
        storage.upload_dir(folder, prefix)
    one_line(error)
    assert not storage.is_complete(prefix)


def test_a_file_that_grows_during_its_upload_is_refused(
    storage: Storage, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Storage.upload_file

    def grow(self: Storage, path: Path, uri: str) -> None:
        send(self, path, uri)
        if path.name == "config.json":
            path.write_text("longer than before")

    monkeypatch.setattr(Storage, "upload_file", grow)
    with pytest.raises(StorageError, match="changed while"):
        storage.upload_dir(folder, prefix)
    assert not storage.is_complete(prefix)
