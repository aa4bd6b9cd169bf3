"""What is measured of one answer: the registry of metrics.

Adding a metric is one `Metric` here, or in a module of one's own that ``evaluation.metrics`` names
(``my_module:METRIC``): items, summaries, comparisons, gate rules and reports take it from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from ..common.answers import grading, responses
from ..common.answers.formats import follows_format
from ..common.answers.grading import MAX_ANSWER_CHARS
from ..common.errors import UserError
from ..common.registry import Registry
from ..common.rows.sample import Sample
from .captions import captioning
from .grounding import grounding

Rule = Callable[[Sample, str | None], float]
"""A benchmark's own grade of an answer, in [0, 1]."""


@dataclass(frozen=True)
class Response:
    """A response to a question, taken apart once for all metrics."""

    sample: Sample
    text: str
    answer_format: str
    """The shape that the model was asked for."""
    rule: Rule | None = None
    """Grades the questions that name a rule of their benchmark (``metadata.rule``)."""

    @cached_property
    def parsed(self) -> responses.ParsedResponse:
        """Segments, reasoning and answer."""
        return responses.parse_response(self.text)

    @cached_property
    def grounding(self) -> Mapping[str, float]:
        """Agreement of its time spans with the evidence; empty where none is known."""
        spans = [(segment.start_s, segment.end_s) for segment in self.parsed.segments]
        return grounding(spans, self.sample) if self.sample.evidence else {}

    @cached_property
    def captioning(self) -> Mapping[str, float]:
        """Agreement of its captions with those of the evidence; empty where none say what is seen."""
        captioned = self.sample.evidence and self.sample.metadata.get("captioned", True)
        return captioning(self.parsed.segments, self.sample) if captioned else {}


@dataclass(frozen=True, slots=True)
class Metric:
    """A number per answer, averaged over items."""

    name: str
    """In items, results and gate rules."""
    title: str
    """Heading of its column in reports; empty: it has none."""
    description: str
    """What it is, with its source."""
    measure: Callable[[Response], float | None]
    """Its value for an answer; None where it does not apply to the question."""
    higher_is_better: bool = True
    bounded: bool = True
    """Whether it is a share in [0, 1], which reports show in percent."""

    @property
    def worst(self) -> float:
        """What an item counts that failed."""
        return 0.0 if self.higher_is_better else 1.0


def _own_grade(response: Response) -> float | None:
    """The grade of a question that its benchmark grades by a rule of its own."""
    if response.rule is None or "rule" not in response.sample.metadata:
        return None
    return response.rule(response.sample, response.parsed.answer)


def _accuracy(response: Response) -> float:
    own = _own_grade(response)
    return float(grading.is_correct(response.sample, response.parsed.answer)) if own is None else own


def _accuracy_paper(response: Response) -> float:
    return float(grading.is_correct(response.sample, responses.published_answer(response.text), "paper"))


def _score(response: Response) -> float:
    own = _own_grade(response)
    return grading.grade(response.sample, response.parsed.answer) if own is None else own


def _format(response: Response, style: str | None = None) -> float:
    return float(follows_format(response.sample, response.text, style or response.answer_format))


def _mra(response: Response, inclusive: bool) -> float | None:
    if response.sample.problem_type not in ("regression", "numerical"):
        return None
    return grading.mean_relative_accuracy(_text(response), response.sample.answer, inclusive=inclusive)


def _wer(response: Response) -> float | None:
    if response.sample.problem_type != "ocr":
        return None
    return grading.word_error_rate(_text(response), response.sample.answer)


def _rouge(response: Response) -> float | None:
    if response.sample.problem_type != "free_form":
        return None
    return grading.rouge_f(_text(response), response.sample.answer)


def _text(response: Response) -> str:
    return (response.parsed.answer or "")[:MAX_ANSWER_CHARS]


def _of_spans(name: str, response: Response) -> float | None:
    return response.grounding.get(name)


def _of_captions(name: str, response: Response) -> float | None:
    return response.captioning.get(name)


_LIST = (
    Metric("accuracy", "accuracy", "share of questions answered right (`common/answers`, strict)", _accuracy),
    Metric(
        "accuracy_paper", "accuracy, graded as published", "the same, graded as Video-R1's code does", _accuracy_paper
    ),
    Metric("score", "graded score", "grade of the answer with partial credit (Video-R1's accuracy reward)", _score),
    Metric("format_rate", "format", "share of responses in the shape that the model's prompt asks for", _format),
    Metric("format_video_r1", "", "share in Video-R1's shape", partial(_format, style="video_r1")),
    Metric("format_video_thinker", "", "share in Video-Thinker's shape", partial(_format, style="video_thinker")),
    Metric("mra", "MRA", "mean relative accuracy, errors < 1 − θ (Video-R1)", partial(_mra, inclusive=False)),
    Metric("mra_inclusive", "MRA (≤)", "the same, errors <= 1 − θ (lmms-eval)", partial(_mra, inclusive=True)),
    Metric("wer", "WER", "word error rate of read text", _wer, higher_is_better=False, bounded=False),
    Metric("rouge", "ROUGE", "mean of ROUGE-1, ROUGE-2 and ROUGE-L F", _rouge),
    *(
        Metric(name, title, description, partial(_of_spans, name))
        for name, title, description in (
            ("miou", "mIoU", "per true span the greatest IoU of the response's spans (Video-Thinker)"),
            ("recall_at_30", "R@0.3", "share of true spans that a span of the response meets with IoU 0.3"),
            ("recall_at_50", "R@0.5", "the same with IoU 0.5"),
            ("recall_at_70", "R@0.7", "the same with IoU 0.7"),
            ("clue_iou", "clue IoU", "IoU of the unions of true and of predicted spans (CG-Bench)"),
        )
    ),
    *(
        Metric(
            f"caption_{name}",
            title,
            f"{title} of the captions of the same time",
            partial(_of_captions, f"caption_{name}"),
        )
        for name, title in (
            ("rouge_l", "caption ROUGE-L"),
            ("bleu_1", "caption BLEU-1"),
            ("bleu_4", "caption BLEU-4"),
            ("meteor", "caption METEOR"),
        )
    ),
)

METRICS: Registry[Metric] = Registry("metric", Metric, {metric.name: metric for metric in _LIST})
"""The metrics of every item, in the order in which reports show them."""


def add_metrics(references: Iterable[str]) -> None:
    """Register the metrics of ``my_module:METRIC`` references; one that is there already is left as it is.

    Raises:
        UserError: there is no such metric, or another one has its name.
    """
    for reference in references:
        metric = METRICS.get(reference)
        if metric.name not in METRICS:
            METRICS.register(metric.name, metric)
        elif METRICS.get(metric.name) is not metric:
            raise UserError(f"metric '{reference}': there is another metric '{metric.name}'; choose another name")


def metric_named(name: str) -> Metric:
    """The metric of a name that a result holds: a registered one, or a plain share that this process does not know."""
    if name in METRICS:
        return METRICS.get(name)
    return Metric(name, name, name, lambda response: None)


def measure(response: Response, failed: bool) -> dict[str, float]:
    """Every metric that applies to a question; at its worst where asking it failed."""
    values = {name: metric.measure(response) for name, metric in METRICS.items()}
    return {name: METRICS.get(name).worst if failed else value for name, value in values.items() if value is not None}
