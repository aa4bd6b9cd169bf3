"""Why a training failed, from what it printed."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)$")

_ADVICE = (
    (re.compile(r"out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate", re.I),
     "out of memory: lower the batch, the number of frames or video.max_pixels, or use more processes"),
    (re.compile(r"No space left on device", re.I), "the disk is full: free space under the work folder"),
    (re.compile(r"NCCL (error|timeout)|ncclUnhandled|ncclSystemError|collective operation timeout", re.I),
     "the GPUs stopped talking to each other: see which rank printed an error first, then NCCL_DEBUG=INFO"),
    (re.compile(r"Cannot re-initialize CUDA|no CUDA-capable device|CUDA driver version", re.I),
     "the GPU cannot be used: check the driver and CUDA_VISIBLE_DEVICES"),
    (re.compile(r"No module named", re.I), "a package is missing: install vthink[train]"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a training failed; empty parts are not known."""

    reason: str
    """What happened."""
    advice: str
    """What to do about it."""
    machines_lost: bool = False
    """The machines were taken away; the training itself did nothing wrong, and another attempt may succeed."""

    def __str__(self) -> str:
        return "; ".join(filter(None, [self.reason, self.advice]))


def explain_failure(code: int, lines: Sequence[str]) -> str:
    """One line about why a training failed, from its exit code and what it printed."""
    failure = explain_output(lines)
    killed = code == 128 + signal.SIGKILL or any(re.search(r"exitcode\s*:\s*-9|Signal 9 ", line) for line in lines)
    if killed and not failure.reason:
        advice = failure.advice or "often the machine or container ran out of memory"
        failure = Failure("a worker was killed (SIGKILL)", advice)
    return "; ".join(filter(None, [f"the training failed with exit code {code}", str(failure)]))


def explain_output(lines: Sequence[str]) -> Failure:
    """The last error that a training printed, and what to do about it."""
    reason = ""
    for line in lines:
        match = _EXCEPTION.search(line)
        # torchrun reports the worker's failure once more, in its own words.
        if match and "torch.distributed.elastic" not in line and not match[1].endswith("ChildFailedError"):
            reason = f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    advice = (text for pattern, text in _ADVICE if any(pattern.search(line) for line in lines))
    return Failure(reason, next(advice, ""))
