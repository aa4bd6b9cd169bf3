"""Training as a TrainJob: the test plays Trainer, Kueue and the kubelet, and the training process itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.kubernetes import backend, trainjob
from vthink.components.common.launch.kubernetes import owner as owner_module
from vthink.components.common.launch.kubernetes.client import POD, TRAIN_JOB, WORKFLOW, Cluster, condition, is_true
from vthink.components.common.launch.local import run_training
from vthink.components.common.launch.process import LaunchError, free_port
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.tests.cluster import validation
from vthink.tests.cluster.api_server import ApiServer
from vthink.tests.cluster.controllers import Hand, until

Object = dict[str, Any]
JOB = {"config": {"learning_rate": 1e-6}, "model": {}, "data": "s3://b/data/manifest.json"}
KEY = "f" * 16


def context_of(storage: Storage, **launch: Any) -> RunContext:
    launch.setdefault("pool", {"sft": "gpu", "grpo": "gpu-spot"})
    settings = LaunchConfig(backend="trainjob", nodes=launch.pop("nodes", 2), processes=8, **launch)
    return RunContext(run_id="video_r1_7b-20261121-0800", storage=storage.config, launch=settings)


class Launcher:
    """A launcher in a thread, and the training that it waits for."""

    def __init__(self, cluster: Cluster, context: RunContext) -> None:
        self.cluster, self.context = cluster, context
        self.storage = Storage(context.storage)
        self.prefix = join(context.storage.root_uri, f"sft/{KEY}/")
        self.lines: list[str] = []
        self.result: Manifest | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        arguments = (self.context, "sft", "vthink.components.sft.train", JOB, KEY, self.prefix)
        try:
            self.result = backend.run(*arguments, self.lines.append, self.cluster, tick_s=1.0)
        except BaseException as error:
            self.error = error

    def trained(self) -> Manifest:
        """What the training process does last."""
        made = Manifest(stage="sft", fingerprint=KEY, uri=self.prefix)
        made.write(self.storage)
        return made

    def said(self, text: str) -> str:
        """Wait for a line that holds this text."""
        return until(lambda: next((line for line in self.lines if text in line), ""))

    def ended(self) -> Manifest:
        self._thread.join(60)
        assert not self._thread.is_alive(), self.lines
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def failure(self) -> str:
        self._thread.join(60)
        assert isinstance(self.error, LaunchError), (self.error, self.lines)
        return str(self.error)


@pytest.fixture
def launcher(cluster: Cluster, storage: Storage) -> Callable[..., Launcher]:
    """Start a launcher; keyword arguments are launch settings."""
    return lambda **launch: Launcher(cluster, context_of(storage, **launch))


# --- the object ---------------------------------------------------------------------------------------------


def built(context: RunContext, stage: Any = "sft", attempt: int = 1) -> Object:
    command = trainjob.command(context, "vthink.components.sft.train", "s3://b/p/job.json")
    return trainjob.train_job(context, stage, trainjob.job_name(context, stage, JOB), attempt, command)


LAYOUTS: dict[str, Object] = {
    "queue": {},
    "priority and topology": {"cluster": {"priority": "vthink-high", "topology": "topology.kubernetes.io/zone"}},
    "no queue": {"cluster": {"queues": False, "tolerations": [{"key": "spot", "operator": "Exists"}]}},
    "no pool": {"pool": {}},
    "CPU": {"cluster": {"accelerator": None, "cpu": "500m", "memory": "1Gi", "s3_secret": None}},
    "rollout server": {"cluster": {"rollout_servers": 1, "queues": False}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_object_is_valid_to_the_letter(crds: Path, storage: Storage, layout: str, stage: str) -> None:
    body = built(context_of(storage, **LAYOUTS[layout]), stage, attempt=12)
    assert validation.validate(body) == []
    assert body["spec"]["trainer"]["command"][0] == "torchrun"
    assert len(body["metadata"]["name"]) <= 50  # JobSet appends to it


def mutate(body: Object, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        body = body[int(part)] if part.isdigit() else body[part]  # type: ignore[index]
    body[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.trainer.numProcessPerNode", 8),
        ("spec.trainer.numNodes", "2"),
        ("spec.trainer.resourcesPerNode.limits.memory", "64GB"),
        ("spec.trainer.command.0", "accelerate"),
        ("spec.podTemplateOverrides", []),
        ("metadata.name", "x" * 64),
        ("spec.runtimePatches.0.manager", "vthink"),
    ],
)
def test_the_check_refuses_a_mistake(crds: Path, storage: Storage, path: str, value: Any) -> None:
    body = built(context_of(storage))
    if path.endswith(".0"):
        body["spec"]["trainer"]["command"][0] = value
    else:
        mutate(body, path, value)
    assert validation.validate(body)


def test_the_pool_becomes_a_queue_or_a_place(storage: Storage) -> None:
    queued = built(context_of(storage), "grpo")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-spot"
    (job,) = queued["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    placed = built(context_of(storage, cluster={"queues": False}), "grpo")
    assert not any("kueue" in label for label in placed["metadata"]["labels"])
    (job,) = placed["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"vthink.dev/pool": "gpu-spot"}
    assert {"key": "vthink.dev/pool", "operator": "Equal", "value": "gpu-spot", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]


def test_a_rollout_server_is_the_runtimes_second_job_with_our_model(crds: Path, storage: Storage) -> None:
    context = context_of(storage, cluster={"rollout_servers": 1, "queues": False})
    arguments = (trainjob.job_name(context, "grpo", JOB), 1, ["torchrun"], None, "Qwen/Qwen2.5-VL-7B-Instruct")
    body = trainjob.train_job(context, "grpo", *arguments)
    assert validation.validate(body) == []
    assert body["spec"]["runtimeRef"]["name"] == "vthink-torch-vllm"
    jobs = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    server = jobs[1]["template"]["spec"]["template"]["spec"]
    assert server["containers"][0]["env"][0]["value"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert server["nodeSelector"] == {"vthink.dev/pool": "gpu-spot"}
    name = body["metadata"]["name"]
    env = {entry["name"]: entry.get("value") for entry in body["spec"]["trainer"]["env"]}
    assert env["VTHINK_ROLLOUT_URL"] == f"http://{name}-vllm-0-0.{name}:8000"
    assert trainjob.train_job(context, "sft", *arguments)["spec"]["runtimeRef"]["name"] == "vthink-torch"


def test_a_job_on_fewer_nodes_keeps_its_name_and_place(storage: Storage) -> None:
    planned, fewer = context_of(storage, nodes=2), context_of(storage, nodes=2, cluster={"nodes": 1})
    first, second = built(planned), built(fewer)
    assert first["metadata"]["name"] == second["metadata"]["name"]
    assert (first["spec"]["trainer"]["numNodes"], second["spec"]["trainer"]["numNodes"]) == (2, 1)
    assert first["spec"]["trainer"]["command"] == second["spec"]["trainer"]["command"]
    shapes = [body["metadata"]["annotations"][trainjob.SHAPE] for body in (first, second)]
    assert shapes[0] != shapes[1]


def test_stores_are_forwarded_and_keys_are_not(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "hidden-1", "AWS_ACCESS_KEY_ID": "hidden-2", "MLFLOW_TRACKING_TOKEN": "hidden-3",
        "MLFLOW_TRACKING_PASSWORD": "hidden-4", "HF_TOKEN": "hidden-5", "MLFLOW_TRACKING_USERNAME": "hidden-6",
    }  # fmt: skip
    public = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_RUN_ID": "abc", "NCCL_DEBUG": "INFO"}
    for name, value in {**secrets, **public, "UNRELATED": "x", "VTHINK_OWNER": "1:2"}.items():
        monkeypatch.setenv(name, value)
    body = built(context_of(storage))
    assert "hidden" not in json.dumps(body)
    env = {entry["name"]: entry for entry in body["spec"]["trainer"]["env"]}
    assert {name: env[name].get("value") for name in public} == public
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "vthink-s3"
    assert storage.config.endpoint_url in env["VTHINK_STORAGE"]["value"]
    assert not {"UNRELATED", "VTHINK_OWNER", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN"} & env.keys()


def test_the_name_follows_from_run_stage_and_settings(storage: Storage) -> None:
    first, resized = context_of(storage, nodes=2), context_of(storage, nodes=1)
    name = trainjob.job_name(first, "sft", JOB)
    assert name == trainjob.job_name(resized, "sft", json.loads(json.dumps(JOB)))
    others = {
        trainjob.job_name(first, "grpo", JOB),
        trainjob.job_name(first, "sft", JOB | {"data": "s3://b/other/manifest.json"}),
        trainjob.job_name(first.model_copy(update={"run_id": "another"}), "sft", JOB),
        trainjob.job_name(first.model_copy(update={"redo": {"sft": 1}}), "sft", JOB),
    }
    assert len(others | {name}) == 5
    for run_id in ("0815", "_", "-" * 50, "Ünïcode/../x", "a" * 200):
        hostile = trainjob.job_name(first.model_copy(update={"run_id": run_id}), "evaluate", JOB)
        assert validation._LABEL.fullmatch(hostile), hostile


# --- a job's life -------------------------------------------------------------------------------------------


def test_from_the_queue_to_the_result(launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer) -> None:
    running = launcher()
    job = hand.job()
    hand.suspend(job, True)
    why = "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu, 8 more needed"
    hand.workload(job, QuotaReserved=("False", "Pending", why))
    running.said(f"queued in 'gpu': {why}")
    hand.workload(job, QuotaReserved=("True", "QuotaReserved", ""), Admitted=("True", "Admitted", ""))
    hand.suspend(job, False)
    running.said("admitted, no pods yet")
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/5 nodes are available",
    }
    pods = [hand.pod(job, index, "Pending", conditions=[unscheduled]) for index in range(2)]
    running.said("2 of 2 pods wait for a machine: 0/5 nodes are available")
    hand.event(pods[0], "FailedScheduling", "0/5 nodes are available: 5 Insufficient nvidia.com/gpu", "Pod")
    running.said("FailedScheduling")
    creating = {
        "containerStatuses": [{"name": "node", "state": {"waiting": {"reason": "ContainerCreating"}}}],
        "conditions": [],
    }
    for pod in pods:
        hand.set_status(POD, pod, creating)
    running.said("2 of 2 pods are starting (ContainerCreating)")
    for index, pod in enumerate(pods):
        hand.set_status(POD, pod, {"phase": "Running", "containerStatuses": []})
        trouble.print_line(
            hand.cluster.namespace, pod, f"[rank{8 * index}]:loading", f"[rank{8 * index}]:sft 1/10 · loss 0.5"
        )
    running.said("running on 2 nodes")
    running.said("[node 0] [rank 0] sft 1/10 · loss 0.5")
    running.said("[node 1] [rank 8] loading")
    written = running.trained()
    for pod in pods:
        trouble.print_line(hand.cluster.namespace, pod, "saved", end=True)
    hand.finish(job)
    assert running.ended().fingerprint == written.fingerprint
    assert running.lines.count("[node 0] saved") == 1
    assert running.lines.index("sft: queued in 'gpu': " + why) < running.lines.index("sft: running on 2 nodes")
    assert sum("FailedScheduling" in line for line in running.lines) == 1
    assert len(hand.jobs()) == 1


def test_success_without_a_result_is_a_failure(launcher: Callable[..., Launcher], hand: Hand) -> None:
    running = launcher()
    hand.finish(hand.job())
    assert "ended without writing its manifest" in running.failure()


@pytest.mark.parametrize("state", ["running", "suspended", "complete"])
def test_a_retry_adopts_the_job(
    launcher: Callable[..., Launcher], hand: Hand, cluster: Cluster, storage: Storage, state: str
) -> None:
    context = context_of(storage)
    name = trainjob.job_name(context, "sft", JOB)
    uri = join(context.storage.root_uri, f"sft/{KEY}/job.json")
    command = trainjob.command(context, "vthink.components.sft.train", uri)
    job = cluster.create(TRAIN_JOB, trainjob.train_job(context, "sft", name, 1, command))
    if state == "suspended":
        hand.suspend(job, True)
    if state == "complete":
        Manifest(stage="sft", fingerprint=KEY, uri=join(context.storage.root_uri, f"sft/{KEY}/")).write(storage)
        hand.finish(job)
    running = launcher()
    if state != "complete":
        running.said(f"adopted the TrainJob {name}")
        running.trained()
        hand.finish(job)
    assert running.ended().fingerprint == KEY
    assert [found["metadata"]["uid"] for found in hand.jobs()] == [job["metadata"]["uid"]]


def test_a_failed_job_gets_a_successor_that_a_third_launcher_adopts(
    launcher: Callable[..., Launcher], hand: Hand
) -> None:
    first = launcher()
    job = hand.job()
    hand.finish(job, "Failed", "JobsFailed", "jobset failed due to one or more job failures")
    assert "jobset failed due to one or more job failures" in first.failure()
    launcher()
    second = hand.job(2)
    assert second["metadata"]["name"] == job["metadata"]["name"] + "-a2"
    assert second["spec"]["trainer"]["command"] == job["spec"]["trainer"]["command"]  # the same checkpoints
    third = launcher()
    third.said("adopted the TrainJob")
    third.trained()
    hand.finish(second)
    third.ended()
    assert len(hand.jobs()) == 2


def test_a_resized_job_is_replaced_once_its_pods_are_gone(
    launcher: Callable[..., Launcher], hand: Hand, cluster: Cluster, storage: Storage
) -> None:
    small = context_of(storage, nodes=2)
    command = trainjob.command(
        small, "vthink.components.sft.train", join(storage.config.root_uri, f"sft/{KEY}/job.json")
    )
    old = cluster.create(TRAIN_JOB, trainjob.train_job(small, "sft", trainjob.job_name(small, "sft", JOB), 1, command))
    pod = hand.pod(old)
    # A pod that still writes its last checkpoint: nothing owns it, so that only the test ends it.
    cluster.update(POD, pod, lambda found: {**found, "metadata": {**found["metadata"], "ownerReferences": []}})
    running = launcher(cluster={"nodes": 1})
    running.said("was made for other nodes or settings")
    until(lambda: cluster.get(TRAIN_JOB, old["metadata"]["name"]) is None)
    assert hand.jobs() == []
    hand.set_status(POD, pod, {"phase": "Failed"})
    new = hand.job(2)
    assert new["spec"]["trainer"]["numNodes"] == 1
    running.trained()
    hand.finish(new)
    running.ended()


def test_when_machines_are_taken_away_the_stage_goes_on_with_another_job(
    launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer
) -> None:
    running = launcher(cluster={"attempts": 2})
    for attempt in (1, 2):
        job = hand.job(attempt)
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
        pod = hand.pod(job, phase="Failed", conditions=[disrupted])
        until(lambda pod=pod: any(pod in path for _, path in trouble.requests))  # it was seen
        hand.finish(job, "Failed", "FailedJobs")
    assert "PreemptionByScheduler" in running.failure()  # the attempts are used up
    assert len(hand.jobs()) == 2


def test_preemption_by_kueue_is_a_wait_not_a_failure(launcher: Callable[..., Launcher], hand: Hand) -> None:
    running = launcher()
    job = hand.job()
    hand.suspend(job, True)
    hand.workload(
        job, QuotaReserved=("False", "Pending", ""), Evicted=("True", "Preempted", "to make room for vthink-high")
    )
    running.said("put back into the queue 'gpu' (Preempted: to make room for vthink-high)")
    assert running.error is None
    hand.suspend(job, False)
    running.trained()
    hand.finish(job)
    running.ended()


WORKER = """
import argparse, os
from vthink.components.common.context import RunContext
from vthink.components.common.launch.job import read_job
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
parser = argparse.ArgumentParser()
parser.add_argument("--job")
job = read_job(parser.parse_args().job)
run = RunContext.load(job["run"])
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} in {run.work_dir}", flush=True)
Manifest(stage=job["stage"], fingerprint=job["fingerprint"], uri=job["prefix"]).write(Storage(run.storage))
"""


@pytest.mark.slow
def test_what_the_object_says_is_what_a_kubelet_can_run(
    cluster: Cluster, hand: Hand, trouble: ApiServer, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny_worker.py").write_text(WORKER)
    context = context_of(storage, nodes=1, cluster={"accelerator": None, "work_dir": str(tmp_path / "scratch")})
    context = context.model_copy(update={"launch": context.launch.model_copy(update={"processes": 1})})
    lines: list[str] = []
    results: list[Manifest] = []
    prefix = join(storage.config.root_uri, "trained/")

    def launch() -> None:  # by the front door: the cluster is found through KUBECONFIG
        results.append(run_training(context, "sft", "tiny_worker", {"data": "x"}, KEY, prefix, lines.append))

    thread = threading.Thread(target=launch, daemon=True)
    thread.start()
    job = hand.job()
    pod = hand.pod(job)
    trainer = job["spec"]["trainer"]
    env = {entry["name"]: entry["value"] for entry in trainer["env"] if "value" in entry}
    env |= {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": "0"}
    env |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port())}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env |= {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}  # from the secret
    done = subprocess.run(trainer["command"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trouble.print_line(cluster.namespace, pod, *done.stdout.splitlines(), end=True)
    hand.finish(job)
    thread.join(30)
    assert results
    assert results[0].fingerprint == KEY
    assert f"rank 0 of 1 in {tmp_path / 'scratch'}" in lines


# --- what goes wrong ----------------------------------------------------------------------------------------


def terminated(reason: str, code: int) -> Object:
    return {"containerStatuses": [{"name": "node", "state": {"terminated": {"reason": reason, "exitCode": code}}}]}


NCCL = "[rank3]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE)"
MIXED = "vthink.components.common.config.ConfigError: deepspeed=zero3 on several processes cannot mix"
FAILURES: dict[str, tuple[Object, str, str]] = {
    "memory": (
        terminated("OOMKilled", 137),
        "start",
        r"ran out of memory \(OOMKilled, limit 64Gi\); raise launch\.cluster",
    ),
    "GPU memory": (
        terminated("Error", 1),
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "OutOfMemoryError: CUDA out of memory.*lower the batch, the number of frames",
    ),
    "NCCL": (terminated("Error", 1), NCCL, "stopped talking to each other.*NCCL_DEBUG=INFO"),
    "user": (terminated("Error", 1), MIXED, "ConfigError: deepspeed=zero3 on several processes cannot mix"),
    "unknown": (terminated("Error", 7), "who knows", "FailedJobs: one or more jobs failed; see the pods' logs"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_says_what_to_do(
    launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer, case: str
) -> None:
    status, printed, expected = FAILURES[case]
    running = launcher(nodes=1)
    job = hand.job()
    pod = hand.pod(job)
    trouble.print_line(hand.cluster.namespace, pod, printed)
    running.said(printed[-20:])
    hand.set_status(POD, pod, {"phase": "Failed", **status})
    hand.finish(job, "Failed", "FailedJobs", "one or more jobs failed")
    message = running.failure()
    assert message.startswith("sft: ")
    assert "\n" not in message
    assert re.search(expected, message), message
    assert len(hand.jobs()) == 1  # such a failure is not repeated


@pytest.mark.parametrize("reason", ["InvalidImageName", "ImagePullBackOff"])
def test_an_image_that_cannot_be_pulled_ends_the_stage_and_frees_the_machines(
    launcher: Callable[..., Launcher], hand: Hand, reason: str
) -> None:
    patience_s = 600.0 if reason == "InvalidImageName" else 1.5
    running = launcher(cluster={"pull_timeout_s": patience_s, "image": "ghcr.io/nobody/none:1"})
    job = hand.job()
    waiting = {
        "name": "node",
        "image": "ghcr.io/nobody/none:1",
        "state": {"waiting": {"reason": reason, "message": "denied"}},
    }
    hand.pod(job, phase="Pending", containerStatuses=[waiting])
    message = running.failure()
    assert f"the image ghcr.io/nobody/none:1 cannot be pulled ({reason}: denied); check launch.cluster.image" in message
    assert hand.jobs() == []


def test_a_quota_that_can_never_be_met_ends_the_stage(launcher: Callable[..., Launcher], hand: Hand) -> None:
    running = launcher()
    job = hand.job()
    refusal = 'pods "x" is forbidden: exceeded quota: team, requested: requests.memory=64Gi, used: 0, limited: 32Gi'
    hand.event(job["metadata"]["name"] + "-node-0", "FailedCreate", refusal, "Job")
    assert "exceeded quota: team" in running.failure()
    assert hand.jobs() == []


def test_a_job_that_somebody_deletes_is_reported(
    launcher: Callable[..., Launcher], hand: Hand, cluster: Cluster
) -> None:
    running = launcher()
    job = hand.job()
    running.said("admitted")
    cluster.delete(TRAIN_JOB, job["metadata"]["name"])
    assert "was deleted; run again to go on from its last checkpoint" in running.failure()


# --- an API in trouble --------------------------------------------------------------------------------------


def test_a_lost_answer_does_not_make_a_second_job(
    launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer
) -> None:
    trouble.fail(None, method="POST", path="trainjobs", after=True)
    running = launcher()
    job = hand.job()
    running.said("adopted the TrainJob")
    running.trained()
    hand.finish(job)
    running.ended()
    assert len(hand.jobs()) == 1


def test_an_api_in_trouble_costs_nothing(launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer) -> None:
    trouble.fail(429, times=2, retry_after_s=0)
    running = launcher(nodes=1)
    job = hand.job()
    pod = hand.pod(job)
    namespace = hand.cluster.namespace
    trouble.break_log(namespace, pod, 2)
    trouble.print_line(namespace, pod, *(f"step {step}" for step in range(4)))
    running.said("step 3")
    trouble.fail(503, times=3, path="watch=true")
    trouble.fail(500, times=2, path="/pods")
    running.said("still trying")
    trouble.expire()
    running.said("answers again")
    trouble.print_line(namespace, pod, "step 4", end=True)
    running.trained()
    hand.finish(job)
    running.ended()
    assert [line for line in running.lines if line.startswith("step")] == [f"step {step}" for step in range(5)]


def test_a_missing_right_is_said_at_once(launcher: Callable[..., Launcher], trouble: ApiServer) -> None:
    trouble.fail(403, path="trainjobs")
    assert "403" in launcher().failure()


# --- a launcher that is stopped -----------------------------------------------------------------------------

PROGRAM = """
import sys
from vthink.components.common.context import RunContext
from vthink.components.common.launch.kubernetes import backend
context, job = RunContext.load(sys.argv[1]), {"config": {"learning_rate": 1e-6}, "model": {}, "data": "s3://b/data/manifest.json"}
said = lambda line: print(line, flush=True)
backend.run(context, "sft", "vthink.components.sft.train", job, sys.argv[2], sys.argv[3], said, tick_s=1.0)
print("RESULT", flush=True)
"""


class LauncherPod:
    """A launcher in a process of its own, as in its pod."""

    def __init__(self, context: RunContext, namespace: str, pod: str = "", **env: str) -> None:
        self.prefix = join(context.storage.root_uri, f"sft/{KEY}/")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, context.to_json(), KEY, self.prefix],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "KFP_POD_NAME": pod, "VTHINK_POD_NAMESPACE": namespace, **env},
        )  # fmt: skip
        self.output: list[str] = []
        threading.Thread(target=lambda: self.output.extend(self.process.stdout or ()), daemon=True).start()

    def said(self, text: str) -> None:
        until(lambda: any(text in line for line in self.output))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def launcher_pod(cluster: Cluster, storage: Storage) -> Iterator[Callable[..., LauncherPod]]:
    started: list[LauncherPod] = []

    def start(pod: str = "") -> LauncherPod:
        started.append(LauncherPod(context_of(storage), cluster.namespace, pod))
        return started[-1]

    yield start
    for pod in started:
        if pod.process.poll() is None:
            pod.process.kill()


def test_a_launcher_that_is_killed_finds_its_job_again(
    launcher_pod: Callable[..., LauncherPod], hand: Hand, storage: Storage
) -> None:
    first = launcher_pod()
    job = hand.job()
    first.said("admitted")
    first.end(signal.SIGKILL)
    second = launcher_pod()
    second.said("adopted the TrainJob")
    Manifest(stage="sft", fingerprint=KEY, uri=second.prefix).write(storage)
    hand.finish(job)
    assert second.process.wait(60) == 0
    second.said("RESULT")
    assert len(hand.jobs()) == 1


def test_eviction_leaves_the_job_and_cancelling_the_run_deletes_it(
    launcher_pod: Callable[..., LauncherPod], hand: Hand, cluster: Cluster
) -> None:
    workflow = hand.workflow("run-1")
    evicted = launcher_pod("run-1-launcher")
    job = hand.job()
    owner = job["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Workflow", "run-1", workflow["metadata"]["uid"])
    evicted.said("admitted")
    assert evicted.end(signal.SIGTERM) == 143
    evicted.said("the TrainJob " + job["metadata"]["name"] + " goes on")
    assert hand.jobs()
    # The same, after what Kubeflow Pipelines does to end a run.
    cancelled = launcher_pod("run-1-launcher")
    cancelled.said("adopted")
    cancelled.said("admitted")
    cluster.update(WORKFLOW, "run-1", lambda found: {**found, "spec": {"activeDeadlineSeconds": 0}})
    assert cancelled.end(signal.SIGTERM) == 143
    cancelled.said("the run was cancelled: deleted the TrainJob")
    assert hand.jobs() == []


def test_a_deleted_run_takes_its_job_along(
    launcher_pod: Callable[..., LauncherPod], hand: Hand, cluster: Cluster
) -> None:
    hand.workflow("run-2")
    running = launcher_pod("run-2-launcher")
    hand.job()
    running.said("admitted")
    cluster.delete(WORKFLOW, "run-2")
    until(lambda: hand.jobs() == [])
    running.said("was deleted")


def test_an_owner_in_another_namespace_is_left_out(
    cluster: Cluster, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.workflow("run-3")
    monkeypatch.setenv("KFP_POD_NAME", "run-3-launcher")
    monkeypatch.setenv("VTHINK_POD_NAMESPACE", cluster.namespace)
    found = owner_module.Owner.find(cluster)
    assert found is not None
    assert found.reference["name"] == "run-3"
    monkeypatch.setenv("VTHINK_POD_NAMESPACE", "another")
    assert owner_module.Owner.find(cluster) is None


def test_conditions_are_read_as_the_api_writes_them(hand: Hand, launcher: Callable[..., Launcher]) -> None:
    launcher()
    job = hand.job()
    hand.condition(TRAIN_JOB, job["metadata"]["name"], "Complete", "False")
    found = hand.jobs()[0]
    assert condition(found, "Complete")["status"] == "False"
    assert not is_true(found, "Complete")
    assert not is_true(found, "Failed")
