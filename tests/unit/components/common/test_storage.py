"""Storage against a real S3 server: what arrives is what was sent, and what is unfinished never counts."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.process import free_port
from vthink.components.common.storage import connection
from vthink.components.common.storage import s3 as s3_module
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import (
    COMPLETE,
    JOURNAL,
    StorageError,
    canonical_json,
    fingerprint,
    join,
    split_uri,
    stage_prefix,
)
from vthink.components.common.storage.s3 import Storage


@pytest.fixture
def prefix(storage: Storage) -> str:
    return join(storage.config.root_uri, "folder/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "config.json").write_text('{"a": 1}')
    (path / "sub" / "weights 1.bin").write_bytes(os.urandom(200_000))
    (path / "sub" / "deep" / "ünï#+%.txt").write_text("text")
    return path


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


# --- names ---


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("s3://b/p/", "a", "b"), "s3://b/p/a/b"),
        (("s3://b/p", "a/", "b/"), "s3://b/p/a/b/"),
        (("s3://b", "a"), "s3://b/a"),
    ],
)
def test_join_puts_single_slashes(parts: tuple[str, ...], expected: str) -> None:
    assert join(*parts) == expected


@pytest.mark.parametrize("uri", ["http://b/k", "b/k", "s3://", "s3:///k", ""])
def test_what_is_not_an_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="not an S3 URI"):
        split_uri(uri)


def test_fingerprint_ignores_order_of_keys_and_integers_that_kfp_made_floats() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}, "x") == fingerprint({"b": [2.0, 3.0], "a": 1}, "x")


def test_fingerprint_tells_values_types_and_borders_of_parts_apart() -> None:
    scalars = [(1,), ("1",), (1.5,), (True,), (None,)]
    values = [("a", "b"), ("ab",), ("a", ["b"]), *scalars, ({"a": 1},), ({"a": 2},)]
    assert len({fingerprint(*value) for value in values}) == len(values)
    assert all(len(fingerprint(*value)) == 16 for value in values)


@pytest.mark.parametrize("value", [object(), {1: 2}, Path("x"), {"a": {1, 2}}])
def test_fingerprint_refuses_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(value)


def test_fingerprint_of_a_section_is_that_of_its_values() -> None:
    section = StorageConfig(bucket="x")
    assert fingerprint(section) == fingerprint(section.model_dump(mode="json"))
    assert fingerprint(section) != fingerprint(StorageConfig(bucket="y"))


def test_stage_prefix_ends_in_a_slash() -> None:
    context = RunContext(run_id="r", storage=StorageConfig(bucket="b", prefix="team/"))
    assert stage_prefix(context, "sft", "0123") == "s3://b/team/sft/0123/"


# --- objects ---


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


# --- the connection ---


def test_an_endpoint_that_refuses_connections_gives_one_line_within_seconds(s3: StorageConfig) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(StorageError, match="cannot reach the S3 endpoint") as error:
        Storage(s3.model_copy(update={"endpoint_url": url})).check()
    assert time.monotonic() - start < 8
    assert url in one_line(error)


@pytest.mark.parametrize("accepts", [False, True], ids=["connection not taken", "request not answered"])
def test_an_endpoint_that_does_not_answer_gives_one_line_within_seconds(s3: StorageConfig, accepts: bool) -> None:
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(10 if accepts else 0)
        for _ in range(0 if accepts else 4):
            # A full queue: the kernel ignores further connections.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        start = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StorageError, match="cannot reach the S3 endpoint") as error:
            Storage(s3.model_copy(update={"endpoint_url": url})).check()
        assert time.monotonic() - start < 30
        assert "imeout" in one_line(error)


def test_a_body_that_breaks_off_is_read_again(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [b"{", b"{", b"{}"]

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(answers.pop(0))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert Storage(s3.model_copy(update={"endpoint_url": url})).read_json("s3://b/x") == {}
        assert answers == []
        answers += [b"{"] * 9
        with pytest.raises(StorageError, match="cannot reach") as error:
            Storage(s3.model_copy(update={"endpoint_url": url, "outage_s": 0.7})).read_json("s3://b/x")
        one_line(error)
        server.shutdown()


def test_an_ill_formed_endpoint_gives_one_line(s3: StorageConfig) -> None:
    with pytest.raises(StorageError, match="Invalid endpoint") as error:
        Storage(s3.model_copy(update={"endpoint_url": "localhost:9000"})).check()
    one_line(error)


@pytest.mark.parametrize(
    ("key", "secret"),
    [("someone-else", "test-secret-key"), ("test-access-key", "wrong")],
    ids=["key", "secret"],
)
def test_wrong_credentials_give_one_line(
    s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, key: str, secret: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for action in (Storage(s3).check, Storage(s3).ensure_bucket):
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"credentials|keys") as error:
            action()
        assert time.monotonic() - start < 8
        assert s3.endpoint_url is not None
        assert s3.endpoint_url in one_line(error)


def test_missing_credentials_give_one_line(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no usable S3 credentials") as error:
        Storage(s3).check()
    one_line(error)


def test_credentials_from_a_profile_work(s3: StorageConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "credentials").write_text(f"[team]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    Storage(s3).check()


# --- files ---


def test_a_large_file_goes_in_parts_and_comes_back_equal(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "large", tmp_path / "there" / "large"
    source.write_bytes(os.urandom(2**20) * 70)
    uri = join(storage.config.root_uri, "large")
    sent: list[int] = []
    storage.upload_file(source, uri, sent.append)
    assert sum(sent) == source.stat().st_size
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


# --- folders ---


def test_a_folder_comes_back_equal(storage: Storage, prefix: str, folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tree = storage.upload_dir(folder, prefix.rstrip("/"), lambda done, total: seen.append((done, total)))
    assert storage.is_complete(prefix)
    assert tree.transferred_bytes == tree.total_bytes == seen[-1][0] == seen[-1][1]
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
    storage.download_dir(prefix, tmp_path / "unchecked", verify=False)
    assert (tmp_path / "unchecked" / "sub" / "weights 1.bin").read_bytes() == bytes(data)


def test_a_shortened_object_is_found_even_without_checksums(
    storage: Storage, prefix: str, folder: Path, tmp_path: Path, s3_folder: Path
) -> None:
    storage.upload_dir(folder, prefix)
    damaged = object_file(s3_folder, join(prefix, "sub/weights 1.bin"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StorageError, match="199999 bytes instead of 200000"):
        storage.download_dir(prefix, tmp_path / "copy", verify=False)


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
    files = {"good": s3_module.FileInfo(1, "0" * 64), name: s3_module.FileInfo(1, "0" * 64)}
    storage._write_tree(join(prefix, COMPLETE), files)
    storage.write_bytes(join(prefix, "good"), b"x")
    with pytest.raises(StorageError, match="outside") as error:
        storage.download_dir(prefix, target)
    one_line(error)
    assert not (tmp_path / "evil").exists()
    assert not (target / "good").exists()


UPLOAD = """
    import sys
    from vthink.components.common.storage.config import StorageConfig
    from vthink.components.common.storage import s3 as storage
    storage._JOURNAL_INTERVAL_S = 0.0
    store = storage.Storage(StorageConfig.load(sys.argv[1]))
    def show(done, total):
        print(done, total, flush=True)
    store.upload_dir(sys.argv[2], sys.argv[3], show)
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
    for line in process.stdout:
        assert line.strip() != "finished", "the upload was over before it was killed"
        done, total = map(int, line.split())
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
        def upload(self: Storage, path: Path, uri: str, progress: Callable[[int], None] | None = None) -> None:
            if path.name == stop_at:
                raise InterruptedError
            send(self, path, uri, progress)

        for name in ("a", "b"):
            (folder / name).write_text(f"{name} {text}")
        monkeypatch.setattr(Storage, "upload_file", upload)
        monkeypatch.setattr(connection, "_PARALLEL_FILES", 1)
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

    def vanish(self: Storage, path: Path, uri: str, progress: Callable[[int], None] | None = None) -> None:
        (folder / "config.json").unlink(missing_ok=True)
        send(self, path, uri, progress)

    monkeypatch.setattr(Storage, "upload_file", vanish)
    with pytest.raises(StorageError, match=r"config\.json") as error:
        storage.upload_dir(folder, prefix)
    one_line(error)
    assert not storage.is_complete(prefix)


def test_a_file_that_grows_during_its_upload_is_refused(
    storage: Storage, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Storage.upload_file

    def grow(self: Storage, path: Path, uri: str, progress=None) -> None:
        send(self, path, uri, progress)
        if path.name == "config.json":
            path.write_text("longer than before")

    monkeypatch.setattr(Storage, "upload_file", grow)
    with pytest.raises(StorageError, match="changed while"):
        storage.upload_dir(folder, prefix)
    assert not storage.is_complete(prefix)


# --- manifests ---


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


def test_canonical_json_is_valid_json() -> None:
    assert json.loads(canonical_json({"b": 1.0, "a": [True, None, "é"]})) == {"a": [True, None, "é"], "b": 1}
