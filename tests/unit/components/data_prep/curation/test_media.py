"""What a model is shown."""

from __future__ import annotations

import numpy as np
from vthink.components.common.video.clip import Clip
from vthink.components.data_prep.curation.items import frame_parts


def test_frames_are_shown_each_after_its_time():
    clip = Clip(np.zeros((2, 8, 8, 3), np.uint8), np.array([0.0, 1.5]), 3.0)
    parts = list(frame_parts(clip))
    assert [part["text"] for part in parts[::2]] == ["[0.0 s]", "[1.5 s]"]
    assert all(part["image_url"]["url"].startswith("data:image/jpeg;base64,") for part in parts[1::2])
