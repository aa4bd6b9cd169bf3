import random
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.benchmarks.folder import DataFolder, load_questions
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS

from ..published import FORMATS
from .reading import read


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"[{]", "test_Video-Holmes.json: not readable as json"),
        (b"\xff\xfe\x00", "not readable as json"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "row 1: expected an object, got int"),
        (b"[]", "no question in test_Video-Holmes.json"),
        (b'{"video ID": "v"}', "row 1, field 'Options'|row 1, field 'Question ID'|row 1, field"),
    ],
)
def test_a_damaged_annotation_file_is_named(contents, said, tmp_path: Path):
    (tmp_path / "test_Video-Holmes.json").write_bytes(contents)
    folder = DataFolder("data", ["test_Video-Holmes.json"])
    with pytest.raises(UserError, match=said):
        load_questions(BENCHMARKS.get("video-holmes"), folder, lambda name: tmp_path / name)


def test_a_folder_without_the_annotations_or_without_any_video_says_what_is_expected(tmp_path: Path):
    with pytest.raises(UserError, match=r"data: no annotation file; expected cgbench.json or cgbench_mini.json"):
        load_questions(BENCHMARKS.get("cg-bench"), DataFolder("data", ["a.mp4"]), lambda name: tmp_path)
    published = FORMATS["cg-bench"](random.Random(0), 8, 2)
    published.write(tmp_path)
    with pytest.raises(UserError, match=r"none of the videos of CG-Bench is there \(no video: none of BV0.mp4"):
        load_questions(
            BENCHMARKS.get("cg-bench"), DataFolder("data", list(published.files)), lambda name: tmp_path / name
        )


def test_questions_without_a_video_stay_in_the_set(tmp_path: Path):
    published = FORMATS["videomme"](random.Random(0), 12, 4)
    found = read("videomme", published, tmp_path)
    lost = [sample.id for sample in found.samples if "mme3" in sample.media.uri]
    assert len(found.samples) == 12
    assert len(lost) == 3
    assert list(found.missing) == lost
    assert "none of data/mme3.mp4, mme3.mp4 in data" in found.missing[lost[0]]


def test_ids_that_repeat_are_told_apart(tmp_path: Path):
    published = FORMATS["videomme"](random.Random(0), 3, 2)
    for row in published.files["videomme/test-00000-of-00001.parquet"]:
        row["question_id"] = "001-1"
    assert [sample.id for sample in read("videomme", published, tmp_path).samples] == ["001-1", "001-1#2", "001-1#3"]


@pytest.mark.parametrize(
    ("names", "candidates", "expected"),
    [
        (["videos/Art/0.mp4"], ["videos/Art/0.mp4"], "videos/Art/0.mp4"),
        (["MMVU/videos/Art/0.mp4", "MMVU/videos/Law/0.mp4"], ["videos/Art/0.mp4"], "MMVU/videos/Art/0.mp4"),
        (["videos/Art/0.webm"], ["videos/Art/0.mp4"], "videos/Art/0.webm"),
        (["a/abc.mkv"], ["videos/abc.mp4", "abc.mp4"], "a/abc.mkv"),
        (["a/v1.2.mp4"], ["v1.2"], "a/v1.2.mp4"),
        (["a/abc.jpg", "a/abc.webm"], ["abc.mp4"], "a/abc.webm"),
        (["images/abc.png"], ["images/abc.png"], "images/abc.png"),
        # another video under the same last name must never stand in
        (["videos/Law/0.mp4"], ["videos/Art/0.mp4"], None),
        (["x/0.mp4", "y/0.mp4"], ["0.mp4"], None),
        (["xabc.mp4"], ["abc.mp4"], None),
        (["abc.json"], ["abc.mp4"], None),
        (["etc/passwd"], ["../../etc/passwd"], None),
    ],
)
def test_a_video_is_found_where_people_put_it_and_never_mistaken(names, candidates, expected):
    assert DataFolder("data", names).video(candidates) == expected


def test_parts_of_videos_that_were_cut_already_are_not_cut_again(tmp_path: Path):
    published = FORMATS["mvbench"](random.Random(0), 12, 4)
    found = read("mvbench", published, tmp_path / "whole")
    assert {(s.media.start_s, s.media.end_s) for s in found.samples if "Charades" in s.media.uri} == {(0.5, 2.5)}
    assert {s.media.start_s for s in found.samples if "Charades" not in s.media.uri} == {None}
    published.videos = {k: v.replace("Charades_v1_480", "Charades_segment") for k, v in published.videos.items()}
    found = read("mvbench", published, tmp_path / "cut")
    assert {s.media.start_s for s in found.samples if s.id not in found.missing} == {None}
