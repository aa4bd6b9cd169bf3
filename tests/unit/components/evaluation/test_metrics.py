import sys
from types import ModuleType

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.metrics import METRICS, Metric, metric_named
from vthink.components.evaluation.statistics import Resampling
from vthink.components.evaluation.summary import summarize

from .small_world import World, graded


@pytest.fixture
def my_metrics(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of one's own with two metrics; the registry is as before after the test."""
    module = ModuleType("my_metrics")
    module.WORDS = Metric(
        name="words",
        title="words",
        description="words of a response",
        measure=lambda response: float(len(response.text.split())),
        higher_is_better=False,
        bounded=False,
    )
    module.TWIN = Metric("accuracy", "", "", lambda response: 1.0)
    monkeypatch.setitem(sys.modules, "my_metrics", module)
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS.items()))
    return module


def test_a_metric_of_ones_own_is_measured_summarized_and_named_in_gate_rules(my_metrics, world: World):
    rules = [{"metric": "words", "at_most": 100}]
    with pytest.raises(ConfigError, match="unknown metric 'words'"):
        EvaluationConfig.load({"gate": rules})
    EvaluationConfig.load({"metrics": ["my_metrics:WORDS"], "gate": rules})
    items = [graded(world.samples[0], "one two three"), graded(world.samples[2], "one")]
    assert [item.metrics["words"] for item in items] == [3.0, 1.0]
    estimate = summarize(items, {}, Resampling(resamples=200)).metrics["words"]
    assert estimate.value == 2.0
    assert estimate.high > 1  # no share


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("words", "unknown metric 'words'"),
        ("my_metrics:NOTHING", "metric 'my_metrics:NOTHING': my_metrics has no 'NOTHING'"),
        ("my_metrics:TWIN", "there is another metric 'accuracy'; choose another name"),
    ],
)
def test_a_metric_that_cannot_be_had_is_a_mistake_of_the_configuration(my_metrics, name, mistake):
    with pytest.raises(ConfigError, match=f"'metrics': .*{mistake}"):
        EvaluationConfig.load({"metrics": [name]})


def test_every_metric_says_what_it_is_and_a_failed_item_has_its_worst_value(world: World):
    assert all(metric.description for _, metric in METRICS.items())
    ocr = world.samples[-1]
    failed = graded(ocr, "", error="OSError: gone")
    assert failed.metrics["wer"] == METRICS.get("wer").worst == 1.0
    assert failed.metrics["accuracy"] == 0.0


def test_a_metric_that_this_process_does_not_know_is_a_plain_share():
    assert metric_named("theirs").title == "theirs"
    assert metric_named("theirs").bounded


@pytest.mark.parametrize(
    ("place", "thought", "answer", "follows"),
    [
        (0, "It gets brighter, so the answer is A.", "A", 1.0),
        (0, "It gets brighter, so the answer is A.", "B", 0.0),
        (0, "It changes.", "A", None),
        (1, "It is visible for 2 seconds.", "3", 0.0),
        (1, "It is visible for 3 seconds.", "3", 1.0),
        (1, "From 2 to 5, and then 7 to 9.", "3", None),
    ],
)
def test_an_answer_follows_from_its_own_reasoning_where_that_concludes_anything(
    world: World, place: int, thought: str, answer: str, follows: float | None
):
    """Whether it is right or not: in the generated world "visible for 2 seconds … 3" was counted right."""
    item = graded(world.samples[place], f"<think>{thought}</think><answer>{answer}</answer>")
    assert item.metrics.get("follows") == follows
    in_segment = f"<time>00:01-00:03</time><caption>a change</caption><think>{thought}</think><answer>{answer}</answer>"
    assert graded(world.samples[place], in_segment).metrics.get("follows") == follows
