"""Where this training process stands among the others, as torchrun says, and how they wait for each other."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def rank() -> int:
    """Number of this process among all of the training."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Processes of the training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def node_rank() -> tuple[int, int]:
    """(which, of how many) nodes this process is on."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return rank() // per_node, -(-world_size() // per_node)


def in_group() -> bool:
    """Whether there are other processes to exchange tensors with."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if in_group():
        torch.distributed.barrier()


def leave_group() -> None:
    """End this process's part in the group, after the last exchange between the processes. At the interpreter's end its
    communication threads may abort it (SIGABRT), and torchrun the first process with it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def first_of_node_first() -> Iterator[None]:
    """Let the first process of each node pass alone, then the others: it fills the caches that they share."""
    # There is no process group yet: a file of torchrun's run is the signal.
    name = f"vthink-{os.environ.get('TORCHELASTIC_RUN_ID', 'run')}-{os.environ.get('MASTER_PORT', '0')}-{os.getppid()}"
    passed = Path(tempfile.gettempdir()) / name
    while local_rank() and not passed.exists():
        time.sleep(0.1)
    yield
    if local_rank() == 0 and node_rank()[1] < world_size():  # others of this node wait for it
        passed.touch()
