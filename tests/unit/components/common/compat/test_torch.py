"""Tensors that are loaded to ``cpu:0``."""

import subprocess
import sys

LOAD = """
import io, sys, torch
file = io.BytesIO()
torch.save({"step": torch.ones(3)}, file)
file.seek(0)
print(torch.load(file, map_location=torch.device("cpu:0"))["step"].sum().item())
"""
MENDED = """
from vthink.components.common.compat.torch import load_to_numbered_cpus
load_to_numbered_cpus()
"""


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)


def test_a_numbered_cpu_is_the_cpu():
    assert in_a_new_process(MENDED + LOAD).stdout == "3.0\n"


def test_upstream_still_does_not_know_it():
    """Once this fails, compat/torch.py and its call can go."""
    assert "don't know how to restore data location" in in_a_new_process(LOAD).stderr
