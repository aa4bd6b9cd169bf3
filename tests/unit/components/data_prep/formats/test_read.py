"""Rows as data sets publish them: what is tolerated, what is refused, and that nothing changes on a round trip."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vthink.components.common.answers.formats import is_video_thinker_format, write_response
from vthink.components.common.answers.responses import format_span
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import RowError
from vthink.components.common.rows.sample import Evidence, Media, Sample
from vthink.components.data_prep import source as source_module
from vthink.components.data_prep.formats import read
from vthink.components.data_prep.formats.read import SourceRows, read_rows
from vthink.components.data_prep.formats.registry import FORMATS
from vthink.tests.fakes.foreign_rows import WRITERS, format_vrbench_span, write_rows

THINKER_TRACE = (
    "Let me look.<time>00:01-00:03</time><caption>A man lifts a box.</caption><think>It looks heavy.</think>"
    "<time>00:05-00:09</time><caption>He puts it down.</caption><think>So it was on the floor.</think>"
)


def choice(name: str, **changes: Any) -> Sample:
    base: dict[str, Any] = {
        "id": name,
        "media": Media(kind="video", uri=f"LLaVA-Video-178K/{name}.mp4"),
        "question": "What is lifted?",
        "options": ("a box", "a cat", "nothing"),
        "problem_type": "multiple_choice",
        "answer": "B",
        "source": "LLaVA-Video-178K",
    }
    return Sample(**(base | changes))


def by_type(**changes: Any) -> list[Sample]:
    """A sample of each problem type, numbered from 1."""
    image = Media(kind="image", uri="Chart/4.png")
    return [
        choice("1", **changes),
        choice("2", problem_type="numerical", options=(), answer="1000", **changes),
        choice("3", problem_type="regression", options=(), answer="-2.5", **changes),
        choice("4", problem_type="ocr", options=(), answer="EXIT 5", media=image, source="Chart", **changes),
        choice("5", problem_type="free_form", options=(), answer="A box,\nfrom the floor.", **changes),
    ]


EVIDENCE = (
    Evidence(start_s=1, end_s=3, caption="A man lifts a box."),
    Evidence(start_s=5, end_s=9, caption="He puts it down."),
)
EXPRESSIBLE: dict[str, list[Sample]] = {
    "vthink": [
        *by_type(split="test", evidence=EVIDENCE, reasoning="Because.", metadata={"kind": "x", "n": [1, {"a": [2.5]}]}),
        choice("9", media=Media(kind="video", uri="s3://b/v.mp4", start_s=1.0, end_s=2.5)),
    ],
    "plain": [
        *by_type(split="validation", evidence=EVIDENCE, reasoning="Because.", metadata={"kind": "x"}),
        choice("9", media=Media(kind="video", uri="v.mp4", start_s=1.0, end_s=2.5)),
    ],
    "video_r1": [*by_type(), choice("7", reasoning="It is heavy.\nSo it is a box."), choice("8", source="")],
    "video_thinker": [
        choice("row-1", reasoning=THINKER_TRACE, evidence=EVIDENCE),
        choice("row-2", reasoning="No segments at all."),
    ],
    "vrbench": [
        choice(
            f"vid-qa{number}",
            media=Media(kind="video", uri="VRBench/videos/v001/vid.mp4"),
            reasoning="A man lifts a box.\nIt must be heavy.",
            evidence=EVIDENCE[:1],
            source="VRBench",
            split="test",
            metadata={"kind": "Event Attribution", "video_id": "vid"},
        )
        for number in (1, 2, 10)
    ],
}


def test_every_format_is_tried() -> None:
    assert set(EXPRESSIBLE) == set(FORMATS)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("name", FORMATS)
def test_samples_come_back_as_they_were_from_every_format(name: str, suffix: str, tmp_path: Path) -> None:
    if name == "vrbench" and suffix == ".csv":
        return  # a mapping of questions has no place in a table
    samples = [s if s.source else s.model_copy(update={"source": "LLaVA-Video-178K"}) for s in EXPRESSIBLE[name]]
    if suffix == ".parquet":  # Arrow has one type per column
        samples = [
            s.model_copy(update={"metadata": s.metadata if name == "vrbench" else {"kind": "x"}}) for s in samples
        ]
    path = tmp_path / f"rows{suffix}"
    assert write_rows(path, samples, name) == (1 if name == "vrbench" else len(samples))
    rows = read_rows(path)
    assert rows.format.name == name
    assert [row for _, row in rows] == samples


def test_a_published_vrbench_file_loads() -> None:
    path = os.environ.get("VTHINK_VRBENCH_SAMPLE")
    if not path:
        pytest.skip("VTHINK_VRBENCH_SAMPLE names no file")
    rows = read_rows(Path(path))
    samples = [row for _, row in rows]
    assert rows.format.name == "vrbench"
    assert all(isinstance(sample, Sample) for sample in samples)
    assert len(samples) == len({s.id for s in samples}) == 13
    first = samples[0]
    assert isinstance(first, Sample)
    assert (first.id, first.answer, len(first.options)) == ("TZk_p-q8Fzo-qa1", "D", 4)
    assert first.media.uri == "VRBench/videos/v001/TZk_p-q8Fzo.mp4"
    assert [(e.start_s, e.end_s) for e in first.evidence] == [(464, 508), (508, 549), (549, 764)]
    assert first.evidence[0].caption.startswith("A group of people explore")
    assert "[" not in first.evidence[0].caption


def test_a_vrbench_span_is_written_as_it_is_published() -> None:
    assert format_vrbench_span(464, 3700) == "[00:07:44->01:01:40]"


def test_a_published_trace_keeps_its_segments_and_can_be_trained_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", EXPRESSIBLE["video_thinker"][:1], "video_thinker")
    ((_, sample),) = read_rows(tmp_path / "rows.json")
    assert isinstance(sample, Sample)
    response = write_response(sample, "video_thinker")
    assert is_video_thinker_format(response)
    assert response.index(format_span(1, 3)) < response.index("It looks heavy") < response.index(format_span(5, 9))


# ------------------------------------------------------------------------------------------------------- in the wild

R1: dict[str, Any] = {
    "problem_id": 7,
    "problem": "What is lifted?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. a box", "B. a cat"],
    "solution": "<answer>B</answer>",
    "path": "./NeXT-QA/a.mp4",
    "data_source": "NeXT-QA",
}


def read_one(row: Any, tmp_path: Path, **options: Any) -> Sample | RowError:
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    ((line, sample),) = read_rows(tmp_path / "rows.json", **options)
    assert line == 1
    return sample


TOLERATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "blank data_source": ({"data_source": ""}, {"source": "NeXT-QA"}),
    "no data_source, no folder": ({"data_source": None, "path": "a.mp4"}, {"source": ""}),
    "options without letters": ({"options": ["a box", "a cat"]}, {"options": ("a box", "a cat")}),
    "options with (A)": ({"options": ["(A) a box", "(B) a cat"]}, {"options": ("a box", "a cat")}),
    "options with A)": ({"options": ["A) a box", "B) a cat"]}, {"options": ("a box", "a cat")}),
    "an option that only looks lettered": ({"options": ["a. m.", "p. m."]}, {"options": ("a. m.", "p. m.")}),
    "options by letter": ({"options": {"B": "a cat", "A": "a box"}}, {"options": ("a box", "a cat")}),
    "answer with a full stop": ({"solution": "<answer>B.</answer>"}, {"answer": "B"}),
    "answer in brackets": ({"solution": "<answer>(B)</answer>"}, {"answer": "B"}),
    "answer without tags": ({"solution": "B"}, {"answer": "B"}),
    "answer with its text": ({"solution": "<answer>B. a cat</answer>"}, {"answer": "B"}),
    "answer as text": ({"solution": "<answer>A cat</answer>"}, {"answer": "B"}),
    "lower case": ({"solution": "b"}, {"answer": "B"}),
    "thousands": ({"problem_type": "numerical", "options": [], "solution": "1,000"}, {"answer": "1000"}),
    "a unit": ({"problem_type": "regression", "options": [], "solution": "2.5 m²"}, {"answer": "2.5"}),
    "a currency": ({"problem_type": "numerical", "options": [], "solution": "$ 3.20"}, {"answer": "3.20"}),
    "a number that is no text": ({"problem_type": "numerical", "options": [], "solution": 4}, {"answer": "4"}),
    "leftover options": ({"problem_type": "free-form", "solution": "A box."}, {"options": (), "answer": "A box."}),
    "other spellings": ({"problem_type": "Multiple_Choice"}, {"problem_type": "multiple_choice"}),
    "no data_type": ({"data_type": "", "path": "./Math/a.PNG"}, {"media": Media(kind="image", uri="Math/a.PNG")}),
    "an empty process": ({"process": " "}, {"reasoning": None}),
    "further fields": ({"difficulty": 3}, {"metadata": {"difficulty": 3}}),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_has_one_meaning_is_tolerated(name: str, tmp_path: Path) -> None:
    changes, expected = TOLERATED[name]
    sample = read_one(R1 | changes, tmp_path)
    assert isinstance(sample, Sample), sample
    assert {key: getattr(sample, key) for key in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a letter beyond the options": ({"solution": "<answer>C</answer>"}, "neither a letter of the 2 options"),
    "no letter at all": ({"solution": "<answer>a dog</answer>"}, "neither a letter"),
    "letter and text differ": ({"solution": "<answer>A. a cat</answer>"}, "letter A and the text of option B"),
    "several letters": ({"solution": "<answer>A, B</answer>"}, "neither a letter"),
    "an empty answer": ({"solution": "<answer></answer>"}, "empty"),
    "no answer": ({"solution": None}, "no text"),
    "an unknown type": ({"problem_type": "essay"}, "unknown problem_type 'essay'; known: free_form"),
    "words for a number": ({"problem_type": "numerical", "solution": "many"}, "must be a number"),
    "two numbers": ({"problem_type": "numerical", "solution": "3 or 4"}, "must be a number"),
    "no path": ({"path": ""}, "no path"),
    "a path that is no text": ({"path": 5}, "no path"),
    "options that repeat": ({"options": ["a cat", "a cat"]}, "same text"),
    "one option": ({"options": ["a box"], "solution": "A"}, "2 to 26"),
    "options that are no list": ({"options": 3}, "no list"),
    "options lettered with a gap": ({"options": {"A": "x", "C": "y"}}, "not A, B, C"),
    "sound": ({"data_type": "audio"}, "media.kind"),
    "a field that is not there": ({"problem": None}, "question"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    changes, words = REFUSED[name]
    row = read_one(R1 | changes, tmp_path)
    assert isinstance(row, RowError), row
    assert words in row.reason
    assert "\n" not in row.reason
    assert '"problem_id": 7' in row.raw


def test_media_are_found_below_the_root_of_their_source(tmp_path: Path) -> None:
    roots = {"NeXT-QA": "s3://videos/nextqa/", "*": "/data"}
    for source, expected in (("NeXT-QA", "s3://videos/nextqa/NeXT-QA/a.mp4"), ("STAR", "/data/NeXT-QA/a.mp4")):
        sample = read_one(R1 | {"data_source": source}, tmp_path, roots=roots)
        assert isinstance(sample, Sample)
        assert sample.media.uri == expected
    absolute = read_one(R1 | {"path": "/x/a.mp4"}, tmp_path, roots=roots)
    assert isinstance(absolute, Sample)
    assert absolute.media.uri == "/x/a.mp4"


def test_a_users_own_table_needs_few_columns(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        'video,question,options,answer,camera\na.mp4,Which way?,"[""left"", ""right""]",right,3\n'
        "b.mp4,What happens?,,A ball rolls.,\n,No video?,,x,\n"
    )
    (_, first), (_, second), (line, bad) = read_rows(tmp_path / "mine.csv")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.id, first.answer, first.problem_type, first.metadata) == (
        "row-1",
        "B",
        "multiple_choice",
        {"camera": "3"},
    )
    assert (second.id, second.problem_type) == ("row-2", "free_form")
    assert line == 4
    assert isinstance(bad, RowError)
    assert "exactly one of video, image and path" in bad.reason


def test_one_bad_question_of_a_video_does_not_cost_the_others(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", EXPRESSIBLE["vrbench"], "vrbench")
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    row["mcq"]["qa2"]["answer"] = "E"
    row["mcq"]["qa10"] = None
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (_, first), (_, second), (line, third) = read_rows(tmp_path / "rows.jsonl")
    assert first == EXPRESSIBLE["vrbench"][0]
    assert isinstance(second, RowError)
    assert second.reason.startswith("qa2: the answer 'E' is neither")
    assert isinstance(third, RowError)
    assert line == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["A", "", "a. x", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ABx"), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_values_make_an_adapter_fail(name: str, data: st.DataObject) -> None:
    (good,) = WRITERS[name](EXPRESSIBLE[name][:1])
    places = [good, *(value for value in good.values() if isinstance(value, dict) and value)]
    if name == "vrbench":
        places.append(next(iter(good["mcq"].values())))
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    rows = SourceRows(FORMATS.get(name), {}, iter([(1, good)]))
    for _, row in rows:
        assert isinstance(row, Sample | RowError)


# ------------------------------------------------------------------------------------------------------------- files


def test_lines_of_a_list_are_those_of_the_file(tmp_path: Path) -> None:
    text = json.dumps([R1, 5, R1 | {"problem_type": "essay"}], indent=2)
    (tmp_path / "rows.json").write_text("\n\n" + text)
    found = list(read_rows(tmp_path / "rows.json"))
    lines = ("\n\n" + text).splitlines()
    assert [isinstance(row, RowError) for _, row in found] == [False, True, True]
    assert [lines[line - 1].strip()[0] for line, _ in found] == ["{", "5", "{"]
    assert "essay" in str(found[2][1])


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "cut off in a row": ('[{"a": 1},\n{"b": 2', r"rows\.json:2: not JSON"),
    "cut off between rows": ('[{"a": 1},\n', r"rows\.json:2: not JSON"),
    "not closed": ('[{"a": 1}\n', r"rows\.json:2: expected ',', found the end"),
    "no comma": ('[{"a": 1}\n{"b": 2}]', r"rows\.json:2: expected ',', found '{'"),
    "more behind it": ('[{"a": 1}]\n[2]', r"rows\.json:2: there is something behind"),
    "NaN": ('[{"a": NaN}]', "NaN is not a number"),
    "not UTF-8": (b'[{"a": "\xff"}]', "not UTF-8"),
    "too deep": ("[" * 200_000, "nested too deeply|not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_list_is_an_error_with_its_line(name: str, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    (tmp_path / "rows.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UserError, match=message) as error:
        list(read.read_objects(tmp_path / "rows.json"))
    assert "\n" not in str(error.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers() | st.none(), max_size=3)),
    st.sampled_from([None, 1]),
    st.integers(1, 9),
)
def test_a_list_read_in_pieces_of_any_size_is_what_json_reads(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    before = read._CHUNK_CHARACTERS
    read._CHUNK_CHARACTERS = size
    try:
        assert [value for _, value in read.read_objects(path)] == json.loads(path.read_text())
    finally:
        read._CHUNK_CHARACTERS = before


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_list_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps(R1 | {"problem_id": n, "process": "x" * 4000}) for n in range(5000)) + "]")
    size = path.stat().st_size
    assert size > 20e6
    assert peak_bytes(lambda: sum(1 for _ in read_rows(path))) < size / 2
    assert peak_bytes(lambda: json.loads(path.read_text())) > size  # what is measured can be exceeded


def test_files_that_fit_no_format_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"no format fits rows with the fields text; known formats: vthink, video_r1"):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="unknown format 'x'"):
        read_rows(tmp_path / "rows.jsonl", "x")
    (tmp_path / "rows.xml").touch()
    with pytest.raises(UserError, match=r"rows come as \.jsonl"):
        read_rows(tmp_path / "rows.xml")


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(R1) + "\n" + json.dumps(R1 | {"problem_id": 8}) + "\n{")
    found = list(read_rows(tmp_path / "rows.json"))
    assert [line for line, _ in found] == [1, 2, 3]
    assert isinstance(found[2][1], RowError)


def test_the_hub_out_of_reach_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf://datasets/a/b/rows\.json: cannot be fetched from the hub") as error:
        source_module.open_source("hf://datasets/a/b/rows.json", None, tmp_path)
    assert "\n" not in str(error.value)
    for wrong in ("hf://models/a/b/rows.json", "hf://datasets/a/rows.json", "hf://datasets/a/b/"):
        with pytest.raises(UserError, match="expected hf://datasets/"):
            source_module.open_source(wrong, None, tmp_path)


def test_media_of_rows_on_the_hub_count_from_the_rows() -> None:
    base = "hf://datasets/a/b@main/data/"
    assert source_module.resolve_uri("./v/a.mp4", base) == "hf://datasets/a/b@main/data/v/a.mp4"
    with pytest.raises(ValueError, match="leaves"):
        source_module.resolve_uri("../../../x.mp4", base)
