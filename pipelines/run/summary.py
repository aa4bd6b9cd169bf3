"""What a run came to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...components.common.config import Stage
from ...components.common.storage.manifest import Manifest
from .session import RunError, Session
from .state import SUMMARY
from .watch import StageProgress


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_id: str
    parent_run_id: str | None
    """MLflow run of the pipeline."""
    stages: dict[Stage, StageProgress]
    manifests: dict[Stage, Manifest]
    """What the stages left, as far as they ran."""


def write_summary(opened: Session, outcome: Outcome) -> dict[str, Any]:
    """``summary.json``: what a run came to, for people and programs. Returned as well.

    Keys: ``run_id config created status models candidate comparisons gate model question report prefixes mlflow
    stages``. ``models.<model>.<frames>`` holds every metric as ``{value, low, high, n}`` (a 95 % interval by
    default), over all items and ``by_type`` and ``by_kind``.
    """
    manifests, storage = outcome.manifests, opened.storage
    result = storage.read_json(manifests["evaluate"].files["result"])
    verdict = manifests["gate"].details
    deployed, registered = manifests.get("deploy"), manifests.get("register")
    model = None
    if registered:
        model = dict(registered.details)
        if deployed:
            model |= {key: deployed.details[key] for key in ("alias",) if key in deployed.details}
    summary: dict[str, Any] = {
        "run_id": outcome.run_id,
        "config": opened.config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": result["models"],
        "candidate": result["candidate"],
        "comparisons": result["comparisons"],
        "gate": {"verdict": verdict["verdict"], "lines": verdict["lines"]},
        "model": model,
        "question": deployed.details.get("question") if deployed else None,
        "report": manifests["evaluate"].files["report"],
        "prefixes": {stage: manifest.uri for stage, manifest in manifests.items()},
        "mlflow": {
            "uri": opened.context.tracking.uri,
            "experiment": opened.context.tracking.experiment,
            "parent_run_id": outcome.parent_run_id,
            "run_ids": {stage: manifest.mlflow_run_id for stage, manifest in manifests.items()},
        },
        "stages": {
            stage: {
                "status": progress.status,
                "seconds": round(progress.seconds, 1),
                "work_seconds": round(manifests[stage].seconds, 1) if stage in manifests else None,
            }
            for stage, progress in outcome.stages.items()
        },
    }
    path = opened.workspace.root / SUMMARY
    part = path.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=1, ensure_ascii=False), "utf-8")
    part.replace(path)
    return summary


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of the workspace's last finished run.

    Raises:
        RunError: no run has finished there.
    """
    path = folder / SUMMARY
    if not path.exists():
        raise RunError(f"{path}: no run has finished in this workspace; start one with `vthink run`")
    summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return summary
