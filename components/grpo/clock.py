"""Seconds of a step, by what they went into."""

from __future__ import annotations

import time
from collections import defaultdict


class Clock:
    """Seconds of a step, by what they went into. Where a GPU works on its own, they include the wait for it."""

    def __init__(self) -> None:
        self.tokens = 0
        """Processed in this step on this rank, each prompt counted once per group."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charge the time since the last call to ``name``."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def close_step(self, num_processes: int) -> dict[str, float]:
        """The step's account as metrics, ``time/<part>_s`` and ``time/tokens_per_s`` over all processes."""
        self.lap("other")
        total = sum(self._seconds.values())
        metrics = {f"time/{name}_s": value for name, value in (self._seconds | {"step": total}).items()}
        if self.tokens:
            metrics["time/tokens_per_s"] = self.tokens * num_processes / total
        self.tokens = 0
        self._seconds.clear()
        return metrics
