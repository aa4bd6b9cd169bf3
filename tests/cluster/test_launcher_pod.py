"""A launcher in a process of its own, as in its pod, that is killed, evicted or cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.kubernetes.backend import workflow_of_this_pod
from vthink.components.common.launch.kubernetes.client import WORKFLOW, Cluster
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.tests.cluster.jobs import KEY, context_of, job_of
from vthink.tests.fakes.controllers import Hand, until

PROGRAM = """
import sys
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.kubernetes.backend import KubernetesBackend
from vthink.components.common.launch.kubernetes.client import Cluster
job = TrainingJob.load(sys.argv[1])
KubernetesBackend(Cluster.connect(), tick_s=1.0).train(job, lambda line: print(line, flush=True))
print("RESULT", flush=True)
"""


class LauncherPod:
    """A launcher in a process of its own, as in its pod."""

    def __init__(self, context: RunContext, namespace: str, pod: str = "", **env: str) -> None:
        job = job_of(context)
        self.prefix = job.prefix
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, job.to_json()],
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
    found = workflow_of_this_pod(cluster)
    assert found is not None
    assert found["name"] == "run-3"
    monkeypatch.setenv("VTHINK_POD_NAMESPACE", "another")
    assert workflow_of_this_pod(cluster) is None
