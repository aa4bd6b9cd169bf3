"""The TrainJob of a training job: valid to the letter, in its place, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.launch.job import TrainingJob
from vthink.components.common.launch.kubernetes import trainjob
from vthink.components.common.storage.s3 import Storage
from vthink.tests.cluster import validation
from vthink.tests.cluster.jobs import Object, built, context_of, job_of

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
    job = job_of(context, "grpo", model={"name": "Qwen/Qwen2.5-VL-7B-Instruct"})
    body = trainjob.train_job(job, 1)
    assert validation.validate(body) == []
    assert body["spec"]["runtimeRef"]["name"] == "vthink-torch-vllm"
    jobs = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    server = jobs[1]["template"]["spec"]["template"]["spec"]
    assert server["containers"][0]["env"][0]["value"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert server["nodeSelector"] == {"vthink.dev/pool": "gpu-spot"}
    name = body["metadata"]["name"]
    env = {entry["name"]: entry.get("value") for entry in body["spec"]["trainer"]["env"]}
    assert env["VTHINK_ROLLOUT_URL"] == f"http://{name}-vllm-0-0.{name}:8000"
    assert built(context, "sft")["spec"]["runtimeRef"]["name"] == "vthink-torch"


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
    name = trainjob.job_name(job_of(first))
    assert name == trainjob.job_name(TrainingJob.load(job_of(resized).to_json()))
    others = {
        trainjob.job_name(job_of(first, "grpo")),
        trainjob.job_name(job_of(first, data="s3://b/other/manifest.json")),
        trainjob.job_name(job_of(first.model_copy(update={"run_id": "another"}))),
        trainjob.job_name(job_of(first.model_copy(update={"redo": {"sft": 1}}))),
    }
    assert len(others | {name}) == 5
    for run_id in ("0815", "_", "-" * 50, "Ünïcode/../x", "a" * 200):
        hostile = trainjob.job_name(job_of(first.model_copy(update={"run_id": run_id}), "evaluate"))
        assert validation._LABEL.fullmatch(hostile), hostile
