"""What a file looks like, coarsely: near duplicates have near signatures."""

from __future__ import annotations

import numpy as np

from .clip import MediaKind

SIGNATURE_FRAMES = 4
SIGNATURE_BYTES = SIGNATURE_FRAMES * 8 * 8 * 3


def signature(frames: np.ndarray, kind: MediaKind) -> bytes:
    """What a file looks like, coarsely: `SIGNATURE_BYTES` mean colours, which survive another size or compression.

    8 × 8 fields of each of four frames of a video, 16 × 16 of an image; compared by their root mean square difference
    (`data_prep.duplicates`).

    Args:
        frames: (4, H, W, 3) uint8 of a video, (1, H, W, 3) of an image.
    """
    from PIL import Image

    side = 8 if kind == "video" else 16
    small = [Image.fromarray(frame).resize((side, side), Image.Resampling.BOX) for frame in frames]
    return b"".join(image.tobytes() for image in small)
