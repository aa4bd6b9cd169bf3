"""Seconds of a step, by what they went into."""

from __future__ import annotations

import time
from collections import defaultdict


class Clock:
    """Seconds of a step, by what they went into. Where a GPU works on its own, they include the wait for it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charge the time since the last call to ``name``."""
        now = time.perf_counter()
        self.seconds[name] += now - self.last
        self.last = now
