import json
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.rows.files import write_samples
from vthink.components.common.rows.sample import Sample
from vthink.components.evaluation.benchmarks.folder import DataFolder, load_questions
from vthink.components.evaluation.benchmarks.registry import find_benchmark
from vthink.components.evaluation.scores import estimates

from .reading import RESAMPLING, graded

OWN = """
name: mine
annotations: qa.jsonl
videos: clips/{video}.mp4
fields: {id: key, options: choices, answer: truth, kind: category, start_s: from}
"""


def test_a_set_of_ones_own_is_described_by_a_short_yaml_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(OWN)
    rows = [
        {
            "key": "k1",
            "video": "a",
            "question": "Who?",
            "choices": ["x", "y"],
            "truth": "y",
            "category": "p",
            "from": 1,
        },
        {"key": "k2", "video": "b", "question": "How many?", "truth": 3, "category": "q"},
        {"key": "k3", "video": "b", "question": "Tell.", "truth": "a story", "category": "q"},
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = find_benchmark(str(tmp_path / "mine.yaml"))
    found = load_questions(
        benchmark, DataFolder("data", ["qa.jsonl", "clips/a.mp4", "clips/b.mp4"]), lambda n: tmp_path / n
    )
    assert [(s.id, s.problem_type, s.answer) for s in found.samples] == [
        ("k1", "multiple_choice", "B"),
        ("k2", "numerical", "3"),
        ("k3", "free_form", "a story"),
    ]
    assert found.samples[0].media.start_s == 1
    rows_ = graded(benchmark, found.samples, ["<answer>B</answer>", "<answer>4</answer>", "<answer>a story</answer>"])
    assert estimates(benchmark.scores, rows_, RESAMPLING)["accuracy"].value == pytest.approx(2 / 3, abs=1e-6)


def test_a_set_of_ones_own_may_hold_rows_of_ours_with_evidence(tmp_path: Path):
    evidence = [{"start_s": 1, "end_s": 3, "caption": "a dog runs"}]
    sample = Sample.model_validate(
        {
            "id": "s",
            "media": {"kind": "video", "uri": "a.mp4"},
            "question": "What?",
            "problem_type": "free_form",
            "answer": "a dog runs",
            "evidence": evidence,
        }
    )
    write_samples(tmp_path / "rows.parquet", [sample])
    (tmp_path / "mine.yaml").write_text("name: mine\nannotations: rows.parquet\n")
    benchmark = find_benchmark(str(tmp_path / "mine.yaml"))
    found = load_questions(benchmark, DataFolder("data", ["rows.parquet", "a.mp4"]), lambda name: tmp_path / name)
    assert found.samples == [sample]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: mine\n", "'annotations': Field required"),
        ("name: mine\nannotation: x\nannotations: x", "unknown key 'annotation'; did you mean 'annotations'"),
        ("name: Mine!\nannotations: x", "'name'"),
        ("name: mine\nannotations: x\nvideos: clips\nfields: {}", "'videos' must hold {video}"),
        ("a: [", "not YAML"),
        ("- a", "should be a valid dictionary"),
    ],
)
def test_a_mistake_in_the_description_is_one_line(text, said, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        find_benchmark(str(path))
    assert "\n" not in str(raised.value)
