"""Which videos and questions are curated, and what a model is shown of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import RowError
from vthink.components.common.video.clip import Clip
from vthink.components.data_prep.config import CurationConfig
from vthink.components.data_prep.curation.items import Item, frame_parts, read_items
from vthink.components.data_prep.source import open_source

from .conftest import CHOICE, captions


def read(path: Path, config: CurationConfig | None = None, **options: Any) -> list[Item | RowError]:
    return list(read_items(open_source(str(path), None, path.parent), config or CurationConfig(), **options))


def test_captioned_segments_are_read_in_the_order_of_time(tmp_path):
    about = {"duration": 9.0, "timestamps": [[4, 9], [0, 5.5]], "sentences": [" then ", "first"]}
    (item,) = read(captions(tmp_path, {"v_1": about}), CurationConfig(videos="clips/{id}.mkv"))
    assert item.media.uri == str(tmp_path / "clips/v_1.mkv")
    assert [(s.start_s, s.end_s, s.caption) for s in item.segments] == [(0, 5.5, "first"), (4, 9, "then")]


@pytest.mark.parametrize(
    "about",
    [
        {"timestamps": [[0, 1]], "sentences": []},
        {"timestamps": [[0, 1]]},
        {"timestamps": [[1, 0]], "sentences": ["x"]},
        {"timestamps": [[0, float("nan")]], "sentences": ["x"]},
        {"timestamps": [[0, 1, 2]], "sentences": ["x"]},
        {"timestamps": [5], "sentences": ["x"]},
        {"timestamps": None, "sentences": ["x"]},
        {"timestamps": [[0, 1]], "sentences": ["<answer>"]},
        {"timestamps": [[0, 1]], "sentences": [None]},
    ],
)
def test_segments_that_cannot_be_right_are_reported_and_the_others_read(tmp_path, about):
    good = {"timestamps": [[0, 1]], "sentences": ["x"]}
    bad, item = read(captions(tmp_path, {"bad": about, "good": good}))
    assert isinstance(bad, RowError)
    assert bad.reason.startswith("bad_segments: 'bad': ")
    assert item.id == "good"


@pytest.mark.parametrize("text", ['{"v": 5}', '{"v": ', '{"v": ' + "[" * 100_000])
def test_a_file_that_is_no_file_of_segments_is_one_line(tmp_path, text):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"captions\.json: "):
        read(path)


def test_questions_are_read_in_any_format_of_rows_with_roots_and_ids_of_their_own(tmp_path):
    row = {
        "problem_id": 7,
        "problem": "Which way?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. left", "B. right"],
        "solution": "<answer>B</answer>",
        "path": "./clips/a.mp4",
        "data_source": "STAR",
    }
    path = tmp_path / "Video-R1-260k.json"
    path.write_text(json.dumps([row, row]))
    items = read(path, roots={"STAR": "/data/star"})
    assert [item.sample.answer for item in items] == ["B", "B"]
    assert len({item.id for item in items} | {item.sample.id for item in items}) == 2
    assert {item.media.uri for item in items} == {"/data/star/clips/a.mp4"}


def test_an_object_a_line_in_a_json_file_is_read_as_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text((CHOICE.model_dump_json() + "\n") * 2)
    first, second = read(path)
    assert first.sample == CHOICE
    assert second.reason == "duplicate_id: the id 'a' is already that of 1"


def test_frames_are_shown_each_after_its_time():
    clip = Clip(np.zeros((2, 8, 8, 3), np.uint8), np.array([0.0, 1.5]), 3.0)
    parts = list(frame_parts(clip))
    assert [part["text"] for part in parts[::2]] == ["[0.0 s]", "[1.5 s]"]
    assert all(part["image_url"]["url"].startswith("data:image/jpeg;base64,") for part in parts[1::2])
