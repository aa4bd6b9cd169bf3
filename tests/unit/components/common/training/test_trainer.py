"""Greedy answers on the validation split."""

from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.training.trainer import pick_rows


def test_only_the_wanted_kinds_and_media_are_trained_on(prepared: PreparedSet) -> None:
    split = prepared.split("train")
    kinds = {split.samples[i].metadata["kind"] for i in pick_rows(split, ["direction", "count"])}
    assert kinds <= {"direction", "count"}
    assert all(split.samples[i].media.kind == "video" for i in pick_rows(split, [], images=False))
    assert len(pick_rows(split, [])) == len(split)
