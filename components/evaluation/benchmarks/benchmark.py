"""A published set: its questions and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...common.rows.sample import Sample
from ..metrics import Rule
from ..scores import Score
from .entries import Entry, Question

CUT_ALREADY = "_segment"
"""Ending of folders (of lmms-eval's copy of MVBench) whose videos are the parts that are asked about."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set: its files, its questions, its scores."""

    name: str
    """As on the command line."""
    title: str
    asks: str
    """What is asked, in one line."""
    source: str
    """Paper, and what its format and scores were read from."""
    hub: str = ""
    """Data set on the hub, for ``--data hub``."""
    files: tuple[tuple[str, ...], ...] = ()
    """Names of annotation files: the first alternative of which something is there is read, whole."""
    read: Callable[[Entry], Iterator[Question]] = lambda entry: iter(())
    """The questions of one entry of an annotation file."""
    scores: Mapping[str, Score]
    """What is reported, the headline first."""
    traps: tuple[str, ...] = ()
    """What makes two numbers of this name incomparable."""
    grade: Rule | None = None
    """Grades an answer where the rules of `common.answers` are not the benchmark's (those with ``metadata.rule``)."""

    @property
    def headline(self) -> str:
        """The score that stands for the benchmark."""
        return next(iter(self.scores))


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a benchmark that are asked."""

    benchmark: Benchmark
    samples: Sequence[Sample]
    """``media.uri`` is the video's name in its folder."""
    missing: Mapping[str, str]
    """Why there is no video, by question id: these count as wrong."""
    files: Mapping[str, str]
    """SHA-256 of the annotation files that they were read from, by name."""
