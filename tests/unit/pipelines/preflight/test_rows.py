"""What a configuration needs of its rows, known before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.config import STAGES
from vthink.pipelines.config import load
from vthink.pipelines.preflight.finding import Finding, PreflightError, require
from vthink.pipelines.preflight.rows import examine_rows, holdout_shares

OWN = [
    "extends: laptop", "model: {prompt: video_r1/1}", "deployment: {smoke_kinds: []}",
    "sft: {validation: {kinds: []}}", "grpo: {kinds: [], validation: {kinds: []}}", "evaluation: {gate: []}",
]  # fmt: skip
Examine = Callable[..., list[Finding]]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Look at rows under the configuration of somebody's own rows, with changes."""

    def look(rows: list[dict[str, Any]], *changes: str, base: str | None = None, stages: Any = STAGES) -> list[Finding]:
        for row in rows:
            (tmp_path / row["video"]).write_bytes(b"x")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "my.yaml").write_text("\n".join(OWN) + "\n")
        config = load(base or tmp_path / "my.yaml", [f"data.source={tmp_path}/rows.jsonl", *changes])
        enabled = [name for name in stages if name not in ("sft", "grpo") or getattr(config, name).enabled]
        return list(examine_rows(config, enabled))

    return look


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    base = {"question": "Which way?", "options": "left|right", "answer": "A", "reasoning": "It goes left."}
    return [{"video": f"{n}.mp4", **base, **more} for n in range(count)]


def test_rows_with_all_that_is_needed_are_fine(examine: Examine) -> None:
    splits = ["train"] * 4 + ["validation", "test"]
    (found,) = examine([row | {"split": split} for row, split in zip(rows(6), splits, strict=True)])
    assert found.verdict == "ok"
    assert "train 4, validation 1, test 1, 6 videos and images" in found.detail


def test_missing_splits_are_told_with_shares_that_give_them_some(examine: Examine) -> None:
    validation, test = examine(rows(40))
    assert validation.detail.startswith("no row is in the split 'validation', which training is validated on")
    assert "'test', which is evaluated" in test.detail
    how = test.detail.partition("hold some of the videos out: ")[2].replace("--set ", "").split()
    (found,) = examine(rows(40), *how)
    assert found.verdict == "ok"


def test_rows_without_reasoning_are_told_before_sft(examine: Examine) -> None:
    plain = [{key: value for key, value in row.items() if key != "reasoning"} for row in rows(40)]
    held = ("data.holdout={validation: 0.2, test: 0.2}",)
    (found,) = examine(plain, *held)
    assert found.verdict == "bad"
    assert "the first in line " in found.detail
    assert "--set sft.enabled=false" in found.detail
    assert "vthink data curate" in found.detail
    (found,) = examine(plain, *held, "sft.enabled=false")
    assert found.verdict == "ok"


def test_plain_reasoning_is_no_evidence_for_segments(examine: Examine) -> None:
    (found,) = examine(rows(40), "data.holdout={validation: 0.2, test: 0.2}", "model.prompt=video_thinker/1")
    assert "they have no evidence spans" in found.detail
    assert "--set model.prompt=video_r1/1" in found.detail


def test_all_that_a_preset_expects_and_rows_lack_is_listed_at_once(examine: Examine) -> None:
    splits = ["train"] * 4 + ["validation", "test"]
    given = [row | {"split": split} for row, split in zip(rows(6), splits, strict=True)]
    found = examine(given, "model.prompt=video_r1/1", base="laptop")
    keys = (
        "grpo.kinds",
        "grpo.validation.kinds",
        "sft.validation.kinds",
        "evaluation.gate[0]",
        "deployment.smoke_kinds",
    )
    for key in keys:
        assert any(entry.detail.startswith(key) for entry in found), key
    with pytest.raises(PreflightError, match=r"\d things must change first") as error:
        require(found)
    assert len(str(error.value).splitlines()) == len(found) + 1


def test_what_a_single_stage_does_not_need_is_not_asked_for(examine: Examine) -> None:
    (found,) = examine(rows(4, split="test"), stages=["evaluate"])
    assert found.verdict == "ok"


def test_too_many_bad_rows_are_told(examine: Examine) -> None:
    found = examine(
        [*rows(3, split="test"), *({"video": "x.mp4", "question": "?"} for _ in range(2))], stages=["evaluate"]
    )
    assert "2 of 5 rows cannot be used, the first in line 4 (there is no answer)" in found[0].detail


def test_a_source_that_is_not_there_is_told(tmp_path: Path) -> None:
    (found,) = examine_rows(load("laptop", [f"data.source={tmp_path}/none.csv"]), STAGES)
    assert "there is no such file; see data.source" in found.detail


def test_shares_need_enough_videos() -> None:
    assert holdout_shares({"a": "train", "b": "train"}, ["validation", "test"]) is None
    files = {f"/v/{n}.mp4": "train" for n in range(1000)}
    assert holdout_shares(files, ["validation", "test"]) == {"test": 0.05, "validation": 0.05}
