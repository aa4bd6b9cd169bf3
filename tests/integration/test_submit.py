"""``vthink submit`` and its sisters with the real ``kfp.Client``, over HTTP, held to KFP's definition of its API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner
from vthink.components.common.compat import kfp as compat_kfp
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.retry import Backoff
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.deployment.config import DeploymentConfig
from vthink.pipelines import pipeline
from vthink.pipelines.cli.main import app
from vthink.pipelines.config import Config, load
from vthink.pipelines.kfp_client import connection, runs, submit
from vthink.pipelines.kfp_client.connection import KfpConnection, KfpError
from vthink.pipelines.kfp_client.runs import ending, stage_progress
from vthink.pipelines.kfp_client.submit import cron_expression, submit_run
from vthink.pipelines.run.progress import StageProgress
from vthink.tests.fakes.kfp_server import API, Fault, KfpServer

VTHINK = [sys.executable, "-m", "vthink.pipelines.cli.main"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ALL = ("plan_data", "prepare_shard", "merge_data", "sft", "grpo", "evaluate", "gate", "register", "deploy")


@lru_cache
def compiled(config: str, evaluation_gpus: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pipeline.compile_to(Path(folder) / "x.yaml", Config.load(config), evaluation_gpus)
        return path.read_bytes()


def compile_once(path: Path, config: Config, evaluation_gpus: int) -> Path:
    """`compile_to`, whose half second of work per configuration is done once for all tests."""
    path.write_bytes(compiled(config.to_json(), evaluation_gpus))
    return path


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    """A Kubeflow Pipelines; no request may be against the definition."""
    if API not in os.environ:
        pytest.skip(f"{API} does not name KFP's v2beta1 definition")
    for name in list(os.environ):
        if name.startswith(("KF_PIPELINES_", "VTHINK_OIDC_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(connection, "_BACKOFF", Backoff(first_s=0.02))
    monkeypatch.setattr(compat_kfp, "REPEAT_AFTER_S", 0.01)
    monkeypatch.setattr(submit, "compile_to", compile_once)
    server = KfpServer()
    server.start()
    yield server
    server.stop()
    assert server.violations == []


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text("{}\n")
    return load("laptop", [f"data.source={rows}", "launch.pool.evaluate=gpu", "launch.processes=8"])


@pytest.fixture
def client(kfp: KfpServer) -> KfpConnection:
    return KfpConnection(kfp.url, "team", "secret")


def sent(kfp: KfpServer, method: str, path: str) -> int:
    return sum(asked == method and path in where for asked, where in kfp.requests)


# --- starting ---


def test_a_run_gets_a_version_of_the_pipeline_and_all_its_parameters(
    kfp: KfpServer, client: KfpConnection, config: Config
):
    started = submit_run(client, config, experiment="mine", service_account="vthink-pipeline")
    run = kfp.runs[started.run_id]
    assert started.url == f"{kfp.url}/#/runs/details/{started.run_id}"
    assert run["display_name"] == started.name
    assert run["service_account"] == "vthink-pipeline"
    assert kfp.experiments[run["experiment_id"]]["display_name"] == "mine"
    assert kfp.experiments[run["experiment_id"]]["namespace"] == "team"
    parameters = run["runtime_config"]["parameters"]
    context = RunContext.load(parameters["run"])
    assert (context.run_id, context.launch.backend, context.launch.processes) == (started.name, "trainjob", 8)
    recorded = Config.load(parameters["config"])
    assert recorded == pipeline.for_cluster(config)
    assert DeploymentConfig.load(parameters["deployment"]) == recorded.deployment
    assert (recorded.deployment.target, recorded.launch.backend) == ("kserve", "trainjob")
    as_given = {"launch": config.launch, "deployment": config.deployment}
    assert recorded.model_copy(update=as_given) == config
    reference = run["pipeline_version_reference"]
    package = kfp.packages[reference["pipeline_version_id"]]
    executors = package["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-evaluate"]["podMetadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "gpu",
        "kueue.x-k8s.io/priority-class": "vthink-normal",
        "sidecar.istio.io/inject": "false",
    }


def test_a_version_is_uploaded_once(kfp: KfpServer, client: KfpConnection, config: Config):
    first, second = submit_run(client, config), submit_run(client, config)
    assert first.run_id != second.run_id
    assert (len(kfp.pipelines), len(kfp.versions), len(kfp.experiments)) == (1, 1, 1)
    submit_run(client, config, evaluation_gpus=0)
    assert (len(kfp.pipelines), len(kfp.versions), len(kfp.runs)) == (1, 2, 3)


def test_a_kfp_that_serves_one_team_is_told_no_namespace(kfp: KfpServer, config: Config):
    kfp.multi_user = False
    submit_run(KfpConnection(kfp.url, "team"), config)
    assert len(kfp.runs) == 1


def test_a_stage_is_redone_in_this_run_and_stays_redone_in_the_next(
    kfp: KfpServer, client: KfpConnection, config: Config
):
    def redo(started: Any) -> dict[str, int]:
        return RunContext.load(kfp.runs[started.run_id]["runtime_config"]["parameters"]["run"]).redo

    assert redo(submit_run(client, config)) == {}
    assert redo(submit_run(client, config, restart="grpo")) == {"grpo": 1}
    assert redo(submit_run(client, config)) == {"grpo": 1}
    assert redo(submit_run(client, config, restart="grpo")) == {"grpo": 2}
    other = config.model_copy(update={"name": "other"})
    assert redo(submit_run(client, other)) == {}


def test_a_recurring_run(kfp: KfpServer, client: KfpConnection, config: Config):
    started = submit_run(client, config, cron="0 3 * * *")
    recurring = kfp.recurring[started.run_id]
    assert recurring["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (recurring["mode"], recurring["max_concurrency"], recurring["no_catchup"]) == ("ENABLE", "1", True)
    assert kfp.runs == {}
    assert runs.cancel_run(client, started.run_id) == "deleted the recurring run"
    assert kfp.recurring == {}


def test_a_wrong_time_is_refused_before_anything_is_sent(kfp: KfpServer, client: KfpConnection, config: Config):
    before = len(kfp.requests)
    with pytest.raises(UserError, match="expected five fields"):
        submit_run(client, config, cron="daily")
    assert len(kfp.requests) == before
    assert cron_expression("1 2 3 4 5 6") == "1 2 3 4 5 6"


def test_what_kfp_s_page_gets_by_hand_starts_with_the_settings_that_were_compiled_in(kfp: KfpServer, tmp_path: Path):
    filled, empty = (
        next(yaml.load_all(pipeline.compile_to(tmp_path / "x.yaml", config).read_text(), LOADER))
        for config in (load("video_r1_7b"), None)
    )
    needed = {
        name: {
            key for key, about in spec["root"]["inputDefinitions"]["parameters"].items() if "defaultValue" not in about
        }
        for name, spec in (("filled", filled), ("empty", empty))
    }
    assert needed == {
        "filled": set(),
        "empty": {"run", "model", "video", "data", "sft", "grpo", "evaluation", "deployment"},
    }
    default = filled["root"]["inputDefinitions"]["parameters"]["run"]["defaultValue"]
    assert RunContext.load(default).launch.backend == "trainjob"


# --- nothing twice ---


@pytest.mark.parametrize("status", [0, 503], ids=["no answer", "503"])
@pytest.mark.parametrize("path", ["/pipelines$", "/upload_version$", "/experiments$", "/runs$"])
def test_a_lost_answer_makes_nothing_twice(
    kfp: KfpServer, client: KfpConnection, config: Config, path: str, status: int
):
    kfp.faults.append(Fault("POST", path, status, done=True))
    submit_run(client, config)
    assert [len(kept) for kept in (kfp.pipelines, kfp.versions, kfp.experiments, kfp.runs)] == [1, 1, 1, 1]


@pytest.mark.parametrize("path", ["/runs$", "/recurringruns$"])
def test_a_request_that_was_not_taken_is_sent_again(kfp: KfpServer, client: KfpConnection, config: Config, path: str):
    kfp.faults.append(Fault("POST", path, 503, times=2))
    submit_run(client, config, cron="0 3 * * *" if "recurring" in path else None)
    assert len(kfp.runs) + len(kfp.recurring) == 1
    assert sent(kfp, "POST", path.rstrip("$")) == 3


def test_a_kfp_in_trouble_for_longer_is_said_in_one_line(kfp: KfpServer, client: KfpConnection, config: Config):
    kfp.faults.append(Fault("POST", "/runs$", 503, times=99))
    with pytest.raises(KfpError, match=r"cannot start the run: .* answered 503") as error:
        submit_run(client, config)
    assert "\n" not in str(error.value)
    assert kfp.runs == {}


# --- who asks ---


def test_a_token_that_is_not_known_is_refused_at_once(kfp: KfpServer):
    kfp.tokens = {"secret"}
    assert KfpConnection(kfp.url, "team", "secret").multi_user
    begun = time.monotonic()
    with pytest.raises(KfpError, match="does not know you") as error:
        KfpConnection(kfp.url, "team", "wrong")
    assert (error.value.status, time.monotonic() - begun < 3) == (401, True)


def test_a_service_account_s_token_is_read_again_when_it_is_renewed(
    kfp: KfpServer, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "token"
    file.write_text("first\n")
    kfp.tokens = {"first"}
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    client = KfpConnection(kfp.url, "team")
    submit_run(client, config)
    kfp.tokens = {"second"}
    with pytest.raises(KfpError, match="does not know you"):
        runs.recent_runs(client)
    file.write_text("second\n")
    assert len(runs.recent_runs(client)) == 1


def test_a_service_account_s_token_that_is_missing_is_named(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(KfpError, match="/nowhere/token: no such file"):
        KfpConnection(kfp.url, "team")


@pytest.fixture
def oidc(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def give(**values: str) -> None:
        for name, value in {
            "issuer": f"{kfp.url}/issuer",
            "client_id": "team",
            "client_secret": "secret",
            **values,
        }.items():
            monkeypatch.setenv(f"VTHINK_OIDC_{name.upper()}", value)

    kfp.tokens = set()
    return give


def test_an_oidc_client_gets_a_token_and_keeps_it_while_it_is_good(
    kfp: KfpServer, config: Config, oidc: Callable[..., None]
):
    oidc()
    submit_run(KfpConnection(kfp.url, "team"), config)
    assert (len(kfp.issued), len(kfp.runs)) == (1, 1)


def test_an_oidc_token_is_renewed_before_it_ends(kfp: KfpServer, config: Config, oidc: Callable[..., None]):
    oidc()
    kfp.token_lifetime_s = 0.0
    submit_run(KfpConnection(kfp.url, "team"), config)
    assert len(kfp.issued) > 3
    assert len(kfp.runs) == 1


def test_an_oidc_client_that_is_not_known_or_not_whole_is_refused(kfp: KfpServer, oidc: Callable[..., None]):
    oidc(client_secret="guessed")
    with pytest.raises(KfpError, match=r"issuer .* answered 401"):
        KfpConnection(kfp.url, "team")
    oidc(client_secret="")
    with pytest.raises(KfpError, match="OIDC needs VTHINK_OIDC_CLIENT_SECRET"):
        KfpConnection(kfp.url, "team")


# --- watching, stopping, repeating ---


@pytest.fixture
def started(client: KfpConnection, config: Config) -> str:
    return submit_run(client, config).run_id


def statuses(client: KfpConnection, run_id: str) -> list[str]:
    return [progress.status for progress in stage_progress(runs.get_run(client, run_id)).values()]


def test_the_stages_of_a_run(kfp: KfpServer, client: KfpConnection, started: str):
    assert statuses(client, started) == ["waiting"] * 7
    kfp.play(started, "RUNNING", plan_data="SUCCEEDED", prepare_shard="RUNNING")
    assert statuses(client, started) == ["running", *["waiting"] * 6]
    kfp.play(started, "RUNNING", prepare_shard="SUCCEEDED", merge_data="SUCCEEDED", sft="SKIPPED", grpo="PENDING")
    assert statuses(client, started) == ["done", "skipped", "running", *["waiting"] * 4]
    assert stage_progress(runs.get_run(client, started))["grpo"].line == "waits for a place"
    kfp.play(started, "FAILED", grpo=("FAILED", "grpo: out of memory"))
    assert statuses(client, started) == ["done", "skipped", "failed", *["skipped"] * 4]
    assert stage_progress(runs.get_run(client, started))["grpo"].line == "grpo: out of memory"
    assert ending(runs.get_run(client, started)) == "failed"


def test_a_run_whose_model_is_refused_is_no_failure(kfp: KfpServer, client: KfpConnection, started: str):
    kfp.play(started, "SUCCEEDED", **dict.fromkeys(ALL[:7], "SUCCEEDED"), refuse="SUCCEEDED", register="SKIPPED")
    assert statuses(client, started) == ["done"] * 4 + ["refused", "skipped", "skipped"]
    assert ending(runs.get_run(client, started)) == "refused"
    kfp.play(started, "SUCCEEDED", **dict.fromkeys(ALL, "SUCCEEDED"), refuse="SKIPPED")
    assert ending(runs.get_run(client, started)) == "succeeded"


def in_background(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(action())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_waiting_outlasts_an_outage_of_kfp(kfp: KfpServer, client: KfpConnection, started: str):
    seen: list[dict[str, str]] = []
    silences: list[str] = []

    def note(progress: dict[Any, StageProgress]) -> None:
        seen.append({stage: about.status for stage, about in progress.items()})

    thread, result = in_background(lambda: runs.wait_for_run(client, started, note, silences.append, poll_s=0.02))
    wait_for(lambda: bool(seen))
    kfp.play(started, "RUNNING", plan_data="RUNNING")
    wait_for(lambda: seen[-1]["prepare"] == "running")
    with kfp.away():
        wait_for(lambda: bool(silences))
    looks = len(seen)
    wait_for(lambda: len(seen) > looks)
    kfp.faults += [Fault("GET", "/runs/", status, times=4) for status in (503, 429, 0)]
    kfp.play(started, "SUCCEEDED", **dict.fromkeys(ALL, "SUCCEEDED"))
    thread.join(30)
    assert result[0].state == "SUCCEEDED"
    assert "cannot reach Kubeflow Pipelines" in silences[0]
    assert len(kfp.runs) == 1


def test_waiting_ends_when_kfp_stays_away_or_does_not_know_us_any_more(
    kfp: KfpServer, client: KfpConnection, started: str
):
    with kfp.away(), pytest.raises(KfpError, match="the run goes on"):
        runs.wait_for_run(client, started, lambda _: None, poll_s=0.02, patience_s=0.1)
    kfp.tokens = set()
    with pytest.raises(KfpError, match=r"does not know you .* the run goes on"):
        runs.wait_for_run(client, started, lambda _: None, poll_s=0.02)


def test_a_run_is_stopped_and_continued(kfp: KfpServer, client: KfpConnection, started: str):
    kfp.play(started, "RUNNING", sft="RUNNING")
    with pytest.raises(KfpError, match="only a failed or stopped run"):
        runs.retry_run(client, started)
    kfp.faults.append(Fault("POST", ":terminate", 503))
    assert runs.cancel_run(client, started) == "stopping"
    run = runs.wait_for_run(client, started, lambda _: None, poll_s=0.01)
    assert ending(run) == "canceled"
    assert runs.cancel_run(client, started) == "already over: canceled"
    assert runs.retry_run(client, kfp.runs[started]["display_name"]).run_id == started
    assert kfp.runs[started]["state"] == "RUNNING"


def test_a_run_that_does_not_exist_is_named(client: KfpConnection):
    for action in (runs.find_run, runs.cancel_run, runs.retry_run):
        with pytest.raises(KfpError, match="no run 'nothing'"):
            action(client, "nothing")


def test_the_log_of_a_stage_is_that_of_its_pods(kfp: KfpServer, client: KfpConnection, started: str):
    kfp.play(started, "RUNNING", plan_data="SUCCEEDED", prepare_shard="RUNNING")
    pods = [f"{started[:8]}-{task}-executor" for task in ("plan-data", "prepare-shard")]
    kfp.pod_logs = {
        pods[0]: "3 shards\n",
        pods[1]: "shard 1\n\x1b]0;evil\x07shard 2\x1b[2J\n",
        f"{started[:8]}-plan-data-driver": "noise\n",
    }
    assert list(runs.stage_log(client, runs.get_run(client, started), "prepare")) == [
        "3 shards",
        "shard 1",
        "]0;evilshard 2",
    ]
    with pytest.raises(KfpError, match=r"stage sft .* has not started"):
        list(runs.stage_log(client, runs.get_run(client, started), "sft"))
    del kfp.pod_logs[pods[0]]
    with pytest.raises(KfpError, match="answered 404"):
        list(runs.stage_log(client, runs.get_run(client, started), "prepare"))


# --- the command line ---


@pytest.fixture
def environment(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sets once."""
    for name, value in {"ENDPOINT": kfp.url, "NAMESPACE": "team"}.items():
        monkeypatch.setenv(f"KF_PIPELINES_{name}", value)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    impatient = SimpleNamespace(sleep=lambda _: time.sleep(0.05), monotonic=time.monotonic)
    monkeypatch.setattr(runs, "time", impatient)


