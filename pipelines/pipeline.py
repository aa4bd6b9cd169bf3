"""The DAG: plan → prepare (a task per shard) → merge → SFT → GRPO → evaluate → gate → register → deploy.

The same graph runs on Kubeflow Pipelines and, unchanged, under ``kfp.local`` (`run/`). Three rules keep it so:
conditions look at one string output or a boolean parameter (see `common.compat.kfp`), branches join on URI strings, and
KFP's cache is off, because every stage recognises its own finished work by its fingerprint.

On a cluster two tasks more stand around it, which record the run in MLflow as `vthink run` does here, and every task
gets what pods need there: an identity that is not root, the store's keys, its pool. The names of those objects are
those of the manifests in ``k8s/``.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl, kubernetes

from ..components.common.config import Stage
from ..components.common.context import RunContext
from ..components.common.launch.config import LaunchConfig, Placement
from ..components.data_prep import component as data_stage
from ..components.deployment import component as deployment_stage
from ..components.deployment.config import KServeConfig
from ..components.evaluation import component as evaluation_stage
from ..components.grpo import component as grpo_stage
from ..components.sft import component as sft_stage
from .config import Config
from .form import SECTIONS, shown

CONTROL_IMAGE = os.environ.get("VTHINK_IMAGE_CONTROL", "ghcr.io/vthink/vthink-control-python:0.1.0")
ACCELERATOR = "nvidia.com/gpu"  # Kubernetes resource that evaluation asks for
SHARDS_AT_ONCE = 16  # how many shards are prepared at the same time on a cluster (kfp.local runs two)
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys of the Secret ``launch.cluster.s3_secret``; pods do without where the platform gives them an identity."""
ENDPOINT_KEY = {"VLLM_API_KEY": "VTHINK_API_KEY"}
"""Key of the Secret ``deployment.kserve.api_key_secret``, and the variable in which the deployer looks for it."""
ENVIRONMENT, VARIABLES = "vthink-env", ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI")
"""ConfigMap with what is not secret."""
KEPT_S = 7 * 24 * 3600
"""How long a run's Workflow is kept, and with it the TrainJobs that it owns: a failed one's logs are read later."""
USER = 1000  # user and group of the images
RESOURCES: dict[str, tuple[str, str, str]] = {
    "control": ("200m", "512Mi", "2Gi"),
    "data": ("4", "8Gi", "16Gi"),
    "evaluate": ("8", "32Gi", "64Gi"),
    "serve": ("1", "2Gi", "8Gi"),
}
"""By image: CPUs asked for, memory asked for, most memory. Our choice; the namespace's quota must hold them."""
IR_FILE = Path(__file__).with_name("vthink.yaml")
"""The compiled pipeline in the repository; a test holds it equal to this file."""


@dsl.component(base_image=CONTROL_IMAGE, install_kfp_package=False)
def skip() -> str:
    """Stand in for a training stage that the configuration leaves out: its model's URI is empty."""
    return ""


@dsl.component(base_image=CONTROL_IMAGE, install_kfp_package=False)
def keep(model: str) -> str:
    """Pass a model's URI on: without GRPO the candidate is the model of SFT."""
    return model


@dsl.component(base_image=CONTROL_IMAGE, install_kfp_package=False)
def refuse(run: str, evaluation: str) -> str:
    """Say why the gate refused the model, where a person who looks at the run's graph sees it."""
    from vthink.components.common.context import RunContext
    from vthink.components.common.storage.s3 import Storage
    from vthink.components.evaluation.gate import read_gate

    context = RunContext.load(run, "run")
    verdict = read_gate(Storage(context.storage), context, evaluation)
    return "\n".join(verdict.details["lines"])


@dsl.component(base_image=CONTROL_IMAGE, install_kfp_package=False)
def begin(
    run: str, config: str, model: str, video: str, data: str, sft: str, grpo: str, evaluation: str, deployment: str,
    preset: str, rows: str, base_model: str, sft_steps: int, grpo_steps: int, training_pool: str,
    train_sft: bool, train_grpo: bool,
) -> NamedTuple(  # type: ignore[valid-type]
    "Begun",
    [("run", str), ("model", str), ("video", str), ("data", str), ("sft", str), ("grpo", str), ("evaluation", str),
     ("deployment", str)],
):  # fmt: skip
    """Lay what was filled into KFP's form on the settings, and begin the pipeline's run in MLflow: the run's context
    with it, and the sections."""
    from vthink.components.common.tracking.pipeline import begin_pipeline
    from vthink.pipelines.form import fill_in

    sections = {"model": model, "video": video, "data": data, "sft": sft, "grpo": grpo}
    sections |= {"evaluation": evaluation, "deployment": deployment}
    fields: dict[str, str | int | bool] = {"preset": preset, "rows": rows, "base_model": base_model}
    fields |= {"sft_steps": sft_steps, "grpo_steps": grpo_steps, "training_pool": training_pool}
    fields |= {"train_sft": train_sft, "train_grpo": train_grpo}
    filled = fill_in(run, config, sections, fields)
    return (begin_pipeline(filled["run"], filled["config"]), *(filled[name] for name in sections))


