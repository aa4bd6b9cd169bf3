"""What is measured of one answer: the registry of metrics, and the agreement of spans and captions with the evidence.

Adding a metric is one `Metric` here, or in a module of one's own that ``evaluation.metrics`` names
(``my_module:METRIC``): items, summaries, comparisons, gate rules and reports take it from the registry."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..common.answers import grading, responses
from ..common.answers.formats import follows_format
from ..common.answers.grading import MAX_ANSWER_CHARS
from ..common.answers.reading import read_answer
from ..common.answers.responses import Segment, Span, grounding_scores, span_iou
from ..common.registry import Registry
from ..common.rows.sample import Sample
from .conditions import ORDERED, kind_of, video_of
from .item import Item

RIGHT_AT = 0.5  # a benchmark's own grade from which an answer is right (of a span: IoU)
MAX_CLUES = 5  # CG-Bench reads no more intervals of a response than these
_MAX_CAPTION_CHARS = 2000


def grounding(predicted: Sequence[Span], sample: Sample) -> dict[str, float]:
    """mIoU and recall of predicted time spans against the evidence of a sample (Video-Thinker's
    definition), and the IoU of their unions (``clue_iou``, CG-Bench's run/utils.py)."""
    truth = [(span.start_s, span.end_s) for span in sample.evidence]
    scores = grounding_scores(predicted, truth)
    measured = {"miou": scores["miou"]} | {f"recall_at_{k}": scores[f"r@0.{k // 10}"] for k in (30, 50, 70)}
    return measured | {"clue_iou": union_iou(predicted[:MAX_CLUES], truth)}


def union_iou(first: Sequence[Span], second: Sequence[Span]) -> float:
    """IoU of the union of some spans with the union of others, in seconds; 0 where neither has a length."""
    ends = sorted({point for span in (*first, *second) for point in span if math.isfinite(point)})
    both = either = 0.0
    for start, end in pairwise(ends):
        inside = [any(span[0] <= start and end <= span[1] for span in spans) for spans in (first, second)]
        both += (end - start) * all(inside)
        either += (end - start) * any(inside)
    return both / either if either > 0 else 0.0


def mean_span(samples: Iterable[Sample]) -> Span | None:
    """The mean start and end, in seconds, of all evidence: what one can know about a span without looking."""
    spans = [(span.start_s, span.end_s) for sample in samples for span in sample.evidence]
    if not spans:
        return None
    start, end = np.mean(spans, axis=0)
    return float(start), float(end)


def baseline_items(
    samples: Iterable[Sample], durations_s: Mapping[str, float], typical: Span | None
) -> dict[str, list[Item]]:
    """Grounding that needs no model: always the whole clip, and always the `mean_span` of the training data.
    ``durations_s`` are the lengths of the questions' clips, by id."""
    baselines: dict[str, list[Item]] = {"whole_clip": [], "mean_training_span": []}
    for sample in samples:
        if sample.evidence:
            duration_s = durations_s[sample.id]
            baselines["whole_clip"].append(_baseline_item(sample, (0.0, duration_s)))
            if typical is not None:
                span = (min(typical[0], duration_s), min(typical[1], duration_s))
                baselines["mean_training_span"].append(_baseline_item(sample, span))
    return {name: items for name, items in baselines.items() if items}


def _baseline_item(sample: Sample, span: Span) -> Item:
    return Item(
        id=sample.id,
        video=video_of(sample),
        condition=ORDERED,
        problem_type=sample.problem_type,
        kind=kind_of(sample),
        metrics=grounding([span], sample),
    )


# -- captions --------------------------------------------------------------------------------------------------


def captioning(segments: Sequence[Segment], sample: Sample) -> dict[str, float]:
    """How well the captions of a response describe the evidence, averaged over its spans.

    Each true span is compared with the caption of the segment that overlaps it most (none: 0): ROUGE-L F,
    BLEU with unigrams (the paper's BLEU@1) and up to 4-grams (smoothed), and METEOR where its word lists are
    installed. How Video-Thinker paired captions is UNVERIFIED."""
    scores = []
    for truth in sample.evidence:
        span = (truth.start_s, truth.end_s)
        overlap, _, caption = max(
            ((span_iou((s.start_s, s.end_s), span), -i, s.caption) for i, s in enumerate(segments)),
            default=(0.0, 0, ""),
        )
        scores.append(_caption_scores(caption if overlap > 0 else "", truth.caption))
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _caption_scores(caption: str, truth: str) -> dict[str, float]:
    words, wanted = (_words(text[:_MAX_CAPTION_CHARS]) for text in (caption, truth))
    names = ("caption_rouge_l", "caption_bleu_1", "caption_bleu_4", *(("caption_meteor",) if _meteor() else ()))
    if not words or not wanted:
        return dict.fromkeys(names, 0.0)
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    measured = [
        _rouge_l().score(" ".join(wanted), " ".join(words))["rougeL"].fmeasure,
        *(sentence_bleu([wanted], words, weights, smoothing_function=smooth) for weights in ((1,), (0.25,) * 4)),
        *([meteor(wanted, words)] if (meteor := _meteor()) else []),
    ]
    return dict(zip(names, map(float, measured), strict=True))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class _Stems:
    """Words as rouge-score takes them (its own tokenizer knows a-z and 0-9 alone)."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 else word for word in _words(text)]


@lru_cache(maxsize=1)
def _rouge_l() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Stems())


@lru_cache(maxsize=1)
def _meteor() -> Callable[[list[str], list[str]], float] | None:
    """METEOR, or None where nltk's word lists are not installed."""
    import nltk
    from nltk.translate.meteor_score import single_meteor_score

    try:
        nltk.data.find("corpora/wordnet.zip")
        single_meteor_score(["a"], ["a"])
    except LookupError:
        return None
    return single_meteor_score


def left_out_metrics(samples: Iterable[Sample]) -> dict[str, str]:
    """Metrics that cannot be computed here, with what to do."""
    captions = any(sample.evidence and sample.metadata.get("captioned", True) for sample in samples)
    if captions and _meteor() is None:
        return {"caption_meteor": "nltk's word lists are not installed (python -m nltk.downloader wordnet)"}
    return {}


Rule = Callable[[Sample, str | None], float]  # a benchmark's own grade of an answer, in [0, 1]


@dataclass(frozen=True)
class Response:
    """A response to a question, taken apart once for all metrics."""

    sample: Sample
    text: str
    answer_format: str  # the shape that the model was asked for
    rule: Rule | None = None  # grades the questions that name a rule of their benchmark (``metadata.rule``)
    truncated: bool = False  # whether it reached its longest length

    @cached_property
    def answer(self) -> str | None:
        """What it answers, inside of tags or outside."""
        return read_answer(self.sample, self.parsed, cut_off=self.truncated)

    @cached_property
    def parsed(self) -> responses.ParsedResponse:
        """Segments, reasoning and answer."""
        return responses.parse_response(self.text)

    @cached_property
    def evidence(self) -> Mapping[str, float]:
        """Agreement of its time spans, and of its captions where the truth's say what is seen, with the evidence."""
        sample, segments = self.sample, self.parsed.segments
        if not sample.evidence:
            return {}
        spans = grounding([(segment.start_s, segment.end_s) for segment in segments], sample)
        return spans | (captioning(segments, sample) if sample.metadata.get("captioned", True) else {})

    @property
    def answer_text(self) -> str:
        """The answer, as far as it is looked at."""
        return (self.answer or "")[:MAX_ANSWER_CHARS]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number per answer, averaged over items."""

    name: str  # in items, results and gate rules
    title: str  # heading of its column in reports; empty: it has none
    description: str  # what it is, with its source
    measure: Callable[[Response], float | None]  # its value for an answer; None where it does not apply to the question
    higher_is_better: bool = True
    bounded: bool = True  # whether it is a share in [0, 1], which reports show in percent

    @property
    def worst(self) -> float:
        """What an item counts that failed."""
        return 0.0 if self.higher_is_better or self.name == "truncated" else 1.0  # what failed was not cut off


def _own_grade(response: Response) -> float | None:
    """The grade of a question that its benchmark grades by a rule of its own."""
    if response.rule is None or "rule" not in response.sample.metadata:
        return None
    return response.rule(response.sample, response.answer)


def _accuracy(response: Response) -> float:
    own = _own_grade(response)
    return float(grading.is_correct(response.sample, response.answer) if own is None else own >= RIGHT_AT)


def _accuracy_paper(response: Response) -> float:
    return float(grading.is_correct(response.sample, responses.published_answer(response.text), "paper"))


def _score(response: Response) -> float:
    own = _own_grade(response)
    return grading.grade(response.sample, response.answer) if own is None else own


def _format(response: Response, style: str | None = None) -> float | None:
    style = style or response.answer_format  # nobody knows what stored answers were asked for
    return float(follows_format(response.sample, response.text, style)) if style else None


def _mra(response: Response, inclusive: bool) -> float | None:
    if response.sample.problem_type not in ("regression", "numerical"):
        return None
    return grading.mean_relative_accuracy(response.answer_text, response.sample.answer, inclusive=inclusive)


def _mra_paper(response: Response) -> float | None:
    if response.sample.problem_type not in ("regression", "numerical"):
        return None
    return grading.published_mra(responses.published_answer(response.text), response.sample.answer)


def _of_type(problem_type: str, measured: Callable[[str, str], float], response: Response) -> float | None:
    sample = response.sample
    return measured(response.answer_text, sample.answer) if sample.problem_type == problem_type else None


def _follows(response: Response) -> float | None:
    """Whether the answer is the one that the reasoning comes to; None where that comes to none."""
    sample, parsed = response.sample, response.parsed
    answer = response.answer
    if not parsed.tagged or answer is None or sample.problem_type in ("ocr", "free_form"):
        return None
    thought = parsed.reasoning or "\n".join(filter(None, (segment.thought for segment in parsed.segments)))
    concluded = read_answer(sample, responses.parse_response(responses.without_tags(thought)))
    if concluded is None:
        return None
    if sample.problem_type == "multiple_choice":
        letters = [grading.extract_letter(text, len(sample.options), sample.options) for text in (answer, concluded)]
        return float(letters[0] == letters[1])
    numbers = [grading.extract_number(text) for text in (answer, concluded)]
    return float(numbers[0] == numbers[1])


def _of_evidence(name: str, response: Response) -> float | None:
    return response.evidence.get(name)


_LIST = (
    Metric("accuracy", "accuracy", "share of questions answered right (`common/answers`, strict)", _accuracy),
    Metric(
        "accuracy_paper", "accuracy, graded as published", "the same, graded as Video-R1's code does", _accuracy_paper
    ),
    Metric(
        "answer_found", "answered", "share of responses with an answer, tagged or not", lambda r: float(bool(r.answer))
    ),
    Metric(
        "tagged",
        "tagged",
        "share of responses with an answer inside of <answer>",
        lambda r: float(r.parsed.tagged and bool(r.answer)),
    ),
    Metric(
        "truncated",
        "truncated",
        "share of responses that reached the longest length",
        lambda r: float(r.truncated),
        False,
    ),
    Metric(
        "follows", "follows", "share of answers that are what their own reasoning concludes, where it does", _follows
    ),
    Metric("score", "graded score", "grade of the answer with partial credit (Video-R1's accuracy reward)", _score),
    Metric("format_rate", "format", "share of responses in the shape that the model's prompt asks for", _format),
    Metric("format_video_r1", "", "share in Video-R1's shape", partial(_format, style="video_r1")),
    Metric("format_video_thinker", "", "share in Video-Thinker's shape", partial(_format, style="video_thinker")),
    Metric("mra", "MRA", "mean relative accuracy, errors < 1 − θ (Video-R1)", partial(_mra, inclusive=False)),
    Metric("mra_inclusive", "MRA (≤)", "the same, errors <= 1 − θ (lmms-eval)", partial(_mra, inclusive=True)),
    Metric(
        "mra_paper",
        "MRA as published",
        "MRA of the number that Video-R1's code reads: `float` of all of the answer",
        _mra_paper,
    ),
    Metric(
        "wer", "WER", "word error rate of read text", partial(_of_type, "ocr", grading.word_error_rate), False, False
    ),
    Metric("rouge", "ROUGE", "mean of ROUGE-1, ROUGE-2 and ROUGE-L F", partial(_of_type, "free_form", grading.rouge_f)),
    *(
        Metric(name, title, description, partial(_of_evidence, name))
        for name, title, description in (
            ("miou", "mIoU", "per true span the greatest IoU of the response's spans (Video-Thinker)"),
            ("recall_at_30", "R@0.3", "share of true spans that a span of the response meets with IoU 0.3"),
            ("recall_at_50", "R@0.5", "the same with IoU 0.5"),
            ("recall_at_70", "R@0.7", "the same with IoU 0.7"),
            ("clue_iou", "clue IoU", "IoU of the unions of true and of predicted spans (CG-Bench)"),
            ("caption_rouge_l", "caption ROUGE-L", "caption ROUGE-L of the captions of the same time"),
            ("caption_bleu_1", "caption BLEU-1", "caption BLEU-1 of the captions of the same time"),
            ("caption_bleu_4", "caption BLEU-4", "caption BLEU-4 of the captions of the same time"),
            ("caption_meteor", "caption METEOR", "caption METEOR of the captions of the same time"),
        )
    ),
)

METRICS: Registry[Metric] = Registry("metric", Metric, {metric.name: metric for metric in _LIST})
"""The metrics of every item, in the order in which reports show them."""


def metric_named(name: str) -> Metric:
    """The metric of a name that a result holds: a registered one, or a plain share that this process does not know."""
    if name in METRICS:
        return METRICS.get(name)
    return Metric(name, name, name, lambda response: None)


def measure_response(response: Response, failed: bool) -> dict[str, float]:
    """Every metric that applies to a question; at its worst where asking it failed."""
    values = {name: metric.measure(response) for name, metric in METRICS.items()}
    return {name: METRICS.get(name).worst if failed else value for name, value in values.items() if value is not None}
