"""Which rows are used, and which shard each file goes to."""

from __future__ import annotations

import json
import posixpath
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.errors import UserError
from vthink.components.data_prep import plan as plan_module
from vthink.components.data_prep.records import Plan, Shard

from .conftest import Run, Source, make_row, write_rows


def planned(run: Run, source: str, **section: Any) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan, and the rows of its shards."""
    shards = [Shard.load(text) for text in plan_module.plan_data(*run.arguments(source, **section))]
    lines = [line for shard in shards for line in run.storage.read_bytes(shard.rows_uri).splitlines()]
    plan = Plan.read(run.storage, Plan.uri(shards[0].prefix))
    assert plan.rows_in == len(lines) + sum(plan.left_out.values())
    return plan, [json.loads(line.split(b"\t", 2)[2]) for line in lines]


def test_a_share_of_the_training_videos_is_held_out_with_all_their_rows(run: Run, source: Source) -> None:
    rows = [make_row(number, f"videos/{number % 12}.mp4") for number in range(24)]
    videos: dict[str, set[str]] = defaultdict(set)
    _, kept = planned(run, source(rows), holdout={"validation": 0.4})
    for row in kept:
        videos[row["split"]].add(row["media"]["uri"])
    assert set(videos) == {"train", "validation"}
    assert not videos["train"] & videos["validation"]
    assert 1 <= len(videos["validation"]) <= 8
    assert len(kept) == 24


def splits_by_name(kept: list[dict[str, Any]]) -> dict[str, str]:
    return {posixpath.basename(row["media"]["uri"]): row["split"] for row in kept}


def test_a_set_that_is_moved_holds_out_the_same_videos(run: Run, tmp_path: Path) -> None:
    split = []
    for place in ("here", "elsewhere/deeper"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for absolute in (False, True):  # a row may name its file either way
            rows = [make_row(n, f"{folder}/videos/{n}.mp4" if absolute else f"videos/{n}.mp4") for n in range(40)]
            source = str(write_rows(folder / f"{absolute}.jsonl", rows))
            split.append(splits_by_name(planned(run, source, holdout={"validation": 0.4})[1]))
        rows = [make_row(n, f"{n}.mp4") for n in range(40)]
        source = str(write_rows(folder / "rooted.jsonl", rows))
        rooted = splits_by_name(planned(run, source, holdout={"validation": 0.4}, roots={"*": f"{folder}/v"})[1])
        split.append(rooted)
    assert len(set(split[0].values())) == 2
    assert split[0] == split[1] == split[3] == split[4]
    assert split[2] == split[5]


def test_a_mixture_has_the_configured_proportions_and_says_what_it_leaves_out(run: Run, source: Source) -> None:
    kinds = [("a", "multiple_choice")] * 300 + [("b", "multiple_choice")] * 100 + [("b", "free_form")] * 40
    rows = [
        make_row(n, "videos/0.mp4", source=s, problem_type=t, **({} if t == "multiple_choice" else {"options": []}))
        for n, (s, t) in enumerate(kinds)
    ]
    plan, kept = planned(run, source(rows), weights={"a": 1, "b/multiple_choice": 1})
    sources = Counter(row["source"] for row in kept)
    assert sources["b"] == 100
    assert 75 <= sources["a"] <= 125
    assert plan.left_out == {"weights": len(rows) - len(kept)}
    assert {row["problem_type"] for row in kept} == {"multiple_choice"}
    with pytest.raises(UserError, match=r"data\.weights: no training row .* is in the group 'c'"):
        planned(run, source(rows), weights={"a": 1, "c": 1})


@pytest.mark.parametrize("rows", [[], ["", "  "]])
def test_a_source_without_rows_is_an_error(rows: list[str], run: Run, source: Source) -> None:
    with pytest.raises(UserError, match="no rows"):
        run(source(rows))


def test_each_video_is_in_exactly_one_shard(run: Run, source: Source) -> None:
    rows = [make_row(number, f"videos/{number % 5}.mp4") for number in range(12)]
    shards = [json.loads(shard) for shard in plan_module.plan_data(*run.arguments(source(rows), shards=2))]
    assert [(shard["media"], shard["rows"]) for shard in shards] == [(3, 7), (2, 5)]