@dsl.component(base_image=CONTROL_IMAGE, install_kfp_package=False)
def finish(run: str, status: dsl.PipelineTaskFinalStatus):  # type: ignore[no-untyped-def]
    """Close the pipeline's run in MLflow, however the pipeline ended."""
    from vthink.components.common.tracking.pipeline import finish_pipeline

    finish_pipeline(run, status.state)


def build(
    cluster: LaunchConfig | None = None, evaluation_gpus: int = 1, api_key_secret: str | None = None
) -> Callable[..., Any]:
    """The pipeline as a KFP function.

    Args:
        cluster: compile for a cluster, with these pools; None: for ``kfp.local``, which has no pods.
        api_key_secret: Secret with the key of the served model's endpoint, for the task that tests it.
        evaluation_gpus: accelerators of the evaluation task, fixed when the pipeline is compiled; 0: none. Training
            tasks are launchers and never ask for one: accelerators and deadline belong to the training job."""

    def place(task: Any, name: str, stage: Stage | None = None, image: str = "control") -> dsl.PipelineTask:
        """Name a task for people, turn KFP's cache off, and say what its pod needs."""
        task.set_display_name(name).set_caching_options(enable_caching=False)
        return task if cluster is None else _on_cluster(task, cluster, stage, image)

    keeping = dsl.PipelineConfig(ttl_seconds_after_finished=KEPT_S) if cluster is not None else None

    @dsl.pipeline(
        name="vthink", description="Teach a multimodal LLM to reason over video, and serve it.", pipeline_config=keeping
    )  # fmt: skip
    def vthink(
        run: str, model: str, video: str, data: str, sft: str, grpo: str, evaluation: str, deployment: str,
        config: str = "", train_sft: bool = True, train_grpo: bool = True, preset: str = "", rows: str = "",
        base_model: str = "", sft_steps: int = 0, grpo_steps: int = 0, training_pool: str = "",
    ) -> None:  # fmt: skip
        """Teach a multimodal LLM to reason over video, and serve it.

        Args:
            preset: A preset (vthink config presets) in place of the settings that the pipeline was compiled with; the fields below that are changed still count. Empty: those settings.
            rows: The rows and their videos: s3://bucket/rows.jsonl, hf://datasets/owner/name/file, or 'synthesize' for a generated world. Empty: as in the settings.
            base_model: The model to start from: a name on the hub, or an s3:// prefix. Empty: as in the settings.
            sft_steps: Optimiser steps of SFT; -1: whole epochs (sft.num_epochs). 0: as in the settings.
            grpo_steps: Steps of GRPO. 0: as in the settings.
            training_pool: Pool (Kueue queue or node pool) of the training jobs. Empty: as in the settings.
            train_sft: Whether SFT runs; off for rows without reasoning.
            train_grpo: Whether GRPO runs.
            run: Advanced. Name of the run, store, tracking and launcher, as JSON (RunContext).
            model: Advanced. Section model of the configuration, as JSON (vthink config show model).
            video: Advanced. Section video, as JSON.
            data: Advanced. Section data, as JSON.
            sft: Advanced. Section sft, as JSON.
            grpo: Advanced. Section grpo, as JSON.
            evaluation: Advanced. Section evaluation, with the gate's rules, as JSON.
            deployment: Advanced. Section deployment, as JSON.
            config: Advanced. The whole configuration that the pipeline was compiled with, as JSON: against it changes are seen.
        """  # noqa: E501 (KFP's page shows each description as one text)
        if cluster is not None:
            closing: Any = dsl.ExitHandler(place(finish(run=run), "close the run"), name="pipeline")
            begun = begin(
                run=run, config=config, model=model, video=video, data=data, sft=sft, grpo=grpo, evaluation=evaluation,
                deployment=deployment, preset=preset, rows=rows, base_model=base_model, sft_steps=sft_steps,
                grpo_steps=grpo_steps, training_pool=training_pool, train_sft=train_sft, train_grpo=train_grpo,
            )  # fmt: skip
            told = place(begun, "begin the run").outputs
            run, model, video, data, sft, grpo = (told[name] for name in ("run", *SECTIONS[:5]))
            evaluation, deployment = told["evaluation"], told["deployment"]
        else:
            closing = contextlib.nullcontext()
        with closing:
            plan = place(data_stage.plan_data(run=run, config=data, video=video), "plan data", "prepare", "data")
            with dsl.ParallelFor(plan.output, parallelism=SHARDS_AT_ONCE) as shard:
                part = data_stage.prepare_shard(run=run, config=data, video=video, shard=shard)
                place(part, "prepare shard", "prepare", "data")
            shards = dsl.Collected(part.output)
            merged = data_stage.merge_data(run=run, config=data, video=video, shards=shards)
            prepared = place(merged, "merge data", "prepare", "data").outputs["Output"]

            with dsl.If(train_sft == True, name="sft"):  # noqa: E712 (KFP overloads ==)
                trained = place(sft_stage.sft(run=run, config=sft, model=model, data=prepared), "SFT")
            with dsl.Else(name="no-sft"):
                untrained = place(skip(), "no SFT")
            sft_model = dsl.OneOf(trained.output, untrained.output)

            with dsl.If(train_grpo == True, name="grpo"):  # noqa: E712
                reinforced = grpo_stage.grpo(run=run, config=grpo, model=model, data=prepared, policy=sft_model)
                place(reinforced, "GRPO")
            with dsl.Else(name="no-grpo"):
                unreinforced = place(skip(), "no GRPO")
                kept = place(keep(model=sft_model), "candidate: SFT")
            grpo_model = dsl.OneOf(reinforced.output, unreinforced.output)
            candidate = dsl.OneOf(reinforced.output, kept.output)

            evaluated = evaluation_stage.evaluate(
                run=run, config=evaluation, model=model, data=prepared, sft=sft_model, grpo=grpo_model
            )
            place(evaluated, "evaluate", "evaluate", "evaluate")
            if evaluation_gpus:
                accelerator = cluster.cluster.accelerator if cluster is not None else None
                evaluated.set_accelerator_type(accelerator or ACCELERATOR).set_accelerator_limit(evaluation_gpus)
            result = evaluated.outputs["Output"]
            verdict = place(evaluation_stage.gate(run=run, config=evaluation, evaluation=result), "gate")

            with dsl.If(verdict.output == "pass", name="passed"):
                inputs = {"evaluation": result, "data": prepared}
                registered = deployment_stage.register(run=run, config=deployment, model=candidate, **inputs)
                place(registered, "register")
                deployed = deployment_stage.deploy(run=run, config=deployment, registered=registered.output, **inputs)
                place(deployed, "deploy", image="serve")
                if cluster is not None and api_key_secret is not None:
                    kubernetes.use_secret_as_env(deployed, api_key_secret, ENDPOINT_KEY, optional=True)
            with dsl.Else(name="refused"):
                place(refuse(run=run, evaluation=result), "say why")

    return vthink


