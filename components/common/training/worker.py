"""A training process before anything large is imported: what torchrun starts, once per process."""

from __future__ import annotations

import argparse
import gc
import importlib

from ..compat.torch import load_to_numbered_cpus
from ..compat.torchvision import declare_torchvision_operators
from ..launch.job import read_job
from ..launch.process import die_with_owner


def start(module: str) -> None:
    """Run the job named on the command line with the ``train`` function of a module, which is imported here.

    The garbage collector rests meanwhile: imports make a million objects that live as long as the process, and looking
    for garbage among them takes a fifth of the time.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module.rpartition('.')[0]}", description="A training process")
    parser.add_argument("--job", required=True, help="URI of job.json")
    arguments = parser.parse_args()
    die_with_owner()
    gc.disable()
    declare_torchvision_operators()
    load_to_numbered_cpus()
    train = importlib.import_module(module).train
    gc.enable()
    gc.freeze()
    train(read_job(arguments.job))
