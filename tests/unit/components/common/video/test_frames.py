"""Which frames are sampled, and in which size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vthink.components.common.video.clip import DecodeError
from vthink.components.common.video.config import VideoConfig
from vthink.components.common.video.decode import read_clip
from vthink.components.common.video.frames import frame_indices, select_frames, target_size

from .videos import CONFIG


def test_frames_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert frame_indices(16, 4.0, VideoConfig(num_frames=8)).tolist() == [0, 2, 4, 6, 9, 11, 13, 15]


def test_a_part_of_a_video_is_sampled_within_its_bounds() -> None:
    assert frame_indices(100, 10.0, VideoConfig(num_frames=4), 2.0, 3.0).tolist() == [20, 23, 26, 29]


def test_an_end_beyond_the_video_means_its_end() -> None:
    config = VideoConfig(num_frames=4)
    assert frame_indices(100, 10.0, config, 9.0, 99.0).tolist() == frame_indices(100, 10.0, config, 9.0).tolist()


@pytest.mark.parametrize(("start_s", "end_s"), [(10.0, None), (12.0, 13.0), (5.0, 5.0)])
def test_a_part_outside_of_the_video_is_an_error(start_s: float, end_s: float | None) -> None:
    with pytest.raises(DecodeError, match="10 s long"):
        frame_indices(100, 10.0, VideoConfig(), start_s, end_s)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.5, 4), (3.0, 6), (3.4, 6), (60.0, 16)],
)
def test_sampling_by_fps_stays_between_its_bounds_and_a_multiple(seconds: float, expected: int) -> None:
    config = VideoConfig(num_frames=None, fps=2.0, min_frames=3, max_frames=17)
    assert len(frame_indices(int(seconds * 30), 30.0, config)) == expected


def test_with_a_varying_frame_rate_frames_are_chosen_by_time() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 0.3, 8.0, 9.0])
    assert select_frames(times_s, 10.0, VideoConfig(num_frames=4)).tolist() == [0, 3, 4, 5]


@given(
    count=st.integers(1, 500),
    fps=st.floats(0.5, 120),
    wanted=st.integers(1, 64),
    multiple=st.integers(1, 4),
)
def test_sampled_frames_ascend_exist_and_fill_temporal_patches(
    count: int, fps: float, wanted: int, multiple: int
) -> None:
    indices = frame_indices(count, fps, VideoConfig(num_frames=wanted, temporal_multiple=multiple))
    assert len(indices) % multiple == 0
    assert indices[0] == 0
    assert indices[-1] <= count - 1
    assert (np.diff(indices) >= 0).all()


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    multiple=st.sampled_from([14, 28, 32]),
    area=st.integers(1, 300),
)
def test_target_size_keeps_to_multiples_and_budget(height: int, width: int, multiple: int, area: int) -> None:
    config = VideoConfig(size_multiple=multiple, min_pixels=1, max_pixels=area * multiple**2)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(DecodeError, match="200:1"):
            target_size(height, width, config)
        return
    h, w = target_size(height, width, config)
    assert h % multiple == 0
    assert w % multiple == 0
    assert 0 < h * w <= config.max_pixels


# What transformers 5.17's `smart_resize(*shape, 28, 4 * 28 * 28, 128 * 28 * 28)` gives.
QWEN_SIZES = [
    ((1080, 1920), (224, 420)),
    ((1920, 1080), (420, 224)),
    ((56, 56), (56, 56)),
    ((20, 30), (56, 84)),
    ((360, 640), (224, 420)),
    ((700, 100), (700, 112)),
]


@pytest.mark.parametrize(("shape", "expected"), QWEN_SIZES)
def test_target_size_is_that_of_qwen(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(*shape, VideoConfig()) == expected


@pytest.mark.parametrize(("start_s", "end_s", "seconds"), [(None, None, 6.0), (1.0, 3.0, 2.0), (5.5, None, 0.5)])
def test_the_time_that_a_temporal_patch_spans_is_that_of_qwen(
    video: Path, start_s: float | None, end_s: float | None, seconds: float
) -> None:
    """M-RoPE's second_per_grid_ts: Qwen divides the temporal patch by the sampled frames per second (frames sampled
    over frames there, times the file's rate)."""
    clip = read_clip(video, CONFIG, start_s=start_s, end_s=end_s)
    sampled, there = len(clip.frames), seconds * 10
    assert 2 / clip.fps == pytest.approx(2 / (sampled / there * 10))
