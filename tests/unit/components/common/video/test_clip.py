"""Clips, and frames as compressed images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vthink.components.common.video.clip import (
    stored,
)
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip

from .videos import CONFIG, numbers


def test_png_gives_back_the_same_frames_and_jpeg_nearly_the_same(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    assert (stored(clip, VideoConfig(frame_codec="png")).frames == clip.frames).all()
    jpeg = stored(clip, VideoConfig(frame_codec="jpeg", frame_quality=95)).frames
    assert 0 < np.abs(jpeg.astype(int) - clip.frames).mean() < 3


def test_permuted_reorders_frames_and_keeps_times(video: Path) -> None:
    clip = read_clip(video, CONFIG)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    shuffled = clip.permuted(order)
    assert numbers(shuffled.frames) == [numbers(clip.frames)[i] for i in order]
    assert shuffled.times_s.tolist() == clip.times_s.tolist()
    with pytest.raises(ValueError, match="permutation"):
        clip.permuted([0, 0, 1, 2, 3, 4, 5, 6])