def vthink(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command, in this process."""
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def write_rows(path: Path, *pictures: str) -> None:
    """A row for each split, and one more to compare models on, about pictures that are there."""
    with path.open("w") as file:
        for split, name in zip(("train", "validation", "test", "test"), pictures, strict=True):
            Image.new("RGB", (8, 8)).save(path.parent / name)
            row = {"id": name, "media": {"kind": "image", "uri": name}, "question": "Which?", "options": ["a", "b"]}
            row |= {"problem_type": "multiple_choice", "answer": "A", "reasoning": "It is.", "split": split}
            file.write(json.dumps(row | {"metadata": {"kind": "direction"}}) + "\n")


@pytest.mark.usefixtures("environment")
def test_commands_from_submission_to_the_end(
    kfp: KfpServer, s3: StorageConfig, tracking: TrackingConfig, tmp_path: Path
):
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, "a.png", "b.png", "c.png", "d.png")
    settings = ["--preset", "laptop", "--set", f"data.source={rows}"]
    submitted, result = in_background(lambda: vthink("submit", *settings, "--wait"))
    wait_for(lambda: bool(kfp.runs), 60)
    run_id = next(iter(kfp.runs))
    kfp.play(run_id, "SUCCEEDED", **dict.fromkeys(ALL[:7], "SUCCEEDED"), refuse="SUCCEEDED")
    submitted.join(60)
    code, output = result[0]
    assert code == 3
    assert f"/#/runs/details/{run_id}" in output
    assert "✗ gate refused" in output

    code, output = vthink("submit", *settings, "--when-data-changes")
    assert (code, len(kfp.runs)) == (0, 1)
    assert "nothing to do" in output
    write_rows(rows, "a.png", "b.png", "c.png", "e.png")
    assert vthink("submit", *settings, "--when-data-changes")[0] == 0
    assert len(kfp.runs) == 2

    listed = vthink("status")[1].splitlines()
    assert len(listed) == 2
    assert "pending" in listed[0]
    assert "refused" in listed[1]
    shown = vthink("status", run_id)[1]
    assert "✗ gate" in shown
    assert f"/#/runs/details/{run_id}" in shown
    code, output = vthink("status", run_id, "--watch")  # to the end, which has come
    assert code == 3
    assert "✗ gate refused" in output
    stores = ["--set", f"storage.endpoint_url={s3.endpoint_url}", "--set", f"tracking.uri={tracking.uri}"]
    command = ["status", "--preset", "laptop", *stores, "--workspace", str(tmp_path / "workspace")]
    both = vthink(*command)[1].splitlines()
    assert both[:2] == listed
    assert both[-1] == "champion: none yet"


@pytest.mark.usefixtures("environment")
def test_a_mistake_is_one_line():
    done = subprocess.run([*VTHINK, "status", "none"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vthink: no run 'none'")
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--watch"], "--watch follows one run"),
        (["submit", "--cron", "daily"], "expected five fields"),
        (["submit", "--cron", "0 3 * * *", "--wait"], "--cron starts runs later"),
        (["submit", "--every", "9"], "--every needs --when-data-changes"),
    ],
    ids=["no run to watch", "not a time", "options that exclude each other", "an option that needs another"],
)
def test_options_that_make_no_sense_are_the_user_s_mistake(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        vthink(*arguments)


# --- the server that these tests rest on ---


def ask(kfp: KfpServer, method: str, path: str, body: Any = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{kfp.url}/apis/v2beta1{path}", data, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/run", None),
        ("PATCH", "/runs", None),
        ("GET", "/runs?names_pace=team", None),
        ("GET", "/runs?namespace=team&page_size=many", None),
        ("GET", '/runs?namespace=team&filter={"predicates":[{"operator":"EQUALS"}]}', None),
        ("GET", '/runs?namespace=team&filter={"predicates":[{"operation":"LIKE"}]}', None),
        ("GET", "/runs", None),
        ("POST", "/runs", {"display_name": "x", "pipeline_versoin_reference": {}}),
        ("POST", "/runs", {"display_name": 1}),
        ("POST", "/runs", {"display_name": "x", "runtime_config": {"params": {}}}),
        ("POST", "/experiments", {"display_name": "x"}),
        ("POST", "/recurringruns", {"trigger": {"cron": "0 3 * * *"}}),
        ("POST", "/recurringruns", {"max_concurrency": 1}),
    ],
)
def test_the_server_refuses_what_kfp_s_definition_does_not_allow(kfp: KfpServer, method: str, path: str, body: Any):
    assert ask(kfp, method, path.replace('"', "%22").replace("{", "%7B").replace("}", "%7D"), body) == 400
    assert len(kfp.violations) == 1
    kfp.violations.clear()


def test_the_server_refuses_parameters_that_the_pipeline_does_not_take(
    kfp: KfpServer, client: KfpConnection, started: str
):
    run = kfp.runs[started]
    keys = ("display_name", "experiment_id", "pipeline_version_reference", "runtime_config")
    good = {key: run[key] for key in keys}
    assert ask(kfp, "POST", "/runs", good) == 200
    for change in ({"runn": "x"}, {"train_sft": "yes"}, {"sft_steps": True}):
        parameters = {**run["runtime_config"]["parameters"], **change}
        assert ask(kfp, "POST", "/runs", {**good, "runtime_config": {"parameters": parameters}}) == 400
    assert len(kfp.violations) == 3
    kfp.violations.clear()


def test_the_server_does_not_answer_what_kfp_s_definition_does_not_know(
    kfp: KfpServer, client: KfpConnection, started: str
):
    kfp.runs[started]["state"] = "DONE"
    with pytest.raises(KfpError, match="answered 500"):
        runs.get_run(client, started)
