"""``vthink compile`` and ``vthink submit``: the same pipeline for Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overrides, Preset, load


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(name="compile", epilog="Example: vthink compile --output vthink.yaml")(compile_pipeline)
    app.command(epilog="Example: vthink submit --host https://kubeflow.example.org --preset video_r1_7b")(submit)


EvaluationGpus = Annotated[int, typer.Option("--evaluation-gpus", min=0, help="GPUs of the evaluation task.")]


def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("vthink.yaml"),
    evaluation_gpus: EvaluationGpus = 1,
) -> None:
    """Write the pipeline as KFP's IR YAML, which the Kubeflow Pipelines page takes as an upload."""
    from ..pipeline import compile_to

    print(compile_to(output, evaluation_gpus))


def submit(
    host: Annotated[str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines.")],
    preset: Preset = "video_r1_7b",
    overrides: Overrides = None,
    namespace: Annotated[str, typer.Option(help="The team's namespace.")] = "kubeflow",
    token: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token; default: the pod's own.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="KFP experiment; default: that of the configuration.")] = None,
    evaluation_gpus: EvaluationGpus = 1,
) -> None:
    """Start a run on Kubeflow Pipelines, and print its address."""
    from ..submit import submit as start

    run = start(load(preset, overrides), host, namespace, token, experiment, evaluation_gpus)
    print(run.url)
