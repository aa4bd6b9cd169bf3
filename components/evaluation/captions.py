"""Captions of a response against evidence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from ..common.answers import responses
from ..common.rows.sample import Sample

_MAX_CAPTION_CHARS = 2000


def captioning(segments: Sequence[responses.Segment], sample: Sample) -> dict[str, float]:
    """How well the captions of a response describe the evidence, averaged over its spans.

    Each true span is compared with the caption of the segment that overlaps it most (none: 0): ROUGE-L F,
    BLEU with unigrams (the paper's BLEU@1) and up to 4-grams (smoothed), and METEOR where its word lists are
    installed. How Video-Thinker paired captions is UNVERIFIED.
    """
    scores = []
    for truth in sample.evidence:
        span = (truth.start_s, truth.end_s)
        overlap, _, caption = max(
            ((responses.span_iou((s.start_s, s.end_s), span), -i, s.caption) for i, s in enumerate(segments)),
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

    rouge = _rouge_l().score(" ".join(wanted), " ".join(words))["rougeL"].fmeasure
    smooth = SmoothingFunction().method1
    bleu = [
        float(sentence_bleu([wanted], words, weights, smoothing_function=smooth)) for weights in ((1,), (0.25,) * 4)
    ]
    measured = [float(rouge), *bleu]
    if (meteor := _meteor()) is not None:
        measured.append(float(meteor(wanted, words)))
    return dict(zip(names, measured, strict=True))


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
    return lambda truth, caption: float(single_meteor_score(truth, caption))


def left_out_metrics(samples: Iterable[Sample]) -> dict[str, str]:
    """Metrics that cannot be computed here, with what to do."""
    captions = any(sample.evidence and sample.metadata.get("captioned", True) for sample in samples)
    if captions and _meteor() is None:
        return {"caption_meteor": "nltk's word lists are not installed (python -m nltk.downloader wordnet)"}
    return {}
