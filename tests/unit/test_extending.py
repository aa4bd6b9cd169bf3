"""What CONTRIBUTING.md says about adding things, done: its own blocks, in a folder outside of the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from vthink.components.common.answers.formats import follows_format, write_response
from vthink.components.common.model.prompts import get_template, question_text
from vthink.components.common.rows.sample import Sample
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep.formats.read import read_rows
from vthink.components.evaluation.benchmarks.folder import DataFolder, load_questions
from vthink.components.evaluation.benchmarks.registry import find_benchmark
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.metrics import METRICS, Response, measure_response
from vthink.components.evaluation.rules import read_rule
from vthink.pipelines.config import Config, load

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """A folder on the path with ``my_module.py`` and ``my.yaml``, as they are printed."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "my_module.py").write_text(block("python"))
    (folder / "my.yaml").write_text(block("yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(METRICS, "_entries", dict(METRICS.items()))
        yield folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return load(folder / "my.yaml")


@pytest.fixture
def sample(folder: Path, config: Config) -> Sample:
    """A row in the format of the module."""
    (folder / "rows.jsonl").write_text(json.dumps({"clip": "a.mp4", "q": "What bounces?", "a": "ball"}) + "\n")
    ((_, row),) = read_rows(folder / "rows.jsonl", config.data.format)
    assert isinstance(row, Sample)
    return row


def test_a_row_format_reads_rows(sample: Sample):
    assert (sample.media.uri, sample.question, sample.answer) == ("a.mp4", "What bounces?", "ball")


def test_a_prompt_template_asks_and_its_answer_format_writes_and_checks(config: Config, sample: Sample):
    template = get_template(config.model.prompt)
    assert question_text(sample.question, (), "free_form", template).endswith("Answer in one word.")
    assert write_response(sample, template.answer_format) == "ball"
    assert follows_format(sample, "ball", template.answer_format)
    assert not follows_format(sample, "A ball.", template.answer_format)


def test_a_reward_counts_with_its_weight(config: Config, sample: Sample):
    from vthink.components.grpo.rewards import Group, reward_functions
    from vthink.components.grpo.rollouts import score_group

    group = Group(sample=sample, texts=("ball", "a ball, I think"), token_counts=(1, 4))
    rewards = score_group(group, reward_functions(config.grpo.reward_config))
    assert config.grpo.reward_config.names[-1] == "brevity"
    assert rewards[:, -1].tolist() == pytest.approx([0.2, 0.05])


def test_a_metric_is_measured_and_can_be_ruled_by(config: Config, sample: Sample):
    assert config.evaluation.metrics == ("my_module:WORDS",)
    assert measure_response(Response(sample, "a red ball", "video_r1"), failed=False)["words"] == 3.0
    rule = read_rule({"metric": "words", "at_most": 50}, "here")
    assert EvaluationConfig(metrics=("my_module:WORDS",), gate=(rule,)).gate[0].metric == "words"


def test_a_benchmark_reads_its_questions(folder: Path):
    row = {"id": "q1", "video": "a.mp4", "question": "Which way?", "options": ["left", "right"], "answer": "B"}
    (folder / "quiz.json").write_text(json.dumps([row]))
    names = DataFolder("outside", ["quiz.json", "videos/a.mp4"])
    (question,) = load_questions(find_benchmark("my_module:QUIZ"), names, folder.joinpath).samples
    assert (question.media.uri, question.answer) == ("videos/a.mp4", "B")


def test_a_model_family_is_built(config: Config):
    from vthink.components.common.model.tiny import build_tiny

    model, processor = build_tiny(config.model.tiny, VideoConfig(), 0)
    assert model.config.model_type == "qwen2_5_vl"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"


# --- what it names


def named_files(text: str) -> set[str]:
    """Paths of files and folders of the repository in code quotes."""
    quoted = re.findall(r"`([\w.]+(?:/[\w.]+)*/?)`", text)
    return {name for name in quoted if re.match(r"(components|pipelines|k8s|docker|tests|\.ci)/", name)}


def missing(text: str, root: Path) -> set[str]:
    return {name for name in named_files(text) if not (root / name).exists()}


def test_every_file_that_contributing_names_exists():
    assert len(named_files(TEXT)) > 40
    assert missing(TEXT, Path(__file__).parents[2]) == set()


def test_a_file_that_is_gone_would_be_noticed(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    assert missing("`tests/` mirrors; `components/gone.py` is run; `make test`", tmp_path) == {"components/gone.py"}
