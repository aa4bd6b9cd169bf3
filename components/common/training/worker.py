"""Entry point of a training process, which torchrun starts: ``python -m <stage's train> --job URI``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..compat.torch import accept_cpu_device_tags
from ..errors import UserError
from ..launch.job import TrainingJob
from ..launch.lifetime import end_with_owner


def run_worker(train: Callable[[TrainingJob], None]) -> None:
    """Read the job that ``--job`` names and train, as long as the process that ordered it lives."""
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("--job", required=True, help="URI of job.json")
    uri = parser.parse_args().job
    end_with_owner()
    accept_cpu_device_tags()
    try:
        train(TrainingJob.read(uri).on_this_node())
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
