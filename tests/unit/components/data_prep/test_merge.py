"""The shards put together: order, counts and card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.storage.manifest import Manifest
from vthink.components.data_prep import merge
from vthink.components.data_prep import plan as plan_module
from vthink.components.data_prep import shard as shard_module

from .conftest import Run, Source, make_row, rows_of


def test_merging_needs_every_shard_once(run: Run, source: Source) -> None:
    arguments = run.arguments(source(rows_of(4)), shards=2)
    done = [shard_module.prepare_shard(*arguments, shard) for shard in plan_module.plan_data(*arguments)]
    for wrong in ([], done[:1], [done[0], done[0]]):
        with pytest.raises(UserError, match="not all shards"):
            merge.merge_data(*arguments, wrong)
    assert Manifest.read(run.storage, merge.merge_data(*arguments, done[::-1])).counts["rows_out"] == 4


@pytest.mark.parametrize(("order", "expected"), [("easy_first", "3 1 4 0 5"), ("hard_first", "1 4 3 0 5")])
def test_a_curriculum_orders_rows_by_pass_rate_across_shards(
    order: str, expected: str, run: Run, source: Source, tmp_path: Path
) -> None:
    rates = [None, 0.25, 0.0, 0.75, 0.25, None, 1.0]
    rows = [make_row(n, f"videos/{n}.mp4", metadata={"pass_rate": r}) for n, r in enumerate(rates)]
    path = source([*rows, make_row(7, "videos/7.mp4", split="test", metadata={"pass_rate": 0.0})])
    manifest = run(path, order=order, min_pass_rate=0.1, max_pass_rate=0.9, shards=3)
    data = run.open(manifest, tmp_path / "cache")
    assert [row.sample.id for row in data.split("train")] == [f"row-{n}" for n in expected.split()]
    assert len(data.split("test")) == 1
    counts = {name: n for name, n in manifest.counts.items() if name.startswith("left_out")}
    assert counts == {"left_out": 2, "left_out_min_pass_rate": 1, "left_out_max_pass_rate": 1}


def test_rows_stay_in_the_order_of_the_source_whatever_the_number_of_shards(
    run: Run, source: Source, tmp_path: Path
) -> None:
    data = run.open(run(source(rows_of(7)), shards=3), tmp_path / "cache")
    assert [row.sample.id for row in data.split("train")] == [f"row-{n}" for n in range(7)]


def test_the_card_counts_what_is_in_the_set(run: Run, source: Source) -> None:
    rows: list[dict[str, Any] | str] = [
        *rows_of(3, metadata={"kind": "direction", "pass_rate": 0.5}),
        make_row(3, "videos/0.mp4", problem_type="numerical", options=[], answer="3", reasoning="Counted."),
        make_row(4, "videos/4.mp4", split="test", answer="A"),
        "{",
        make_row(5, "videos/gone.mp4"),
    ]
    manifest = run(source(rows), max_quarantined=0.5, store="frames")
    card = run.read_json(manifest, "card")
    assert card["rows"] == {"in": 7, "out": 5, "quarantined": 2, "left_out": {}}
    train = card["splits"]["train"]
    assert (train["rows"], train["videos"], train["images"]) == (4, 3, 0)
    assert train["by_type"] == {"multiple_choice": 3, "numerical": 1}
    assert train["by_kind"] == {"direction": 3}
    assert train["letters"] == {"2": {"B": 3}}
    assert train["answers"] == {"numerical": {"3": 1}}
    assert (train["with_reasoning"], train["with_evidence"]) == (1, 0)
    assert train["duration_s"]["counts"][2] == 3
    assert train["duration_s"]["mean"] == pytest.approx(3.0)
    assert sum(train["pass_rate"]["counts"]) == 3
    assert card["splits"]["test"]["letters"] == {"2": {"A": 1}}
    assert card["media"]["resolutions"] == {"video": {"64x64": 4}}
    assert card["media"]["frames"] == 4 * 4
    assert card["media"]["stored_bytes"] > card["media"]["source_bytes"]  # tiny files: this is why `smallest` exists
    assert {reason: entry["rows"] for reason, entry in card["quarantine"].items()} == {
        "unreadable_row": 1,
        "missing_media": 1,
    }
    assert card["quarantine"]["missing_media"]["examples"][0]["line"] == 7
    smallest = run(source(rows), max_quarantined=0.5)
    assert smallest.metrics["stored_bytes"] <= smallest.metrics["source_bytes"]