def _on_cluster(task: dsl.PipelineTask, launch: LaunchConfig, stage: Stage | None, image: str) -> dsl.PipelineTask:
    """What the pod of a task needs; a stage whose work is done elsewhere (training, serving) has no pool here."""
    cpu, memory, most_memory = RESOURCES[image]
    task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(most_memory)
    # An evicted pod is started again; the stages recognise and resume their work.
    task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    if launch.cluster.s3_secret is not None:
        kubernetes.use_secret_as_env(task, launch.cluster.s3_secret, {name: name for name in S3_KEYS}, optional=True)
    kubernetes.use_config_map_as_env(task, ENVIRONMENT, {name: name for name in VARIABLES}, optional=True)
    kubernetes.use_field_path_as_env(task, "KFP_PIPELINE_RUN_ID", "metadata.labels['pipeline/runid']")
    kubernetes.add_pod_label(task, "sidecar.istio.io/inject", "false")  # its container is not `restricted`
    placement = launch.placement(stage) if stage else Placement()
    for key, value in placement.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in placement.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in placement.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump())
    return task


def for_cluster(config: Config) -> Config:
    """The configuration with what a run on a cluster always does: train in jobs, because the pipeline's own tasks have
    no accelerator, and serve with KServe, unless ``deployment.target`` was set."""
    launch = config.launch.model_copy(update={"backend": "trainjob"})
    deployment = config.deployment
    if "target" not in deployment.model_fields_set:
        deployment = deployment.model_copy(update={"target": "kserve"})
    return config.model_copy(update={"launch": launch, "deployment": deployment})


def arguments(config: Config, context: RunContext) -> dict[str, str | int | bool]:
    """The arguments: the run's context, each stage's section and the whole configuration, as JSON, and what the fields
    of the form show. Each is one line, because KFP's compiler writes defaults into a comment of one line."""
    sections = {"run": context, **{name: getattr(config, name) for name in SECTIONS}, "config": config}
    return {**{name: section.to_json() for name, section in sections.items()}, **shown(config)}


def compile_to(path: str | Path, config: Config | None = None, evaluation_gpus: int = 1) -> Path:
    """Write the pipeline's IR YAML for a cluster, which Kubeflow Pipelines takes as an upload. The pools and cluster of
    ``config`` are compiled in, and its settings are the defaults of a run that is started from KFP's page; None: no
    pools, no defaults."""
    launch, defaults, api_key_secret = LaunchConfig(), {}, KServeConfig().api_key_secret
    if config is not None:
        config = for_cluster(config)
        launch, api_key_secret = config.launch, config.deployment.kserve.api_key_secret
        context = RunContext(run_id=config.name, storage=config.storage, tracking=config.tracking, launch=launch)
        defaults = dict(arguments(config, context))
    pipeline = build(launch, evaluation_gpus, api_key_secret)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=defaults)
    return Path(path)
