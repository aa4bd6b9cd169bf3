"""Pictures and timelines."""

import math
import re

import numpy as np
import pytest
from vthink.components.common.html import images
from vthink.components.common.html.images import Span, Track


def test_frames_become_pictures_inside_the_page():
    frames = np.zeros((3, 300, 200, 3), np.uint8)
    strip = images.frame_strip(frames, [0, 0.5, 1])
    assert strip.count("data:image/jpeg;base64,") == 3
    assert "0.5 s" in strip
    assert images.frame_strip([b"\x89PNG...."]).count("data:image/png") == 1


def test_large_frames_are_made_smaller():
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), dtype=np.uint8)
    assert len(images.jpeg(noise)) < len(images.jpeg(noise, max_height=720)) / 10


@pytest.mark.parametrize("duration", [0.0, math.nan, math.inf, -3.0, 8.0])
def test_a_timeline_survives_times_that_make_no_sense(duration):
    spans = [
        Span(start_s=-5, end_s=3),
        Span(start_s=7, end_s=2),
        Span(start_s=math.nan, end_s=2),
        Span(start_s=1, end_s=math.inf),
        Span(start_s=4, end_s=1e300, text="far"),
    ]
    html = images.timeline(duration, [Track(label="model", spans=spans)])
    for left, width in re.findall(r"left:([\d.]+)%;width:([\d.]+)%", html):
        assert float(left) >= 0
        assert float(left) + float(width) <= 100.01
    assert "nan%" not in html
    assert "inf%" not in html
