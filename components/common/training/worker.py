"""A training process before anything large is imported: what torchrun starts, once per process."""

import argparse
import gc
import importlib
import sys

from ..compat.torch import load_to_numbered_cpus
from ..compat.torchvision import declare_torchvision_operators
from ..errors import UserError
from ..launch.job import TrainingJob
from ..launch.process import end_with_owner


def start(module: str, function: str) -> None:
    """Run the job named on the command line with a function of a module, which is imported here."""
    parser = argparse.ArgumentParser(prog=f"python -m {module.rpartition('.')[0]}", description="A training process")
    parser.add_argument("--job", required=True, help="URI of job.json")
    arguments = parser.parse_args()
    end_with_owner()
    # Imports make a million objects that live as long as the process: a fifth of the time went to garbage among them.
    gc.disable()
    declare_torchvision_operators()
    load_to_numbered_cpus()
    train = getattr(importlib.import_module(module), function)
    gc.enable()
    gc.freeze()
    try:
        train(TrainingJob.read(arguments.job).on_this_node())
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
