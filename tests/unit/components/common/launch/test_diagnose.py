"""The reason of a failure, from what a training printed."""

from __future__ import annotations

import re

import pytest
from vthink.components.common.launch.job import explain_failure

TORCHRUN_FAILURE = """Traceback (most recent call last):
  File "w.py", line 3, in <module>
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
E1120 11:00:00.000 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1)
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""


@pytest.mark.parametrize(
    ("code", "lines", "expected"),
    [
        (1, TORCHRUN_FAILURE.splitlines(), "OutOfMemoryError: CUDA out of memory.*lower the batch"),
        (1, ["OSError: [Errno 28] No space left on device"], "the disk is full"),
        (1, ["ModuleNotFoundError: No module named 'trl'"], r"install vthink\[train\]"),
        (1, ["[rank 1] KeyError: 'x'"], "KeyError: 'x'"),
        (1, ["ValueError: first", "During handling", "RuntimeError: second"], "RuntimeError: second"),
        (137, [], "killed"),
        (1, ["  exitcode  : -9 (pid: 5)", "  traceback : Signal 9 (SIGKILL)"], "killed"),
        (3, ["nothing to see"], "^the training failed with exit code 3$"),
    ],
)
def test_the_reason_of_a_failure_is_found_in_the_output(code: int, lines: list[str], expected: str) -> None:
    assert re.search(expected, explain_failure(code, lines))
