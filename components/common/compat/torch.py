"""torch 2.13: a tensor that is to be loaded to the device ``cpu:0``.

transformers 5.17 names the device of each process with an index, also on a CPU, and gives it to ``torch.load`` when it
resumes an optimiser. ``torch.load`` knows ``cpu`` only: "don't know how to restore data location of
torch.storage.UntypedStorage (tagged with cpu:0)".
"""

import functools


@functools.cache
def load_to_numbered_cpus() -> None:
    """Let ``torch.load`` take ``cpu:0`` for the CPU. Called by training processes before they resume."""
    import torch

    torch.serialization.register_package(
        5, lambda _: None, lambda storage, tag: storage if tag.startswith("cpu:") else None
    )
