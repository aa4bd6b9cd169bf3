"""How many CPU threads a process of ours uses for a model that it runs itself, outside of torchrun."""

from __future__ import annotations

import os
import sys

from .config import LaunchConfig


def limit_threads(launch: LaunchConfig) -> None:
    """Let torch, here and in what this process starts, use ``launch.threads`` CPU threads; 0: the library's default.

    torchrun's workers get the same by their environment. Without it a process takes a thread per core, and two of them
    on one machine wait for each other: an evaluation beside other work took 32 minutes instead of one.
    """
    if not launch.threads:
        return
    os.environ["OMP_NUM_THREADS"] = str(launch.threads)  # read when torch is imported, which may be never
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(launch.threads)
