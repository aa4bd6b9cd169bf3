"""``vthink compile``: the pipeline as a file for the Kubeflow Pipelines page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .settings import Overrides, load

EvaluationGpus = Annotated[int, typer.Option("--evaluation-gpus", min=0, help="GPUs of the evaluation task.")]


def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("vthink.yaml"),
    preset: Annotated[
        str | None,
        typer.Option("--preset", "--config", "-c", metavar="NAME|FILE", help="Settings to write in as defaults."),
    ] = None,
    overrides: Overrides = None,
    evaluation_gpus: EvaluationGpus = 1,
) -> None:
    """Write the pipeline as KFP's IR YAML, which the Kubeflow Pipelines page takes as an upload.

    With --preset the page's form for a new run is filled in; without, it asks for each stage's settings as JSON.
    """
    from ..pipeline import compile_to

    config = load(preset, overrides) if preset else None
    print(compile_to(output, config, evaluation_gpus))
