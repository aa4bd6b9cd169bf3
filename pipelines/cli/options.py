"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from ...components.common.config import STAGES, Stage
from ...components.evaluation.rules import nearest

WORKSPACE = Path(".vthink")
REFUSED = 3  # exit code of a run or gate that refuses the model: all stages worked, what is in service stays


def stage_named(name: str) -> Stage:
    """The stage of that name."""
    for stage in STAGES:
        if name == stage:
            return stage
    raise BadParameter(f"no stage '{name}'; {nearest(name, STAGES)}")


_PRESET = Option(
    "--preset", "--config", "-c", metavar="NAME|FILE",
    help="A preset (vthink config presets), or a YAML file; a file may say 'extends: laptop'.",
)  # fmt: skip
Preset = Annotated[str, _PRESET]
OptionalPreset = Annotated[str | None, _PRESET]
_SET = Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. grpo.learning_rate=5e-6. Repeatable.")
Overrides = Annotated[list[str] | None, _SET]
Folder = Annotated[Path, Option("--workspace", metavar="DIR", help="Where this machine's runs keep everything.")]
_FROM = Option("--from", metavar="STAGE", parser=stage_named, help="Redo this stage and everything after it.")
Restart = Annotated[Stage | None, _FROM]
DATA_HELP = "A prepared set (its manifest or prefix), or rows to prepare first; default: the rows of data.source."
Data = Annotated[str | None, Option("--data", metavar="URI|PATH", help=DATA_HELP)]
_POLICY = "What training left (its manifest or prefix); default: the base model."
Policy = Annotated[str | None, Option(metavar="URI|PATH", help=_POLICY)]

_HOST_HELP = "Address of Kubeflow Pipelines; of a whole Kubeflow: https://…/pipeline."
_HOST = Option(envvar="KF_PIPELINES_ENDPOINT", help=_HOST_HELP)
Host = Annotated[str, _HOST]
OptionalHost = Annotated[str | None, _HOST]
Namespace = Annotated[str, Option(envvar="KF_PIPELINES_NAMESPACE", help="The team's namespace.")]
_TOKEN = Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token; default: a service account's, or OIDC's.")
Token = Annotated[str | None, _TOKEN]
RunName = Annotated[str, Argument(metavar="RUN", help="A run's id or name.")]
Wait = Annotated[bool, Option("--wait", help="Show the stages until the run is over.")]
EvaluationGpus = Annotated[int, Option("--evaluation-gpus", min=0, help="GPUs of the evaluation task.")]
