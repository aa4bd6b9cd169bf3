"""The failure drill: what a run leans on goes away for a while, and nothing is lost and nothing doubled.

Outages are seconds instead of minutes: how long one may last is configuration (``storage.outage_s``,
``tracking.outage_s``). Between the code and the real S3 server stands a proxy that can be told to refuse, to stall, to
answer 503, and to find the keys expired. What concerns Kubeflow Pipelines is in ``test_submit.py``
(``test_waiting_outlasts_an_outage_of_kfp``, ``test_a_lost_answer_makes_nothing_twice``).
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.process import free_port, spawn
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import COMPLETE, StorageError, join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import GPU_HOURS, TrackingError, registry_client
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.tracking.pipeline import finish_parent, start_parent
from vthink.components.common.tracking.run import Tracker

EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)
BUSY = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>'


@dataclass
class Proxy:
    """Passes requests on to an S3 server, unless told otherwise."""

    target: str
    fail: Callable[[str, str, Any], str | None] = lambda method, path, headers: None
    """What to do with a request: ``"503"``, ``"expired"``, ``"cut"``, or None: pass it on."""
    delay_s: float = 0.0
    """Before each answer."""
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, what was done)."""

    def __post_init__(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy._connections.append(self.connection)

            def relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                what = proxy.fail(self.command, self.path, self.headers)
                proxy.seen.append((self.command, urlsplit(self.path).path, what))
                time.sleep(proxy.delay_s)
                if what == "cut":
                    self.close_connection = True
                elif what:
                    self.answer(503 if what == "503" else 400, [], BUSY if what == "503" else EXPIRED)
                else:
                    self.pass_on(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay  # noqa: N815

            def pass_on(self, body: bytes) -> None:
                upstream = http.client.HTTPConnection(urlsplit(proxy.target).netloc, timeout=30)
                # The signature covers the host that the client asked.
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        upstream.putheader(name, value)
                upstream.endheaders(body)
                got = upstream.getresponse()
                kept = [
                    (k, v) for k, v in got.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")
                ]
                self.answer(got.status, kept, got.read())
                upstream.close()

            def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() != "content-length" or self.command == "HEAD":
                        self.send_header(name, value)
                if self.command != "HEAD" or not headers:
                    self.send_header("Content-Length", str(len(body) if self.command != "HEAD" else 0))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._handler, self._connections, self.port = Handler, list[socket.socket](), 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                pass  # clients that were cut off

        self._http = Server(("127.0.0.1", self.port), self._handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Cut all connections and refuse new ones."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    @contextlib.contextmanager
    def away_for(self, seconds: float) -> Iterator[None]:
        """Out of reach from now on, and back by itself."""
        self.stop()
        back = threading.Timer(seconds, self.start)
        back.start()
        try:
            yield
        finally:
            back.join()

    def count(self, what: str) -> int:
        """How many requests were treated so."""
        return sum(done == what for _, _, done in self.seen)


@pytest.fixture
def proxy(s3: StorageConfig) -> Iterator[Proxy]:
    assert s3.endpoint_url is not None
    made = Proxy(s3.endpoint_url)
    yield made
    made.stop()


@pytest.fixture
def config(storage: Storage, proxy: Proxy) -> StorageConfig:
    """The test's store by way of the proxy."""
    return storage.config.model_copy(update={"endpoint_url": f"http://127.0.0.1:{proxy.port}", "outage_s": 30.0})


@pytest.fixture
def remote(config: StorageConfig) -> Storage:
    """A store that has answered before, as every store of a run has."""
    made = Storage(config)
    made.check()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    made.mkdir()
    for index in range(8):
        (made / f"part-{index}.bin").write_bytes(bytes([index]) * 300_000)
    return made


def contents(store: Storage, prefix: str) -> dict[str, int]:
    return {item.uri.removeprefix(prefix): item.size for item in store.list(prefix)}


# --- S3 ---


def test_a_checkpoint_s_upload_and_download_outlast_an_outage(
    remote: Storage, storage: Storage, proxy: Proxy, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    prefix = join(remote.config.root_uri, "checkpoint-50/")
    with proxy.away_for(3):
        begun = time.monotonic()
        sent = remote.upload_dir(folder, prefix)
        assert time.monotonic() - begun >= 2.9
    assert set(contents(storage, prefix)) == {*sent.files, COMPLETE}
    with proxy.away_for(2):
        remote.download_dir(prefix, tmp_path / "back")
    for path in folder.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    assert "trying for another" in caplog.text


def test_an_outage_in_the_middle_of_an_upload_sends_nothing_twice(
    remote: Storage, storage: Storage, proxy: Proxy, folder: Path
):
    prefix = join(remote.config.root_uri, "checkpoint-50/")
    arrived = threading.Event()

    def cut_after_three(method: str, path: str, headers: Any) -> str | None:
        if method == "PUT" and sum(m == "PUT" and "part-" in p for m, p, _ in proxy.seen) >= 3:
            arrived.set()
        return None

    proxy.fail = cut_after_three

    def outage() -> None:
        arrived.wait(20)
        proxy.stop()
        time.sleep(2)
        proxy.start()

    thread = threading.Thread(target=outage)
    thread.start()
    remote.upload_dir(folder, prefix)
    thread.join()
    assert set(contents(storage, prefix)) == {*(path.name for path in folder.iterdir()), COMPLETE}
    assert remote.upload_dir(folder, prefix).transferred_bytes == 0


def test_an_outage_that_lasts_too_long_is_one_line_and_the_next_attempt_finishes(
    config: StorageConfig, storage: Storage, proxy: Proxy, folder: Path
):
    impatient = Storage(config.model_copy(update={"outage_s": 0.5}))
    impatient.check()
    prefix = join(config.root_uri, "checkpoint-50/")
    proxy.fail = lambda method, path, headers: "503" if path.endswith("part-7.bin") else None
    with pytest.raises(StorageError, match="SlowDown") as error:
        impatient.upload_dir(folder, prefix)
    assert "\n" not in str(error.value)
    assert not storage.is_complete(prefix)
    proxy.fail = lambda method, path, headers: None
    again = impatient.upload_dir(folder, prefix)
    assert storage.is_complete(prefix)
    assert again.transferred_bytes < again.total_bytes


def test_a_store_that_is_busy_and_slow_gets_everything_once(
    remote: Storage, storage: Storage, proxy: Proxy, folder: Path, tmp_path: Path
):
    proxy.delay_s = 0.02
    requests = iter(range(10_000))
    proxy.fail = lambda method, path, headers: "503" if next(requests) % 3 else None
    prefix = join(remote.config.root_uri, "checkpoint-50/")
    remote.upload_dir(folder, prefix)
    remote.write_json(join(prefix, "note.json"), {"step": 50})
    assert remote.read_json(join(prefix, "note.json")) == {"step": 50}
    assert proxy.count("503") > 8
    proxy.fail = lambda method, path, headers: None
    storage.download_dir(prefix, tmp_path / "back")
    assert len(list((tmp_path / "back").iterdir())) == 8


def test_an_answer_that_is_lost_doubles_nothing(remote: Storage, storage: Storage, proxy: Proxy):
    lost = iter(range(10_000))
    proxy.fail = lambda method, path, headers: "cut" if next(lost) < 4 else None
    manifest = Manifest(stage="sft", fingerprint="0123", uri=join(remote.config.root_uri, "sft/0123/"), created="x")
    manifest.write(remote)
    assert proxy.count("cut") == 4
    assert Manifest.read(storage, manifest.manifest_uri) == manifest
    assert len(contents(storage, manifest.uri)) == 1


def key_of(headers: Any) -> str:
    return str(headers.get("Authorization", "")).partition("Credential=")[2].partition("/")[0]


@pytest.mark.parametrize("action", ["write", "exists"])
def test_keys_that_expire_are_read_again_until_somebody_has_renewed_them(
    action: str, config: StorageConfig, storage: Storage, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    file = tmp_path / "credentials"

    def give(token: str) -> None:
        lines = [f"{name.lower()} = {value}" for name, value in {**good, "AWS_SESSION_TOKEN": token}.items()]
        file.write_text("\n".join(["[default]", *lines]))

    for name in good:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    give("first")
    remote = Storage(config)
    uri = join(config.root_uri, "state.json")
    remote.write_json(uri, {"step": 1})
    proxy.fail = lambda method, path, headers: "expired" if headers["X-Amz-Security-Token"] == "first" else None
    renewed = threading.Timer(1.5, give, ["second"])
    renewed.start()
    if action == "write":
        remote.write_json(uri, {"step": 2})
        assert storage.read_json(uri) == {"step": 2}
    else:
        # HEAD has no body, so its answer does not say why.
        assert remote.exists(uri)
    renewed.join()
    assert proxy.count("expired") > 0


def test_keys_that_nobody_renews_are_named(config: StorageConfig, proxy: Proxy):
    remote = Storage(config.model_copy(update={"outage_s": 0.5}))
    remote.check()
    proxy.fail = lambda method, path, headers: "expired"
    with pytest.raises(StorageError, match=r"refused the credentials \(ExpiredToken\)"):
        remote.write_json(join(config.root_uri, "x.json"), {})


def test_keys_that_never_worked_are_an_error_at_once(config: StorageConfig, proxy: Proxy):
    proxy.fail = lambda method, path, headers: "expired"
    begun = time.monotonic()
    with pytest.raises(StorageError, match="ExpiredToken"):
        Storage(config).write_json(join(config.root_uri, "x.json"), {})
    assert time.monotonic() - begun < 5


# --- the disk ---

DOWNLOAD = """
import resource, sys
from pathlib import Path
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.s3 import Storage, StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    Storage(StorageConfig.load(sys.argv[1])).download_dir(sys.argv[2], sys.argv[3])
except StorageError as error:
    print(error)
    sys.exit(1)
"""


def test_a_disk_that_takes_no_more_leaves_no_half_file_and_the_next_attempt_finishes(
    storage: Storage, folder: Path, tmp_path: Path
):
    prefix = join(storage.config.root_uri, "model/")
    storage.upload_dir(folder, prefix)
    command = [sys.executable, "-c", DOWNLOAD, storage.config.to_json(), prefix, str(tmp_path / "here")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "free space on this machine's disk" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list((tmp_path / "here").iterdir()) == []
    storage.download_dir(prefix, tmp_path / "here")
    assert len(list((tmp_path / "here").iterdir())) == 8
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# --- MLflow ---


@dataclass
class MlflowServer:
    """A real MLflow server that can be stopped and started."""

    uri: str
    database: str
    log: Path
    process: Any = None

    def start(self) -> None:
        from vthink.components.common.launch.process import wait_until_ready
        from vthink.components.common.tracking.server import answers

        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--host", "127.0.0.1",
            "--port", self.uri.rpartition(":")[2], "--workers", "1",
        ]  # fmt: skip
        env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = spawn(command, env={k: v for k, v in env.items() if k != "MLFLOW_TRACKING_URI"}, log=self.log)
        wait_until_ready(self.process, "MLflow", lambda: answers(f"{self.uri}/health"), timeout_s=120)

    def stop(self) -> None:
        self.process.stop(5)


@pytest.fixture
def mlflow(tracking: TrackingConfig, tmp_path: Path) -> Iterator[MlflowServer]:
    assert tracking.uri is not None
    server = MlflowServer(f"http://127.0.0.1:{free_port()}", tracking.uri, tmp_path / "mlflow.log")
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_training_goes_on_without_mlflow_and_delivers_everything_once_later(
    context: RunContext, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vthink.components.common.tracking.run._AWAY_S", 1.0)
    tracking = context.tracking.model_copy(update={"uri": mlflow.uri, "outage_s": 60.0})
    context = context.model_copy(update={"tracking": tracking})
    root = join(context.storage.root_uri, "mlflow")
    parent = start_parent(tracking, context.run_id, "a: 1\n", "drill", root, context.storage)
    context = context.model_copy(update={"parent_run_id": parent})
    tracker = Tracker.start(context, "grpo", "0123", {"lr": 1}, {})
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.log_table("rollouts", {"text": ["before"]})

    mlflow.stop()
    begun = time.monotonic()
    for step in range(2, 12):
        tracker.log_metrics({"loss": float(step), "accuracy": step / 10}, step=step)
    tracker.log_table("rollouts", {"text": ["during"]})
    tracker.log_html("page", "<p>during</p>")
    tracker.set_tags({"note": "during"})
    assert time.monotonic() - begun < 30  # MLflow's own client would try each for minutes

    back = threading.Timer(3, mlflow.start)
    back.start()
    tracker.finish()
    back.join()
    client = registry_client(tracking, context.storage)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["note"] == "during"
    history = client.get_metric_history(tracker.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(step, float(step)) for step in range(1, 12)]
    assert len(client.get_metric_history(tracker.run_id, "accuracy")) == 10
    assert {entry.path for entry in client.list_artifacts(tracker.run_id)} == {
        "page.html",
        "rollouts.json",
        "settings.json",
    }
    text = client.download_artifacts(tracker.run_id, "rollouts.json")
    assert '"during"' in Path(text).read_text()


def test_an_mlflow_that_stays_away_fails_a_finished_stage_but_not_one_that_is_being_stopped(
    context: RunContext, caplog: pytest.LogCaptureFixture
):
    context = context.model_copy(update={"tracking": context.tracking.model_copy(update={"outage_s": 0.5})})
    tracker = Tracker.start(context, "sft", "0123", {}, {})
    gone = registry_client(context.tracking.model_copy(update={"uri": f"http://127.0.0.1:{free_port()}"}))
    tracker._client = tracker._outbox._client = gone
    tracker.log_metrics({"loss": 1.0}, step=1)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    assert "cannot close" in caplog.text
    stopped_s = time.monotonic() - begun
    with pytest.raises(TrackingError, match="cannot close the MLflow run"):
        tracker.finish()
    assert stopped_s < 10


def test_a_value_that_mlflow_will_never_take_is_not_waited_for(context: RunContext):
    tracker = Tracker.start(context, "sft", "0123", {}, {})
    tracker.log_metrics({"not a name?": 1.0}, step=1)
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="cannot close the MLflow run"):
        tracker.finish()
    assert time.monotonic() - begun < context.tracking.outage_s / 10


# --- the clock ---


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets this process's wall clock, without touching the monotonic one."""
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])

    def jump(seconds: float) -> None:
        offset[0] += seconds

    return jump


def test_a_clock_that_jumps_hides_no_value_and_ends_no_wait(
    context: RunContext, clock: Callable[[float], None], proxy: Proxy, remote: Storage
):
    client = registry_client(context.tracking, context.storage)
    with Tracker.start(context, "sft", "0123", {}, {}) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=1)
        tracker.log_metrics({"best": 0.1})
        clock(-86_400)
        tracker.log_metrics({"loss": 2.0}, step=2)
        tracker.log_metrics({"best": 0.2})
        clock(2 * 86_400)
        tracker.log_metrics({"loss": 3.0}, step=3)
    run = client.get_run(tracker.run_id)
    assert (run.data.metrics["best"], run.data.metrics["loss"]) == (0.2, 3.0)
    assert [metric.value for metric in client.get_metric_history(tracker.run_id, "loss")] == [1.0, 2.0, 3.0]
    jump = threading.Timer(0.5, clock, [7 * 86_400])
    with proxy.away_for(1.5):
        jump.start()
        remote.write_json(join(remote.config.root_uri, "x.json"), {"after": "the jump"})
    jump.join()


# --- accelerator hours ---

KILLED = """
import os, signal, sys, time
from vthink.components.common.tracking import run as tracking
from vthink.components.common.context import RunContext
tracking._COUNT_S = 0.0
tracker = tracking.Tracker.start(RunContext.load(sys.argv[1]), "grpo", "0123", {"a": 1}, {}, accelerators=3600)
time.sleep(2)
tracker.log_metrics({"loss": 1.0}, step=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_accelerator_hours_add_up_over_a_kill_and_in_the_pipeline_s_run(context: RunContext):
    root = join(context.storage.root_uri, "mlflow")
    parent = start_parent(context.tracking, context.run_id, "a: 1\n", "drill", root, context.storage)
    context = context.model_copy(update={"parent_run_id": parent})
    command = [sys.executable, "-c", textwrap.dedent(KILLED), context.to_json()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    client = registry_client(context.tracking, context.storage)
    # 3,600 accelerators make an hour of a second.
    with Tracker.start(context, "grpo", "0123", {"a": 1}, {}, accelerators=3600) as tracker:
        before = client.get_run(tracker.run_id).data.metrics[GPU_HOURS]
        time.sleep(1)
    with Tracker.start(context, "sft", "4567", {}, {}, accelerators=3600) as other:
        time.sleep(0.5)
    with Tracker.start(context, "gate", "89ab", {}, {}) as gate:
        pass
    finish_parent(context.tracking, parent)
    hours = {run: client.get_run(run).data.metrics for run in (tracker.run_id, other.run_id, gate.run_id, parent)}
    assert before >= 2.0
    assert hours[tracker.run_id][GPU_HOURS] >= before + 1.0
    assert GPU_HOURS not in hours[gate.run_id]
    assert hours[parent][GPU_HOURS] == pytest.approx(hours[tracker.run_id][GPU_HOURS] + hours[other.run_id][GPU_HOURS])


def test_a_drill_that_did_not_wait_would_be_noticed(config: StorageConfig, proxy: Proxy):
    """The same outage without patience fails."""
    hasty = Storage(config.model_copy(update={"outage_s": 0.0}))
    hasty.check()
    with proxy.away_for(1.5), pytest.raises(StorageError, match="cannot reach"):
        hasty.write_json(join(config.root_uri, "x.json"), {})
    logging.getLogger(__name__).debug("the outage was real: %d requests", len(proxy.seen))
