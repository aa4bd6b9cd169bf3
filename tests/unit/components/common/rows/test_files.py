"""Rows: what is one, what is not, and that neither writing nor reading changes them."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import (
    MAX_LINE_BYTES,
    RowError,
    numbered_objects,
    read_samples,
    to_line,
    write_samples,
)
from vthink.components.common.rows.sample import Evidence, Media, Sample

ROW: dict[str, Any] = {
    "id": "a",
    "media": {"kind": "video", "uri": "videos/a.mp4"},
    "question": "Where to?",
    "options": ["left", "right"],
    "problem_type": "multiple_choice",
    "answer": "B",
    "split": "test",
}

SAMPLES = [
    Sample.model_validate(ROW),
    Sample(
        id="ü",
        media=Media(kind="video", uri="s3://b/c.mp4", sha256="0" * 64, start_s=1.0, end_s=2.5),
        question="How many?",
        problem_type="numerical",
        answer="1,000",
        reasoning="Counted.",
        evidence=(Evidence(start_s=0, end_s=0.5, caption="one"), Evidence(start_s=0.5, end_s=1, caption="two")),
        source="x",
        split="train",
        metadata={"kind": "count", "nested": {"list": [1, 2.5, "a"], "flag": True}},
    ),
    Sample(
        id="i",
        media=Media(kind="image", uri="i.png"),
        question="What?",
        problem_type="free_form",
        answer="A cat\nsits.",
    ),
]


def changed(**changes: Any) -> dict[str, Any]:
    return {**ROW, **changes}


def read_one(row: Any) -> Sample | RowError:
    text = row if isinstance(row, bytes) else json.dumps(row).encode()
    (result,) = read_samples(io.BytesIO(text))
    return result


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no answer": ({k: v for k, v in ROW.items() if k != "answer"}, "'answer': Field required"),
    "no media": ({k: v for k, v in ROW.items() if k != "media"}, "'media': Field required"),
    "unknown problem type": (changed(problem_type="essay"), "'problem_type'"),
    "unknown key": (changed(questoin="x"), "did you mean 'question'"),
    "answer is not an option": (changed(answer="C"), "letters A to B"),
    "answer is the option's text": (changed(answer="left"), "letters A to B"),
    "options missing": (changed(options=[]), "2 to 26 options"),
    "options twice the same": (changed(options=["left", "left"]), "same text"),
    "empty option": (changed(options=["left", " "]), "option B is empty"),
    "options of a free answer": (changed(problem_type="free_form", answer="left"), "options are for multiple_choice"),
    "answer is not a number": (changed(options=[], problem_type="numerical", answer="many"), "must be a number"),
    "answer is infinite": (changed(options=[], problem_type="regression", answer="inf"), "must be a number"),
    "empty question": (changed(question="  "), "question is empty"),
    "unknown media kind": (changed(media={"kind": "sound", "uri": "a.mp3"}), "media.kind"),
    "part ends before it starts": (changed(media={**ROW["media"], "start_s": 5, "end_s": 2}), "not before end_s"),
    "part of an image": (changed(media={"kind": "image", "uri": "a.png", "start_s": 1}), "no start_s"),
    "checksum of another kind": (changed(media={**ROW["media"], "sha256": "abc"}), "sha256"),
    "evidence ends before it starts": (changed(evidence=[{"start_s": 2, "end_s": 1, "caption": "x"}]), "after end_s"),
    "evidence before the video": (changed(evidence=[{"start_s": -2, "end_s": 1, "caption": "x"}]), "start_s"),
    "split with a path": (changed(split="../x"), "letters, digits"),
    "a list": ([1, 2], "expected an object"),
    "a number": (5, "expected an object"),
    "not JSON": (b'{"id": "a"', "not JSON"),
    "NaN": (json.dumps(changed(metadata={"x": float("nan")})).encode(), "NaN"),
    "not UTF-8": (b'{"id": "\xff"}', "not UTF-8"),
    "half a surrogate in a whole row": (json.dumps(changed(question="\ud800")).encode(), "surrogate"),
    "a number of 5,000 digits": (b'{"id": ' + b"1" * 5000 + b"}", "digits"),
    "nested too deeply": (b"[" * 200_000, "nested|not JSON"),
    "longer than a line may be": (b'"' + b"x" * MAX_LINE_BYTES + b'"', "longer than"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_comes_out_with_its_line_and_reason(name: str) -> None:
    row, word = BAD_ROWS[name]
    text = row if isinstance(row, bytes) else json.dumps(row).encode()
    good = to_line(SAMPLES[0]).encode()
    first, bad, last = read_samples(io.BytesIO(good + b"\n" + text + b"\n" + good))
    assert first == last == SAMPLES[0]
    assert isinstance(bad, RowError)
    assert bad.line == 2
    assert any(part in bad.reason for part in word.split("|")), bad.reason
    assert "\n" not in str(bad)
    assert len(bad.raw) <= 2000


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_fail(data: bytes) -> None:
    for row in read_samples(io.BytesIO(data)):
        assert isinstance(row, Sample | RowError)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Sample.model_fields]), json_values))
def test_no_values_make_reading_fail(changes: dict[str, Any]) -> None:
    (row,) = read_samples(io.StringIO(json.dumps({**ROW, **changes})))
    assert isinstance(row, Sample | RowError)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_survive_writing_and_reading(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    assert write_samples(path, iter(SAMPLES)) == 3
    assert list(read_samples(path)) == SAMPLES
    assert [line for line, _ in numbered_objects(path)] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_samples(tmp_path / name, SAMPLES)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_nulls_that_arrow_fills_in_do_not_come_back(tmp_path: Path) -> None:
    """Arrow gives every row the keys of all; a null key would become, for example, a second video placeholder."""
    rows = [changed(metadata={"kind": "direction"}), changed(id="b", metadata={"fps": 2.0}, reasoning="Because.")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    raw = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert raw[0]["metadata"] == {"kind": "direction", "fps": None}
    first, second = read_samples(tmp_path / "rows.parquet")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert first.metadata == {"kind": "direction"}
    assert second.metadata == {"fps": 2.0}
    assert "reasoning" not in json.loads(to_line(first))


def test_null_counts_as_not_there() -> None:
    row = read_one(changed(reasoning=None, evidence=None, media={**ROW["media"], "start_s": None}))
    assert row == SAMPLES[0]


def test_blank_lines_and_a_byte_order_mark_are_no_rows() -> None:
    text = b"\xef\xbb\xbf" + to_line(SAMPLES[0]).encode() + b"\r\n\r\n   \n" + to_line(SAMPLES[2]).encode()
    assert list(read_samples(io.BytesIO(text))) == [SAMPLES[0], SAMPLES[2]]
    assert [line for line, _ in numbered_objects(io.BytesIO(text))] == [1, 4]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("rows.parquet", b"no parquet", "not a readable Parquet file"),
        ("rows.parquet", b"PAR1" + bytes(100) + b"PAR1", "not a readable Parquet file"),
        ("rows.csv", b"a,b", ".jsonl or .parquet"),
        ("missing.jsonl", None, "no such file"),
    ],
)
def test_a_file_that_holds_no_rows_is_one_clear_error(
    name: str, content: bytes | None, word: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=word) as error:
        list(read_samples(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_samples(path, SAMPLES[:1])

    def broken() -> Any:
        yield SAMPLES[1]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_samples(path, broken())
    assert list(read_samples(path)) == SAMPLES[:1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_sample_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(SAMPLES)) == SAMPLES


def test_importing_the_module_needs_no_torch_and_no_pyarrow() -> None:
    script = (
        "import sys, vthink.components.common.rows.prepared, vthink.components.common.rows.files;"
        "print({'torch', 'pyarrow', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
