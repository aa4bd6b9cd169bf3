"""``make crds``: released definitions, from a file server or a folder, of which each is the one that is meant."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from vthink.tests import released

DATA = {"a.yaml": b"kind: A\n", "b.yaml": b"kind: B\n"}


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A file server with two files, and a table of them."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    lines = []
    for name, data in DATA.items():
        (folder / name).write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}  nobody/{name}/v1/{name}\n")
    (tmp_path / "table.txt").write_text("".join(lines))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    server.server_close()


def fetched(source: str, folder: Path) -> int:
    return released.main(["--from", source, "--to", str(folder / "got"), "--table", str(folder / "table.txt")])


def test_files_come_from_a_server_or_a_folder_once(mirror: tuple[str, Path]) -> None:
    url, folder = mirror
    assert fetched(url, folder) == 0
    assert {path.name: path.read_bytes() for path in (folder / "got").iterdir()} == DATA
    assert fetched(str(folder / "nowhere"), folder) == 0  # they are there
    (folder / "got" / "a.yaml").write_bytes(b"kind: Changed\n")
    assert fetched(str(folder / "mirror"), folder) == 0
    assert (folder / "got" / "a.yaml").read_bytes() == DATA["a.yaml"]


def test_another_version_and_a_missing_file_are_named_all_at_once(
    mirror: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = mirror
    (folder / "mirror" / "a.yaml").write_bytes(b"kind: Other\n")
    (folder / "mirror" / "b.yaml").unlink()
    assert fetched(url, folder) == 1
    told = capsys.readouterr().err
    assert "a.yaml: has SHA-256" in told
    assert "b.yaml: HTTP Error 404" in told
    assert not (folder / "got").exists()


def test_the_table_is_whole() -> None:
    names = [entry.name for entry in released.table()]
    assert len(set(names)) == len(names) > 20
    assert released.KFP_API in names
    assert all(len(entry.sha256) == 64 and entry.place.count("/") > 2 for entry in released.table())
