"""Formats are entries of one table, which others may add to; help and documents name them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
from vthink.components.common.errors import UserError
from vthink.components.common.rows.sample import Sample
from vthink.components.data_prep.formats.read import read_rows
from vthink.components.data_prep.formats.registry import FORMATS
from vthink.pipelines.cli.main import app

OUTSIDE = """
from vthink.components.data_prep.formats.format import Format

def read(row, number):
    yield {"id": str(number), "media": {"kind": "video", "uri": row["clip"]}, "question": row["q"],
           "problem_type": "free_form", "answer": row["a"]}

FORMAT = Format(name="theirs", fits=lambda row: "clip" in row, read=read)
NO_FORMAT = 5
"""


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "outside_format.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"clip": "a.mp4", "q": "What?", "a": "A ball."}) + "\n{}\n")
    return tmp_path / "rows.jsonl"


def test_a_format_from_outside_is_named_by_its_module(rows: Path) -> None:
    read = read_rows(rows, "outside_format:FORMAT")
    (_, sample), (line, bad) = read
    assert read.format.name == "theirs"
    assert isinstance(sample, Sample)
    assert (sample.id, sample.media.uri, sample.answer) == ("1", "a.mp4", "A ball.")
    assert (line, str(bad)) == (2, "line 2: not a row of theirs (KeyError('clip'))")
    with pytest.raises(UserError, match=r"format 'outside_format:NO_FORMAT' is a int, not a Format"):
        read_rows(rows, "outside_format:NO_FORMAT")
    with pytest.raises(UserError, match="unknown format 'video_r2'; did you mean 'video_r1'"):
        read_rows(rows, "video_r2")


@pytest.mark.parametrize("command", ["validate", "prepare", "curate"])
def test_the_help_of_commands_names_every_format(command: str) -> None:
    text = CliRunner().invoke(app, ["data", command, "--help"], env={"COLUMNS": "200"}).output
    assert all(name in text for name in FORMATS)


def test_the_documentation_names_every_format() -> None:
    text = (Path(__file__).parents[5] / "components/data_prep/README.md").read_text()
    assert all(f"| `{name}` |" in text for name in FORMATS)
