"""A response against the evidence of its question: predicted time spans, and captions of what is seen there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from ..common.answers.responses import Segment
from ..common.answers.spans import Span, grounding_scores, span_iou
from ..common.rows.sample import Sample
from .conditions import ORDERED, kind_of, video_of
from .item import Item

MAX_CLUES = 5
"""CG-Bench reads no more intervals of a response than these."""
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
    return single_meteor_score  # type: ignore[no-any-return]


def left_out_metrics(samples: Iterable[Sample]) -> dict[str, str]:
    """Metrics that cannot be computed here, with what to do."""
    captions = any(sample.evidence and sample.metadata.get("captioned", True) for sample in samples)
    if captions and _meteor() is None:
        return {"caption_meteor": "nltk's word lists are not installed (python -m nltk.downloader wordnet)"}
    return {}
