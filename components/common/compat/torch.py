"""torch 2.13: a tensor that is to be loaded to ``cpu:0``, and torchvision 0.28: no wheel for a CPU build of torch.

transformers 5.17 names the device of each process with an index, also on a CPU, and gives it to ``torch.load`` when it
resumes an optimiser. ``torch.load`` knows ``cpu`` only: "don't know how to restore data location of
torch.storage.UntypedStorage (tagged with cpu:0)".

Every wheel of torchvision on PyPI is built for CUDA. Beside a CPU build of torch its compiled library cannot be loaded,
and ``import torchvision`` fails with "operator torchvision::nms does not exist", because it describes that operator
without asking whether it is there (pytorch/vision#9085). transformers imports torchvision with nearly everything.
"""

import functools
from typing import Any

_library: Any = None  # keeps the declarations alive


@functools.cache
def load_to_numbered_cpus() -> None:
    """Let ``torch.load`` take ``cpu:0`` for the CPU. Called by training processes before they resume."""
    import torch

    torch.serialization.register_package(
        5, lambda _: None, lambda storage, tag: storage if tag.startswith("cpu:") else None
    )


def declare_torchvision_operators() -> None:
    """Let torchvision be imported beside a CPU build of torch, by declaring the operators that it describes. To be
    called before transformers, trl or peft are imported; it does nothing where torchvision is not there or can be
    imported as it is. `torchvision.ops.nms` and the codecs stay unavailable; nothing here uses them."""
    global _library
    import torch

    if _library is not None or torch.version.cuda is not None or torch.version.hip is not None:
        return
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
