"""Questions and answers as traces."""

from __future__ import annotations

import math
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.tracking.run import Trace, Tracker


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


TRACES = [
    Trace(name=f"q{n}", inputs={"question": "Which?"}, outputs={"answer": "A", "score": math.nan}, tags={"k": "v"})
    for n in range(3)
]


def test_traces_belong_to_their_run_and_are_recorded_once(child: RunContext, client: Any) -> None:
    tracker, other = start(child), start(child, "4567")
    tracker.log_traces(TRACES)
    tracker.log_traces(TRACES)  # of an attempt after a kill
    experiment = client.get_run(tracker.run_id).info.experiment_id

    def found(run: Tracker) -> list[str]:
        traces = client.search_traces(locations=[experiment], run_id=run.run_id)
        return sorted(trace.data.spans[0].name for trace in traces)

    assert found(tracker) == ["q0", "q1", "q2"]
    assert found(other) == []


def test_traces_that_mlflow_does_not_take_do_not_fail_the_stage(
    child: RunContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(child)
    monkeypatch.setattr(tracker, "run_id", "f" * 32)
    tracker.log_traces(TRACES)
    assert "MLflow did not take the traces" in caplog.text
