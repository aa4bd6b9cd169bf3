from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from vthink.components.common.config import STAGES
from vthink.components.common.context import RunContext
from vthink.pipelines import pipeline
from vthink.pipelines.config import load, presets
from vthink.pipelines.run.progress import LAST_TASK, STAGE_OF_TASK

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TRAINING = ("exec-sft", "exec-grpo")
LAUNCHERS = {"skip", "keep", "begin", "finish"}
"""Tasks that only steer the graph, or record the run, and belong to no stage."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> str:
    return pipeline.compile_to(tmp_path_factory.mktemp("ir") / "vthink.yaml").read_text("utf-8")


@pytest.fixture(scope="module")
def spec(compiled) -> dict[str, Any]:
    return next(yaml.load_all(compiled, LOADER))


@pytest.fixture(scope="module")
def pods(compiled) -> dict[str, Any]:
    """What the platform part says about each executor's pod."""
    return platform(compiled)


def platform(compiled: str) -> dict[str, Any]:
    _, platforms = yaml.load_all(compiled, LOADER)
    return platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def dags(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec["root"]["dag"]
    for component in spec["components"].values():
        if "dag" in component:
            yield component["dag"]


def tasks(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for dag in dags(spec):
        yield from dag["tasks"].items()


def runs_code(spec: dict[str, Any], task: dict[str, Any]) -> bool:
    return "executorLabel" in spec["components"][task["componentRef"]["name"]]


def test_the_committed_pipeline_is_the_compiled_one(compiled):
    assert pipeline.IR_FILE.read_text("utf-8") == compiled, "run `make ir`"


def test_kfp_caches_no_task(spec):
    cached = [name for name, task in tasks(spec) if runs_code(spec, task) and task["cachingOptions"]]
    assert cached == []


def test_a_task_that_may_be_cached_would_be_noticed(spec):
    _, task = next((name, task) for name, task in tasks(spec) if runs_code(spec, task))
    assert not {**task, "cachingOptions": {}}["cachingOptions"]
    assert {**task, "cachingOptions": {"enableCache": True}}["cachingOptions"]


def test_training_tasks_are_launchers_and_only_evaluation_asks_for_a_gpu(spec):
    executors = spec["deploymentSpec"]["executors"]
    accelerated = {
        name: executor["container"]["resources"]["accelerator"]
        for name, executor in executors.items()
        if "accelerator" in executor["container"].get("resources", {})
    }
    assert set(accelerated) == {"exec-evaluate"}
    assert accelerated["exec-evaluate"]["resourceCount"] == "1"
    assert "timeout" not in yaml.dump([executors[name] for name in TRAINING]).lower()


def test_the_gpu_can_be_left_out(tmp_path):
    text = pipeline.compile_to(tmp_path / "cpu.yaml", evaluation_gpus=0).read_text("utf-8")
    assert "accelerator" not in text


def test_every_pod_is_not_root_finds_the_store_and_is_started_again_when_it_is_evicted(spec, pods):
    executors = spec["deploymentSpec"]["executors"]
    assert set(pods) == set(executors)
    for name, pod in pods.items():
        assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}, name
        secrets = [("vthink-s3", True)] + [("vthink-api-keys", True)] * (name == "exec-deploy")
        assert [(secret["secretName"], secret["optional"]) for secret in pod["secretAsEnv"]] == secrets, name
        assert {pair["envVar"] for pair in pod["configMapAsEnv"][0]["keyToEnv"]} >= {"MLFLOW_TRACKING_URI"}
        assert pod["fieldPathAsEnv"][0]["fieldPath"] == "metadata.labels['pipeline/runid']"
        resources = executors[name]["container"]["resources"]
        assert resources["resourceCpuRequest"], name
        assert resources["resourceMemoryLimit"], name
    for name, task in tasks(spec):
        assert ("retryPolicy" in task) == runs_code(spec, task), name


def test_a_run_on_a_cluster_trains_in_jobs_and_serves_with_kserve_unless_told_otherwise(tmp_path):
    path = pipeline.compile_to(tmp_path / "x.yaml", load("laptop"))
    parameters = next(yaml.load_all(path.read_text("utf-8"), LOADER))["root"]["inputDefinitions"]["parameters"]
    defaults = {name: json.loads(parameters[name]["defaultValue"]) for name in ("run", "deployment")}
    assert defaults["run"]["launch"]["backend"] == "trainjob"
    assert defaults["deployment"]["target"] == "kserve"
    assert pipeline.for_cluster(load("laptop", ["deployment.target=local"])).deployment.target == "local"


def test_what_is_compiled_is_exactly_what_kfp_s_definitions_allow(spec, pods):
    from google.protobuf import json_format
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

    json_format.ParseDict(spec, PipelineSpec())
    for pod in pods.values():
        json_format.ParseDict(pod, KubernetesExecutorConfig())
    name, pod = next(iter(pods.items()))
    for wrong in ({"securityContxt": {}}, {"securityContext": {"runAsUser": "root"}}, {"nodeSelector": {"label": {}}}):
        with pytest.raises(json_format.ParseError):
            json_format.ParseDict({**pod, **wrong}, KubernetesExecutorConfig())
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({**spec, "root": {"dags": {}}}, PipelineSpec())
    assert name.startswith("exec-")


def test_a_stage_s_pool_becomes_its_queue_or_its_nodes_and_touches_no_other_stage(tmp_path):
    def placed(*settings: str) -> dict[str, dict[str, Any]]:
        config = load("laptop", ["launch.pool={prepare: cpu, sft: gpu-spot, evaluate: gpu}", *settings])
        pods = platform(pipeline.compile_to(tmp_path / "pools.yaml", config).read_text("utf-8"))
        keys = ("podMetadata", "nodeSelector", "tolerations")
        return {name: where for name, pod in pods.items() if (where := {key: pod[key] for key in keys if key in pod})}

    bare = {"sidecar.istio.io/inject": "false"}  # of every step
    queued = bare | {"kueue.x-k8s.io/queue-name": "gpu", "kueue.x-k8s.io/priority-class": "vthink-normal"}
    by_queue = placed()
    assert by_queue["exec-evaluate"] == {"podMetadata": {"labels": queued}}
    # SFT's accelerators are its training job's, and the launcher needs none.
    assert {name for name, where in by_queue.items() if where != {"podMetadata": {"labels": bare}}} == {
        "exec-evaluate",
        "exec-plan-data",
        "exec-prepare-shard",
        "exec-merge-data",
    }
    nodes = placed("launch.cluster.queues=false")["exec-evaluate"]
    assert nodes["nodeSelector"]["labels"] == {"vthink.dev/pool": "gpu"}
    assert [toleration["key"] for toleration in nodes["tolerations"]] == ["vthink.dev/pool", "nvidia.com/gpu"]
    assert nodes["podMetadata"] == {"labels": bare}


def test_conditions_look_at_one_output_or_a_boolean_only(spec):
    conditions = [
        task["triggerPolicy"]["condition"]
        for _, task in tasks(spec)
        if "condition" in task.get("triggerPolicy", {}) and "componentRef" in task
    ]
    assert len(conditions) == 6
    for condition in conditions:
        # kfp.local resolves `…-Output` and parameters; another named output would be silently false.
        assert (
            "gate-Output'] == 'pass'" in condition
            or "train_sft'] == true" in condition.lower()
            or ("train_grpo'] == true" in condition.lower())
        ), condition


def test_every_task_belongs_to_a_stage_so_that_its_log_and_progress_have_a_place(spec):
    names = {name.removeprefix("exec-") for name in spec["deploymentSpec"]["executors"]}
    steering = {name for name in names if name.split("-")[0] in LAUNCHERS}
    assert names - steering == set(STAGE_OF_TASK)
    assert set(STAGE_OF_TASK.values()) == set(STAGES)
    assert set(LAST_TASK.values()) <= set(STAGE_OF_TASK)


def test_no_task_installs_packages_and_every_image_is_a_python_image(spec):
    for name, executor in spec["deploymentSpec"]["executors"].items():
        assert "pip install" not in " ".join(executor["container"]["command"]), name
        assert "-python:" in executor["container"]["image"], name


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_gives_the_arguments_that_the_pipeline_takes(name, spec):
    config = load(name)
    given = pipeline.arguments(config, RunContext(run_id="r", storage=config.storage))
    assert set(given) == set(spec["root"]["inputDefinitions"]["parameters"])
    assert given["train_sft"] is (name != "zero")
    assert given["train_grpo"] is True


BLOCKED = ("torch", "torchvision", "transformers", "trl", "deepspeed", "peft", "accelerate", "datasets", "decord", "av")
IMPORTS = """
import sys
for name in {blocked}:
    sys.modules[name] = None  # an import of it raises
import {modules}
"""
TORCH_FREE = [
    "vthink.pipelines.pipeline",
    "vthink.pipelines.run.execute",
    "vthink.pipelines.kfp_client.submit",
    "vthink.pipelines.cli.main",
    *(
        f"vthink.components.{stage}.{module}"
        for stage in ("data_prep", "sft", "grpo", "evaluation", "deployment")
        for module in ("component", "config")
    ),
    *(
        f"vthink.components.common.{module}"
        for module in (
            "config",
            "context",
            "launch.kubernetes.backend",
            "launch.backend",
            "launch.workspace",
            "model.prompts",
            "storage.manifest",
            "tracking.pipeline",
            "tracking.server",
        )
    ),
]


def imported(modules: list[str]) -> subprocess.CompletedProcess[str]:
    code = IMPORTS.format(blocked=BLOCKED, modules=", ".join(modules))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_dag_its_components_and_what_launches_them_import_without_torch():
    done = imported(TORCH_FREE)
    assert done.returncode == 0, done.stderr


def test_a_module_that_needs_torch_would_be_noticed():
    assert "torch" in imported(["vthink.components.common.model.load"]).stderr
