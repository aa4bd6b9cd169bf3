"""Training as a TrainJob: the test plays Trainer, Kueue and the kubelet, and the training process itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.backend import choose_backend
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.kubernetes import backend
from vthink.components.common.launch.kubernetes.backend import KubernetesBackend
from vthink.components.common.launch.kubernetes.client import POD, TRAIN_JOB, WORKLOAD, Cluster, condition, is_true
from vthink.components.common.launch.process import LaunchError, free_port
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.tests.cluster.jobs import KEY, Object, built, context_of, job_of
from vthink.tests.fakes.admission import kueue_priority
from vthink.tests.fakes.controllers import Hand, until
from vthink.tests.fakes.kubernetes_api import ApiServer


class Launcher:
    """A launcher in a thread, and the training that it waits for."""

    def __init__(self, cluster: Cluster, context: RunContext) -> None:
        self.cluster, self.job = cluster, job_of(context)
        self.storage = Storage(context.storage)
        self.lines: list[str] = []
        self.result: Manifest | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = KubernetesBackend(self.cluster, tick_s=1.0).train(self.job, self.lines.append)
        except BaseException as error:
            self.error = error

    def trained(self) -> Manifest:
        """What the training process does last."""
        made = Manifest(stage="sft", fingerprint=KEY, uri=self.job.prefix)
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
    for pod in pods:  # told once, not for each pod
        hand.event(pod, "FailedScheduling", "0/5 nodes are available: 5 Insufficient nvidia.com/gpu", "Pod")
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
    job = cluster.create(TRAIN_JOB, built(context_of(storage)))
    name = job["metadata"]["name"]
    if state == "suspended":
        hand.suspend(job, True)
    if state == "complete":
        Manifest(stage="sft", fingerprint=KEY, uri=join(storage.config.root_uri, f"sft/{KEY}/")).write(storage)
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
    old = cluster.create(TRAIN_JOB, built(context_of(storage, nodes=2)))
    pod = hand.pod(old)
    # A pod that still writes its last checkpoint: nothing owns it, so that only the test ends it.
    hand.cluster.update(POD, pod, lambda found: {**found, "metadata": {**found["metadata"], "ownerReferences": []}})
    running = launcher(cluster={"nodes": 1})
    running.said("was made for other nodes or settings")
    until(lambda: hand.cluster.get(TRAIN_JOB, old["metadata"]["name"]) is None)
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
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
parser = argparse.ArgumentParser()
parser.add_argument("--job")
job = TrainingJob.read(parser.parse_args().job).on_this_node()
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} in {job.node.work_dir}", flush=True)
Manifest(stage=job.stage, fingerprint=job.fingerprint, uri=job.prefix).write(Storage(job.run.storage))
"""


