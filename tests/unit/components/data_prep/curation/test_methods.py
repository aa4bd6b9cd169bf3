"""Segments that traces are written from; the method as a whole is in tests/integration/test_curate.py."""

from __future__ import annotations

import pytest
from vthink.components.data_prep.curation.items import DropItemError
from vthink.components.data_prep.curation.methods import segments_inside

from .conftest import SEGMENTS


def test_segments_are_cut_at_the_video_s_end_within_reason():
    assert segments_inside(SEGMENTS, 9.0)[-1].end_s == 9.0
    assert segments_inside(SEGMENTS, 20.0) == SEGMENTS
    with pytest.raises(DropItemError, match=r"ends at 9\.25 s, the video already at 8\.00 s"):
        segments_inside(SEGMENTS, 8.0)
