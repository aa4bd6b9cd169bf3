"""``summary.json``: what a run came to, for people and programs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ...components.common.config import Stage
from ...components.common.errors import UserError
from .execute import Outcome
from .progress import Status
from .session import Session
from .state import write_atomically

_FILE = "summary.json"


class GateSummary(BaseModel):
    """The gate's verdict, and a line per rule, with its numbers."""

    verdict: Literal["pass", "fail"]
    lines: list[str]

    @property
    def passed(self) -> bool:
        """Whether the model may be deployed."""
        return self.verdict == "pass"


class ModelSummary(BaseModel):
    """The registered model version: ``champion`` once it is in service, ``candidate`` before; its files' prefix."""

    name: str
    version: int
    alias: str
    source: str


class Segment(BaseModel, extra="allow"):
    """A span of the video that the answer rests on."""

    start_s: float
    end_s: float
    caption: str | None


class QuestionSummary(BaseModel, extra="allow"):
    """A held-out question that the served model was asked, with its answer."""

    question: str
    options: list[str]
    media_uri: str
    truth: str | None
    answer: str | None
    segments: list[Segment]


class StageSummary(BaseModel):
    """How a stage ended, its wall time in this run, and what its output took to make in whichever run that was."""

    status: Status
    seconds: float
    work_seconds: float | None


class MLflowSummary(BaseModel):
    """Where the run is recorded."""

    uri: str | None
    experiment: str
    parent_run_id: str
    run_ids: dict[Stage, str | None]


class RunSummary(BaseModel):
    """What a run came to; ``models``, ``candidate`` and ``comparisons`` as in the evaluation's ``result.json``."""

    run_id: str
    config: str
    """Name of the configuration."""
    created: datetime
    models: dict[str, Any]
    candidate: str
    comparisons: Any
    gate: GateSummary
    model: ModelSummary | None
    """None: the gate refused it."""
    question: QuestionSummary | None
    report: str
    """URI of the evaluation's HTML report."""
    prefixes: dict[Stage, str]
    """Where each stage's output is."""
    mlflow: MLflowSummary
    stages: dict[Stage, StageSummary]


def write_summary(opened: Session, outcome: Outcome) -> RunSummary:
    """Write the workspace's ``summary.json`` from what the stages left."""
    manifests = outcome.manifests
    result = opened.storage.read_json(manifests["evaluate"].files["result"])
    deployed = manifests.get("deploy")
    registered = deployed or manifests.get("register")
    summary = RunSummary(
        run_id=outcome.run_id,
        config=opened.config.name,
        created=datetime.now(UTC).replace(microsecond=0),
        models=result["models"],
        candidate=result["candidate"],
        comparisons=result["comparisons"],
        gate=GateSummary.model_validate(manifests["gate"].details),
        model=ModelSummary.model_validate(registered.details) if registered else None,
        question=deployed.details.get("question") if deployed else None,
        report=manifests["evaluate"].files["report"],
        prefixes={stage: manifest.uri for stage, manifest in manifests.items()},
        mlflow=MLflowSummary(
            uri=opened.context.tracking.uri,
            experiment=opened.context.tracking.experiment,
            parent_run_id=outcome.parent_run_id,
            run_ids={stage: manifest.mlflow_run_id for stage, manifest in manifests.items()},
        ),
        stages={
            stage: StageSummary(
                status=progress.status,
                seconds=round(progress.seconds, 1),
                work_seconds=round(manifests[stage].seconds, 1) if stage in manifests else None,
            )
            for stage, progress in outcome.stages.items()
        },
    )
    write_atomically(opened.workspace.root / _FILE, summary.model_dump_json(indent=1))
    return summary


def read_summary(workspace: Path) -> RunSummary:
    """The summary of the workspace's last finished run.

    Raises:
        UserError: no run has finished there, or none of this version."""
    path = workspace / _FILE
    if not path.exists():
        raise UserError(f"{path}: no run has finished in this workspace; start one with `vthink run`")
    try:
        return RunSummary.model_validate_json(path.read_text("utf-8"))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"])) or "its text"
        raise UserError(f"{path}: not the summary of this version ({key}); repeat `vthink run`") from error
