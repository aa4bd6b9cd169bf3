"""Models, rows and benchmarks by their names on the hub: huggingface_hub's own client, over HTTP, against a small
server that answers as the hub does. The real hub cannot be reached from here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from vthink.components.common.model.config import ModelConfig, TinyModelConfig
from vthink.components.common.model.load import load_model
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.video.config import VideoConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories as folders: ``models/<owner>/<name>``, ``datasets/<owner>/<name>``."""

    folder: Path
    url: str = ""
    served: list[str] = field(default_factory=list)
    """Files that were downloaded."""

    def run(self, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run Python for which this is the hub."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hf-home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] == "api" and parts[4:5] == ["revision"]:
                kind, repository = parts[1], hub.folder / "/".join(parts[1:4])
                names = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*.*"))
                if not repository.is_dir():
                    return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
                about = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.send(200, json.dumps(about | {"private": False, "kind": kind}).encode(), {}, body)
            if parts[0] == "api" and parts[4:5] == ["tree"]:
                repository = hub.folder / "/".join(parts[1:4])
                tree = [
                    {"type": "file", "path": p.relative_to(repository).as_posix(), "size": p.stat().st_size, "oid": "0"}
                    for p in sorted(repository.rglob("*.*"))
                ]
                return self.send(200, json.dumps(tree).encode(), {}, body)
            if "resolve" in parts:
                kind, place = ("datasets", 1) if parts[0] == "datasets" else ("models", 0)
                name = "/".join(parts[place + 4 :])
                file = hub.folder / kind / "/".join(parts[place : place + 2]) / name
                if parts[place + 3] in ("main", COMMIT) and file.is_file():
                    data = file.read_bytes()
                    hub.served += [name] * body
                    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                    return self.send(200, data, headers, body)
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)

        def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def test_a_base_model_is_fetched_by_its_name_without_files_that_could_run(
    hub: Hub, s3: StorageConfig, tmp_path: Path
) -> None:
    video = VideoConfig()
    model, processor = build_tiny(TinyModelConfig(), video, 0)
    repository = hub.folder / "models" / "someone" / "tiny-vl"
    model.save_pretrained(repository)
    processor.save_pretrained(repository)
    (repository / "pytorch_model.bin").write_bytes(b"pickled")
    (repository / "modeling_evil.py").write_text("raise SystemExit('ran')")
    config = ModelConfig(name="someone/tiny-vl", prompt="compact/1")
    done = hub.run(
        "from vthink.components.common.model.store import ensure_base_model as ensure\n"
        "from vthink.components.common.model.config import *\n"
        "from vthink.components.common.storage.config import *\n"
        "from vthink.components.common.video.config import *\n"
        "from vthink.components.common.storage.s3 import Storage\n"
        f"print(ensure(Storage(StorageConfig.load({s3.to_json()!r}, '')), "
        f"ModelConfig.load({config.to_json()!r}, ''), VideoConfig()))",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    Storage(s3).download_dir(done.stdout.split()[-1], tmp_path / "model")
    assert sorted(hub.served) == sorted(set(hub.served))
    assert not {"pytorch_model.bin", "modeling_evil.py"} & set(hub.served)
    loaded = load_model(tmp_path / "model").model.state_dict()
    assert all(bool((loaded[name] == tensor).all()) for name, tensor in model.state_dict().items())


def test_a_model_that_the_hub_does_not_have_is_one_line(hub: Hub, s3: StorageConfig, tmp_path: Path) -> None:
    (hub.folder / "models").mkdir(parents=True)
    done = hub.run(
        "from vthink.components.common.model.store import ensure_base_model as ensure\n"
        "from vthink.components.common.model.config import *\n"
        "from vthink.components.common.storage.config import *\n"
        "from vthink.components.common.video.config import *\n"
        "from vthink.components.common.storage.s3 import Storage\n"
        f"ensure(Storage(StorageConfig.load({s3.to_json()!r}, '')), ModelConfig(name='no/such'), VideoConfig())",
        tmp_path,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "model 'no/such' is neither a folder here nor reachable on the hub" in last


def test_rows_are_read_by_their_uri_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    repository = hub.folder / "datasets" / "someone" / "rows"
    repository.mkdir(parents=True)
    (repository / "rows.jsonl").write_text('{"id": "a"}\n')
    code = "from vthink.components.data_prep.source import fetch_from_hub as f; print(f('{}').read_text())"
    done = hub.run(code.format("hf://datasets/someone/rows/rows.jsonl"), tmp_path)
    assert done.stdout.strip() == '{"id": "a"}', done.stderr[-2000:]
    pinned = hub.run(code.format(f"hf://datasets/someone/rows@{COMMIT}/rows.jsonl"), tmp_path)
    assert pinned.stdout.strip() == '{"id": "a"}', pinned.stderr[-2000:]
    missing = hub.run(code.format("hf://datasets/someone/rows/other.jsonl"), tmp_path)
    assert "hf://datasets/someone/rows/other.jsonl: cannot be fetched from the hub" in missing.stderr


def test_a_benchmark_is_fetched_and_unpacked(hub: Hub, tmp_path: Path) -> None:
    import zipfile

    repository = hub.folder / "datasets" / "TencentARC" / "Video-Holmes"
    repository.mkdir(parents=True)
    (repository / "test_Video-Holmes.json").write_text("[]")
    with zipfile.ZipFile(repository / "videos.zip", "w") as archive:
        archive.writestr("film0.mp4", b"film")
    done = hub.run(
        "from pathlib import Path\nfrom vthink.components.evaluation.benchmarks.folder import Source\n"
        "source = Source.open('hub', None, Path('work'), 'TencentARC/Video-Holmes')\n"
        "print(*sorted(name for name in source.folder.names if not name.startswith('.')))",
        tmp_path,
    )
    assert {"test_Video-Holmes.json", "videos/film0.mp4"} <= set(done.stdout.split()), done.stderr[-2000:]
