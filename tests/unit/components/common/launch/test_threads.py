"""A process that runs a model itself keeps to its threads."""

from __future__ import annotations

import os
import subprocess
import sys

LIMIT = """
import os
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.process import limit_threads
"""
COUNT = """
def count():
    '''What torch says, and how many threads a large product adds to the process.'''
    before = len(os.listdir("/proc/self/task"))
    torch.ones(512, 512) @ torch.ones(512, 512)
    return torch.get_num_threads(), len(os.listdir("/proc/self/task")) - before
"""


def printed(*program: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.check_output([sys.executable, "-c", "\n".join(program)], env=env, text=True).strip()


def test_a_limit_before_torch_is_imported_holds_for_it_and_for_what_the_process_starts() -> None:
    limit = "limit_threads(LaunchConfig(threads=1))\nimport torch"
    assert printed(LIMIT, limit, COUNT, "print(count(), os.environ['OMP_NUM_THREADS'])") == "(1, 0) 1"


def test_a_limit_holds_where_torch_is_there_already_and_zero_is_none() -> None:
    limits = "default = torch.get_num_threads()\nlimit_threads(LaunchConfig(threads=0))"
    compare = "print(torch.get_num_threads() == default, 'OMP_NUM_THREADS' in os.environ)"
    one, three = (f"limit_threads(LaunchConfig(threads={threads}))\nprint(count())" for threads in (1, 3))
    lines = printed("import torch", LIMIT, COUNT, limits, compare, one, three).splitlines()
    assert lines == ["True False", "(1, 0)", "(3, 2)"]
