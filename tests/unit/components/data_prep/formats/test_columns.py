"""Tables as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import RowError
from vthink.components.common.rows.sample import Sample
from vthink.components.data_prep.formats.columns import columns_of, shown_columns
from vthink.components.data_prep.formats.read import read_rows


def samples(path: Path, text: str, **options: object) -> list[Sample | RowError]:
    path.write_text(text, "utf-8")
    return [row for _, row in read_rows(path, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("video,question,answer,options", "a.mp4,Which way?,right,left|right|up|down"),
        ("Video Path,Prompt,Label,Choices", 'a.mp4,Which way?,B,"left, right, up, down"'),
        ("file,query,solution,candidates", "a.mp4,Which way?,(B),\"['left', 'right', 'up', 'down']\""),
        ("clip,problem,solution,A,B,C,D", "a.mp4,Which way?,right,left,right,up,down"),
        ("path,question,answer,option_1,option_2,option_3,option_4", "a.mp4,Which way?,right,left,right,up,down"),
        ("video,question,answer,options", 'a.mp4,Which way?,B,"[""left"", ""right"", ""up"", ""down""]"'),
        ("video;question;answer;options", "a.mp4;Which way?;B;left|right|up|down"),
    ],
)
def test_usual_names_and_ways_to_write_options_are_understood(header: str, cells: str, tmp_path: Path) -> None:
    (row,) = samples(tmp_path / "rows.csv", f"{header}\n{cells}\n")
    assert isinstance(row, Sample), row
    assert (row.media.uri, row.question, row.answer) == ("a.mp4", "Which way?", "B")
    assert row.options == ("left", "right", "up", "down")


def test_a_row_of_two_options_in_columns_leaves_the_empty_ones_out(tmp_path: Path) -> None:
    (row,) = samples(tmp_path / "rows.csv", "video,question,answer,A,B,C\na.mp4,Yes?,A,yes,no,\n")
    assert isinstance(row, Sample)
    assert row.options == ("yes", "no")


def test_a_table_with_a_column_called_problem_is_not_taken_for_a_published_set(tmp_path: Path) -> None:
    (row,) = samples(tmp_path / "rows.csv", "clip,problem,solution\na.mp4,What happens?,A ball rolls.\n")
    assert isinstance(row, Sample), row
    assert row.answer == "A ball rolls."


def test_lines_are_those_of_the_file_with_blank_lines_and_breaks_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('video,question,answer\na.mp4,"two\nlines",x\n\nb.mp4,What?\n,What?,x\n')
    rows = list(read_rows(path))
    assert [line for line, _ in rows] == [2, 5, 6]
    assert "2 cells, where the header has 3" in str(rows[1][1])


def test_a_broken_cell_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("video,question,options,answer,metadata\na.mp4,Q?,a|b,A,{\nb.mp4,Q?,[a,A,\n")
    (line, meta), (second, options) = read_rows(path)
    assert (line, second) == (2, 3)
    assert "'metadata' is not JSON" in str(meta)
    assert "options are neither JSON nor a list: '[a'" in str(options)


def test_columns_with_other_names_can_be_set(tmp_path: Path) -> None:
    text = "mov,frage,loesung,o1,o2,path\na.mp4,Wohin?,rechts,links,rechts,/elsewhere\n"
    chosen = {"video": "mov", "question": "frage", "answer": "loesung", "options": ("o1", "o2")}
    (row,) = samples(tmp_path / "rows.csv", text, columns=chosen)
    assert isinstance(row, Sample), row
    assert (row.media.uri, row.question, row.answer, row.options) == ("a.mp4", "Wohin?", "B", ("links", "rechts"))
    with pytest.raises(UserError, match=r"no column 'film' \(data.columns.video\); there are: mov, frage"):
        samples(tmp_path / "rows.csv", text, columns={"video": "film"})
    with pytest.raises(UserError, match=r"--column video=NAME"):
        samples(tmp_path / "rows.csv", text)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two columns have the name 'video'"):
        samples(tmp_path / "rows.csv", "video,video,question,answer\na,b,c,d\n")


def test_names_are_understood_in_json_lines_too(tmp_path: Path) -> None:
    row = {"video_path": "a.mp4", "query": "Q?", "label": "x", "start": "0:05", "end": "1:00.5"}
    (sample,) = samples(tmp_path / "rows.jsonl", json.dumps(row) + "\n")
    assert isinstance(sample, Sample), sample
    assert (sample.media.start_s, sample.media.end_s) == (5.0, 60.5)


def test_what_was_understood_is_shown() -> None:
    columns = columns_of(["Clip", "question", "label", "A", "B", "camera"])
    assert shown_columns(columns) == "video ← Clip, question, answer ← label, options ← A B"


def test_single_letters_with_a_gap_are_no_options() -> None:
    assert columns_of(["video", "question", "b", "d"]).get("options") is None