@pytest.mark.slow
def test_what_the_object_says_is_what_a_kubelet_can_run(
    cluster: Cluster, hand: Hand, trouble: ApiServer, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny_worker.py").write_text(WORKER)
    place = {"namespace": cluster.namespace}  # which a kubeconfig need not name
    context = context_of(
        storage, nodes=1, cluster={**place, "accelerator": None, "work_dir": str(tmp_path / "scratch")}
    )
    context = context.model_copy(update={"launch": context.launch.model_copy(update={"processes": 1})})
    lines: list[str] = []
    results: list[Manifest] = []

    def launch() -> None:  # by the front door: the cluster is found through KUBECONFIG
        results.append(choose_backend(context.launch).train(job_of(context, worker="tiny_worker"), lines.append))

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
        r"ran out of memory \(OOMKilled, limit \d+Gi\); raise launch\.cluster",
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
    hand.event(job["metadata"]["name"] + "-node-0", "FailedCreate", quota_refusal("64Gi", "0", "32Gi"), "Job")
    assert "exceeded quota: team" in running.failure()
    assert hand.jobs() == []


def quota_refusal(requested: str, used: str, limited: str) -> str:
    amounts = zip(("requested", "used", "limited"), (requested, used, limited), strict=True)
    text = ", ".join(f"{word}: requests.memory={amount}" for word, amount in amounts)
    return f'pods "x" is forbidden: exceeded quota: team, {text}'


def test_a_quota_that_is_used_up_is_waited_for(launcher: Callable[..., Launcher], hand: Hand) -> None:
    running = launcher()
    job = hand.job()
    for number in range(3):  # JobSet tries again and again
        refusal = quota_refusal("64Gi", "96Gi", "128Gi").replace('"x"', f'"x-{number}"')
        hand.event(job["metadata"]["name"] + "-node-0", "FailedCreate", refusal, "Job")
    running.said("FailedCreate")
    running.trained()
    hand.finish(job)
    running.ended()
    assert sum("FailedCreate" in line for line in running.lines) == 1


def test_a_quota_of_jobs_is_waited_for_and_says_what_to_do(
    launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_QUOTA_S", 0.2)
    other = hand.cluster.create(TRAIN_JOB, built(context_of(storage), "grpo"))
    trouble.quotas["trainjobs.trainer.kubeflow.org"] = 1
    running = launcher()
    line = running.said("waits for the quota")
    assert "exceeded quota: vthink" in line
    assert "lacks the right" not in line
    hand.cluster.delete(TRAIN_JOB, other["metadata"]["name"])
    job = hand.job()
    running.trained()
    hand.finish(job)
    running.ended()


def test_a_webhooks_refusal_is_not_taken_for_a_missing_right(
    launcher: Callable[..., Launcher], trouble: ApiServer
) -> None:
    message = launcher(cluster={"runtime": "no-such-runtime"}).failure()
    assert 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request' in message
    assert "specified clusterTrainingRuntime must be created" in message
    assert "lacks the right" not in message
    trouble.rules = []
    assert "lacks the right (k8s/team grants it)" in launcher().failure()  # the control


def test_a_queued_job_is_suspended_by_kueue_and_below_a_high_one(
    launcher: Callable[..., Launcher], hand: Hand, cluster: Cluster, storage: Storage
) -> None:
    running = launcher()
    job = hand.job(admitted=False)
    assert job["spec"]["suspend"] is True
    hand.workload(job, QuotaReserved=("False", "Pending", "wait"))
    running.said("queued in 'gpu': wait")
    (workload,) = hand.cluster.find(WORKLOAD)
    high = built(context_of(storage, cluster={"priority": "vthink-high"}))
    assert workload["spec"]["priority"] < kueue_priority(high)
    unnamed = built(context_of(storage, cluster={"priority": None}))
    assert kueue_priority(unnamed) < kueue_priority(built(context_of(storage, cluster={"priority": "vthink-low"})))
    hand.suspend(job, False)
    running.trained()
    hand.finish(job)
    running.ended()


def test_a_watcher_asks_for_events_seldom_and_once_for_all_pods(
    launcher: Callable[..., Launcher], hand: Hand, trouble: ApiServer
) -> None:
    running = launcher()
    job = hand.job()
    pods = [hand.pod(job, index) for index in range(2)]
    running.said("running on 2 nodes")
    trouble.requests.clear()
    for pod in pods:
        for number in range(3):
            hand.set_status(POD, pod, {"podIP": f"10.0.0.{number}"})
            hand.condition(TRAIN_JOB, job["metadata"]["name"], "Touched", "True", f"R{number}")
            time.sleep(0.1)
    assert sum("/events" in path and method == "GET" for method, path in trouble.requests) <= 1
    running.trained()
    hand.finish(job)
    running.ended()


def test_in_another_namespace_stores_get_their_full_names_and_nothing_stays(
    launcher: Callable[..., Launcher], hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "own_namespace", lambda: "team")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    running = launcher()
    job = hand.job()
    env = {entry["name"]: entry.get("value") for entry in job["spec"]["trainer"]["env"]}
    assert env["MLFLOW_TRACKING_URI"] == "http://mlflow.team:5000"
    written = TrainingJob.load(running.storage.read_json(running.job.uri))
    assert written.run.tracking.uri == "http://mlflow.team:5000"
    assert written.run.storage.endpoint_url == running.job.run.storage.endpoint_url  # an address needs no name
    running.trained()
    hand.finish(job)
    running.ended()
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
    trouble.rules = []
    assert "403 trainjobs.trainer.kubeflow.org is forbidden: User" in launcher().failure()


def test_conditions_are_read_as_the_api_writes_them(hand: Hand, launcher: Callable[..., Launcher]) -> None:
    launcher()
    job = hand.job()
    hand.condition(TRAIN_JOB, job["metadata"]["name"], "Complete", "False")
    found = hand.jobs()[0]
    assert condition(found, "Complete")["status"] == "False"
    assert not is_true(found, "Complete")
    assert not is_true(found, "Failed")
