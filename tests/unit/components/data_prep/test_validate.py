"""Rows checked without decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.data_prep import validate

from .conftest import Source, make_row, rows_of, write_rows


def test_validation_lists_every_problem_with_its_line(source: Source, storage: Storage, tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [
        make_row(0, "videos/0.mp4"),
        make_row(1, "videos/missing.mp4"),
        make_row(0, "videos/1.mp4"),
        "{",
        make_row(4, "videos/0.mp4", split="test", problem_type="ocr", options=[], source="other"),
        make_row(5, join(storage.config.root_uri, "missing.mp4")),
    ]
    report = validate.validate_rows(source(rows), storage)
    assert [(problem.line, problem.reason) for problem in report.problems] == [
        (2, "missing_media"),
        (3, "duplicate_id"),
        (4, "unreadable_row"),
        (5, "split_leak"),
        (6, "missing_media"),
    ]
    assert not report.ok
    assert (report.rows, report.media, report.missing_media) == (6, 3, 2)
    assert report.by_type == {"multiple_choice": 1, "ocr": 1}
    assert report.by_source == {"squares": 1, "other": 1}
    good = validate.validate_rows(str(write_rows(tmp_path / "source/good.jsonl", rows_of(3))))
    assert good.ok
