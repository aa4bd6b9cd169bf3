"""Values that wait, repeat and are not numbers."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.tracking.client import TrackingError
from vthink.components.common.tracking.run import Tracker


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def steps(client: Any, tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(tracker.run_id, name))


def test_values_keep_their_steps(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        for step in range(1, 4):
            tracker.log_metrics({"sft/loss": 1 / step, "sft/grad_norm": step}, step=step)
        tracker.log_metrics({"validation/accuracy": 0.5})
    assert steps(client, tracker, "sft/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert steps(client, tracker, "validation/accuracy") == [(0, 0.5)]


def test_a_value_that_is_not_a_number_is_recorded_as_such(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        tracker.log_metrics({"sft/loss": math.nan}, step=1)
    assert math.isnan(client.get_metric_history(tracker.run_id, "sft/loss")[0].value)


def test_a_final_value_can_be_replaced(child: RunContext, client: Any) -> None:
    for value in (0.5, 0.75):
        with start(child, rate=1) as tracker:
            tracker.log_metrics({"validation/accuracy": value})
    assert client.get_run(tracker.run_id).data.metrics == {"validation/accuracy": 0.75}


KILLED_STAGE = """
    import os, signal, sys
    from vthink.components.common.context import RunContext
    from vthink.components.common.tracking.run import Tracker
    tracker = Tracker.start(RunContext.load(sys.argv[1]), "sft", "0123", {"rate": 1}, {})
    for step in range(1, 58):
        tracker.log_metrics({"sft/loss": 100.0 - step}, step=step)
        if step % 10 == 0:
            tracker.log_metrics({"validation/accuracy": step / 100}, step=step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_steps_repeated_after_a_kill_appear_once(child: RunContext, client: Any) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED_STAGE), child.to_json()], check=False)
    assert done.returncode == -9
    # The checkpoint is of step 50; 51 to 57 are trained again.
    with start(child, rate=1) as tracker:
        for step in range(51, 71):
            tracker.log_metrics({"sft/loss": 100.0 - step}, step=step)
            if step % 10 == 0:
                tracker.log_metrics({"validation/accuracy": step / 100}, step=step)
    assert steps(client, tracker, "sft/loss") == [(step, 100.0 - step) for step in range(1, 71)]
    assert [step for step, _ in steps(client, tracker, "validation/accuracy")] == [10, 20, 30, 40, 50, 60, 70]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_database_that_is_busy_for_a_while_loses_no_value(
    child: RunContext, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = child.tracking.model_copy(update={"outage_s": 0.0})
    tracker = start(child.model_copy(update={"tracking": impatient}))
    tracker.log_metrics({"sft/loss": 1.0}, step=1)
    database = sqlite3.connect(str(child.tracking.uri).removeprefix("sqlite:///"), isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    tracker.log_metrics({"sft/loss": 2.0}, step=2)
    assert "did not take 1 values" in caplog.text
    with pytest.raises(TrackingError, match="cannot close"):
        tracker.finish()
    database.execute("ROLLBACK")
    database.close()
    tracker.log_metrics({"sft/loss": 3.0}, step=3)
    tracker.finish()
    assert steps(client, tracker, "sft/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
