"""The DAG: plan → prepare (a task per shard) → merge → SFT → GRPO → evaluate → gate → register → deploy.

The same graph runs on Kubeflow Pipelines and, unchanged, under ``kfp.local`` (`run.py`). Three rules keep it so:
conditions look at one string output or a boolean parameter (a condition on a named output is silently false under
kfp.local), branches join on URI strings, and KFP's cache is off, because every stage recognises its own finished
work by its fingerprint.

KFP reads annotations as objects, so there is no ``from __future__ import annotations`` here.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from ..components.common.config import RunContext, Section
from ..components.data_prep import component as data_stage
from ..components.deployment import component as deployment_stage
from ..components.evaluation import component as evaluation_stage
from ..components.grpo import component as grpo_stage
from ..components.sft import component as sft_stage
from .config import Config

CONTROL_IMAGE = os.environ.get("VTHINK_IMAGE_CONTROL", "ghcr.io/vthink/vthink-control-python:0.1.0")
ACCELERATOR = "nvidia.com/gpu"
"""Kubernetes resource that evaluation asks for."""
SHARDS_AT_ONCE = 16
"""How many shards are prepared at the same time on a cluster (kfp.local runs two)."""
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
    from vthink.components.common.config import RunContext
    from vthink.components.common.storage import Storage
    from vthink.components.evaluation.gate import read_gate

    context = RunContext.load(run, "run")
    verdict = read_gate(Storage(context.storage), context, evaluation)
    return "\n".join(verdict.details["lines"])


def build(evaluation_gpus: int = 1) -> Callable[..., Any]:
    """The pipeline as a KFP function.

    Args:
        evaluation_gpus: accelerators of the evaluation task, fixed when the pipeline is compiled; 0: none. Training
            tasks are launchers and never ask for one: accelerators and deadline belong to the training job.
    """

    @dsl.pipeline(name="vthink", description="Teach a multimodal LLM to reason over video, and serve it.")
    def vthink(
        run: str,
        model: str,
        video: str,
        data: str,
        sft: str,
        grpo: str,
        evaluation: str,
        deployment: str,
        train_sft: bool = True,
        train_grpo: bool = True,
    ) -> None:
        plan = _task(data_stage.plan_data(run=run, config=data, video=video), "plan data")
        with dsl.ParallelFor(plan.output, parallelism=SHARDS_AT_ONCE) as shard:
            part = data_stage.prepare_shard(run=run, config=data, video=video, shard=shard)
            _task(part, "prepare shard")
        shards = dsl.Collected(part.output)
        merged = _task(data_stage.merge_data(run=run, config=data, video=video, shards=shards), "merge data")
        prepared = merged.outputs["Output"]

        with dsl.If(train_sft == True, name="sft"):  # noqa: E712 (KFP overloads ==)
            trained = _task(sft_stage.sft(run=run, config=sft, model=model, data=prepared), "SFT")
        with dsl.Else(name="no-sft"):
            untrained = _task(skip(), "no SFT")
        sft_model = dsl.OneOf(trained.output, untrained.output)

        with dsl.If(train_grpo == True, name="grpo"):  # noqa: E712
            reinforced = _task(
                grpo_stage.grpo(run=run, config=grpo, model=model, data=prepared, policy=sft_model), "GRPO"
            )
        with dsl.Else(name="no-grpo"):
            unreinforced = _task(skip(), "no GRPO")
            kept = _task(keep(model=sft_model), "candidate: SFT")
        grpo_model = dsl.OneOf(reinforced.output, unreinforced.output)
        candidate = dsl.OneOf(reinforced.output, kept.output)

        evaluated = _task(
            evaluation_stage.evaluate(
                run=run, config=evaluation, model=model, data=prepared, sft=sft_model, grpo=grpo_model
            ),
            "evaluate",
        )
        if evaluation_gpus:
            evaluated.set_accelerator_type(ACCELERATOR).set_accelerator_limit(evaluation_gpus)
        result = evaluated.outputs["Output"]
        verdict = _task(evaluation_stage.gate(run=run, config=evaluation, evaluation=result), "gate")

        with dsl.If(verdict.output == "pass", name="passed"):
            inputs = {"evaluation": result, "data": prepared}
            registered = _task(
                deployment_stage.register(run=run, config=deployment, model=candidate, **inputs), "register"
            )
            _task(deployment_stage.deploy(run=run, config=deployment, registered=registered.output, **inputs), "deploy")
        with dsl.Else(name="refused"):
            _task(refuse(run=run, evaluation=result), "say why")

    return vthink


def _task(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """Name a task for people and turn KFP's cache off."""
    return task.set_display_name(name).set_caching_options(enable_caching=False)


def arguments(config: Config, context: RunContext) -> dict[str, str | bool]:
    """The pipeline's arguments: the run's context and each stage's section, as JSON."""
    sections: dict[str, Section] = {
        "run": context,
        "model": config.model,
        "video": config.video,
        "data": config.data,
        "sft": config.sft,
        "grpo": config.grpo,
        "evaluation": config.evaluation,
        "deployment": config.deployment,
    }
    enabled = {"train_sft": config.sft.enabled, "train_grpo": config.grpo.enabled}
    return {**{name: section.to_json() for name, section in sections.items()}, **enabled}


def compile_to(path: str | Path, evaluation_gpus: int = 1) -> Path:
    """Write the pipeline's IR YAML, which Kubeflow Pipelines takes as an upload."""
    compiler.Compiler().compile(build(evaluation_gpus), str(path))
    return Path(path)
