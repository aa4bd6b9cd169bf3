"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...components.common.config import STAGES, Stage
from ...components.evaluation.rules import nearest

WORKSPACE = Path(".vthink")
REFUSED = 3
"""Exit code of a run or gate that refuses the model: all stages worked, what is in service stays."""
PRESET_NAMES = ("--preset", "--config", "-c")
_HOST = typer.Option(
    envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines; of a whole Kubeflow: https://…/pipeline."
)


def stage_named(name: str) -> Stage:
    """The stage of that name."""
    for stage in STAGES:
        if name == stage:
            return stage
    raise typer.BadParameter(f"no stage '{name}'; {nearest(name, STAGES)}")


Preset = Annotated[
    str,
    typer.Option(
        *PRESET_NAMES, metavar="NAME|FILE",
        help="A preset (vthink config presets), or a YAML file; a file may say 'extends: laptop'.",
    ),
]  # fmt: skip
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. grpo.learning_rate=5e-6. Repeatable."),
]
Folder = Annotated[Path, typer.Option("--workspace", metavar="DIR", help="Where this machine's runs keep everything.")]
Restart = Annotated[
    Stage | None,
    typer.Option("--from", metavar="STAGE", parser=stage_named, help="Redo this stage and everything after it."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="URI|PATH",
        help="A prepared set (its manifest or prefix), or rows to prepare first; default: the rows of data.source.",
    ),
]  # fmt: skip

Host = Annotated[str, _HOST]
OptionalHost = Annotated[str | None, _HOST]
Namespace = Annotated[str, typer.Option(envvar="KF_PIPELINES_NAMESPACE", help="The team's namespace.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token; default: a service account's, or OIDC's."),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or name.")]
StageArgument = Annotated[
    Stage | None,
    typer.Argument(metavar="STAGE", parser=stage_named, help="Default: the stage that failed, or the one that runs."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Show the stages until the run is over.")]
EvaluationGpus = Annotated[int, typer.Option("--evaluation-gpus", min=0, help="GPUs of the evaluation task.")]
