"""Calling something again that may work the next time: one way to wait, for everything that is asked over a network."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """Pauses that double, up to a limit, with a random part that keeps many callers from returning at once."""

    first_s: float = 0.5  # the longest that the first pause may be
    longest_s: float = 15.0  # no pause is longer, unless the other side asks for it
    jitter: float = 0.5  # the part of a pause that is random: 0 for none, 1 for "full jitter"

    def pause_s(self, failures: int, at_least_s: float = 0.0) -> float:
        """Seconds to wait after so many failures (>= 1); ``at_least_s`` is what the other side asked for."""
        pause_s = min(self.first_s * 2 ** min(failures - 1, 30), self.longest_s)
        return max(at_least_s, pause_s * random.uniform(1 - self.jitter, 1))


def retry(
    call: Callable[[], T],
    *,
    transient: Callable[[Exception], bool],
    attempts: float = math.inf,
    limit_s: float = math.inf,
    backoff: Backoff | None = None,
    retry_after_s: Callable[[Exception], float | None] = lambda error: None,
    on_retry: Callable[[Exception, int, float], None] = lambda error, failures, left_s: None,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """Call until it works; the last exception is raised as it is once there is no use, no attempt or no time left.

    ``transient``: whether an exception may go away by itself, others are raised at once; ``limit_s``: how long after
    the first failure the last of the ``attempts`` may begin, 0: a single one; ``retry_after_s``: how long the other
    side asked to wait; ``on_retry``: told of each failure before the pause: the exception, how many there were, and the
    seconds left."""
    failures, failing_since = 0, 0.0
    while True:
        try:
            return call()
        except Exception as error:
            failures, now = failures + 1, time.monotonic()
            failing_since = now if failures == 1 else failing_since
            left_s = failing_since + limit_s - now
            if failures >= attempts or left_s <= 0 or not transient(error):
                raise
            on_retry(error, failures, left_s)
            pause_s = (backoff or Backoff()).pause_s(failures, retry_after_s(error) or 0.0)
        sleep(min(pause_s, left_s))
