"""Clips decoded ahead."""

from __future__ import annotations

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.rows.prepared import PreparedSample, PreparedSet
from vthink.components.grpo.prefetch import Prefetcher


def test_clips_are_decoded_ahead_and_a_stall_is_named(prepared: PreparedSet) -> None:
    import threading

    split = prepared.split("train")
    gate, asked = threading.Event(), []

    class Slow:
        samples = split.samples

        def __getitem__(self, row: int) -> PreparedSample:
            asked.append(row)
            gate.wait(5)
            return split[row]

    prefetcher = Prefetcher(Slow(), workers=2, timeout_s=0.05)  # type: ignore[arg-type]
    prefetcher.announce([0, 0, 1])
    with pytest.raises(UserError, match=r"row 0 .* was not decoded within 0.05 s"):
        prefetcher.take([0])
    gate.set()
    prefetcher.timeout_s = 5
    assert [item.sample.id for item in prefetcher.take([1, 2])] == [split.samples[1].id, split.samples[2].id]
    assert asked.count(1) == 1  # it was taken from what had been announced
