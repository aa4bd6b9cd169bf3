"""GPU models, from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """One GPU model, from its data sheet."""

    tflops: float
    """bfloat16, dense, 10¹² operations a second."""
    memory_gib: float
    """Usable memory."""
    bandwidth_gb_s: float
    """Memory bandwidth, 10⁹ bytes a second."""
    link_gb_s: float
    """To the other accelerators of its node, one way, 10⁹ bytes a second."""


ACCELERATORS = {
    "a100-40gb": Accelerator(312, 39.4, 1555, 300),
    "a100-80gb": Accelerator(312, 79.2, 2039, 300),
    "h100-80gb": Accelerator(989, 79.6, 3350, 450),
    "h200-141gb": Accelerator(989, 139.8, 4800, 450),
    "l40s-48gb": Accelerator(362, 44.4, 864, 32),
}


GPUS_PER_NODE = 8


NETWORK_GB_S = 25.0
"""Between nodes, per accelerator (200 Gbit/s); less makes several nodes slower than said here."""
