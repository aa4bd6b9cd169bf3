"""What a run has to send to MLflow, kept while MLflow is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from .client import first_line, short_timeouts

_AWAY_S = 15.0
"""How long MLflow is left alone after it did not answer, so that a training is not held up at each step."""
_MAX_METRICS = 1000  # MLflow's limit for values in one request

_log = logging.getLogger(__name__)


class Outbox:
    """Values and other requests of one run, sent in their order; what MLflow does not take waits for the next time.

    MLflow cannot take a value back, so one whose step is not beyond the last one recorded under its name, by this
    process or the one that it continues, is dropped.
    """

    def __init__(self, client: Any, run_id: str, resumed: bool) -> None:
        self._client, self._run_id, self._resumed = client, run_id, resumed
        self._last_step: dict[str, int] = {}
        self._compared: set[str] = set()  # names whose values of the process that this one continues are known
        self._metrics: list[tuple[Any, bool]] = []  # values (`Metric`), and whether each belongs to a step
        self._requests: list[Callable[[], object]] = []
        self._leave_alone_until = 0.0
        self.last_stamp_ms = 0  # time of the newest value

    def add_metric(self, key: str, value: float, step: int | None) -> None:
        """A value to send with the next delivery; without a step it is a final one, which replaces the earlier."""
        from mlflow.entities import Metric

        if step is not None:
            if step <= self._last_step.get(key, -1):
                return
            self._last_step[key] = step
        # MLflow shows the value with the latest time; a clock that is set back must not hide the newer one.
        self.last_stamp_ms = max(self.last_stamp_ms + 1, int(time.time() * 1000))
        metric = Metric(key, float(value), self.last_stamp_ms, 0 if step is None else step)
        self._metrics.append((metric, step is not None))

    def deliver(self, *requests: Callable[[], object]) -> None:
        """Send what waits, and then these; a failure is a warning."""
        self._requests += requests
        if time.monotonic() < self._leave_alone_until:
            return
        try:
            self.flush()
        except Exception as error:
            self._leave_alone_until = time.monotonic() + _AWAY_S
            left = f"{len(self._metrics)} values and {len(self._requests)} other things"
            _log.warning("MLflow did not take %s, will try again: %s", left, first_line(error))

    def flush(self) -> None:
        """Send everything that waits; raises what MLflow raises."""
        with short_timeouts():
            if self._resumed:
                self._drop_repeated()
            while self._metrics:
                batch = self._metrics[:_MAX_METRICS]
                self._client.log_batch(self._run_id, metrics=[metric for metric, _ in batch])
                del self._metrics[: len(batch)]
            while self._requests:
                self._requests[0]()
                del self._requests[0]
        self._leave_alone_until = 0.0

    def _drop_repeated(self) -> None:
        """Leave out the values that the process which this one continues has recorded already."""
        for key in {metric.key for metric, of_step in self._metrics if of_step} - self._compared:
            history = self._client.get_metric_history(self._run_id, key)
            last = max((metric.step for metric in history), default=-1)
            self._metrics = [(m, s) for m, s in self._metrics if m.key != key or not s or m.step > last]
            self._last_step[key] = max(last, self._last_step[key])
            self._compared.add(key)
