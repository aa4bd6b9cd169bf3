"""Why a training failed, from what it printed."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (.+)$")


_HINTS = (
    (re.compile(r"out of memory|OutOfMemoryError|DefaultCPUAllocator: can't allocate", re.I),
     "out of memory: lower the batch, the number of frames or video.max_pixels, or use more processes"),
    (re.compile(r"No space left on device", re.I), "the disk is full: free space under the work folder"),
    (re.compile(r"NCCL (error|timeout)|ncclUnhandled|ncclSystemError|collective operation timeout", re.I),
     "the GPUs stopped talking to each other: see which rank printed an error first, then NCCL_DEBUG=INFO"),
    (re.compile(r"Cannot re-initialize CUDA|no CUDA-capable device|CUDA driver version", re.I),
     "the GPU cannot be used: check the driver and CUDA_VISIBLE_DEVICES"),
    (re.compile(r"No module named", re.I), "a package is missing: install vthink[train]"),
)  # fmt: skip


def explain_failure(code: int, lines: Sequence[str]) -> str:
    """One line about why a training failed, from its exit code and what it printed."""
    reason, hint = explain_output(lines)
    killed = code == 128 + signal.SIGKILL or any(re.search(r"exitcode\s*:\s*-9|Signal 9 ", line) for line in lines)
    if killed and not reason:
        reason, hint = (
            "a worker was killed (SIGKILL)",
            hint or "often the machine or container ran out of memory",
        )
    parts = [f"the training failed with exit code {code}", *(part for part in (reason, hint) if part)]
    return "; ".join(parts)


def explain_output(lines: Sequence[str]) -> tuple[str, str]:
    """The last error that a training printed, and what to do about it; empty where nothing is known."""
    reason, hint = "", ""
    for line in lines:
        match = _EXCEPTION.search(line)
        # torchrun reports the worker's failure once more, in its own words.
        if match and "torch.distributed.elastic" not in line and not match[1].endswith("ChildFailedError"):
            reason = f"{match[1].rpartition('.')[2]}: {match[2].strip()}"
    for pattern, text in _HINTS:
        if any(pattern.search(line) for line in lines):
            hint = text
            break
    return reason, hint
