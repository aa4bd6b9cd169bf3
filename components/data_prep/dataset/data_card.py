"""What is in a prepared data set, in numbers: ``card.json`` beside its manifest, counted while the rows are written."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import AliasChoices, ConfigDict, Field, field_serializer

from ...common.config import Section
from ...common.rows.sample import Sample
from ..records import Quarantined, Reason

DATA_CARD = "card.json"
_DURATION_EDGES_S = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_CHARACTER_EDGES = (0, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_RATE_EDGES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_NAMES_LISTED = 100  # longest list of names in the card (sources, resolutions); what is beyond counts as ``other``
_ANSWERS_COUNTED = 10_000
_ANSWERS_LISTED = 10
_EXAMPLES = 5


class _Counts(Section):
    """A section that is counted up while it is made."""

    model_config = ConfigDict(frozen=False)


class Histogram(_Counts):
    """Counts between edges; the last bin has no upper edge."""

    edges: tuple[float, ...]
    counts: list[int]
    min: float | None = None
    max: float | None = None
    mean: float | None = None

    @classmethod
    def empty(cls, edges: tuple[float, ...]) -> Self:
        """Nothing counted yet."""
        return cls(edges=edges, counts=[0] * len(edges))

    def add(self, value: float) -> None:
        """Count a value (below the first edge: as if on it)."""
        self.counts[max(0, bisect_right(self.edges, value) - 1)] += 1
        self.min = value if self.min is None else min(self.min, value)
        self.max = value if self.max is None else max(self.max, value)
        self.mean = value if self.mean is None else self.mean + (value - self.mean) / sum(self.counts)

    @field_serializer("mean")
    def _rounded(self, mean: float | None) -> float | None:
        return None if mean is None else round(mean, 3)


class SplitCounts(_Counts):
    """One split in numbers."""

    rows: int = 0
    videos: int = 0
    images: int = 0
    by_type: Counter[str] = Field(default_factory=Counter)
    by_source: Counter[str] = Field(default_factory=Counter)
    by_kind: Counter[str] = Field(default_factory=Counter)  # rows by ``metadata.kind``
    letters: dict[int, Counter[str]] = Field(default_factory=dict)
    """Right letters of multiple-choice questions, by number of options."""
    answers: dict[str, Counter[str]] = Field(default_factory=dict)
    """Most frequent answers of the other types; a bounded sample."""
    with_reasoning: int = 0
    with_evidence: int = 0
    duration_s: Histogram = Field(default_factory=lambda: Histogram.empty(_DURATION_EDGES_S))
    question_characters: Histogram = Field(default_factory=lambda: Histogram.empty(_CHARACTER_EDGES))
    reasoning_characters: Histogram = Field(default_factory=lambda: Histogram.empty(_CHARACTER_EDGES))
    pass_rate: Histogram = Field(default_factory=lambda: Histogram.empty(_RATE_EDGES))

    def add(self, sample: Sample) -> None:
        """Count a row."""
        self.rows += 1
        self.by_type[sample.problem_type] += 1
        self.by_source[sample.source] += 1
        if (kind := question_kind(sample)) is not None:
            self.by_kind[kind] += 1
        if sample.problem_type == "multiple_choice":
            self.letters.setdefault(len(sample.options), Counter())[sample.answer] += 1
        else:
            answers = self.answers.setdefault(sample.problem_type, Counter())
            if len(answers) < _ANSWERS_COUNTED or sample.answer in answers:
                answers[sample.answer[:80]] += 1
        self.with_reasoning += sample.reasoning is not None
        self.with_evidence += bool(sample.evidence)
        self.question_characters.add(len(sample.question))
        if sample.reasoning is not None:
            self.reasoning_characters.add(len(sample.reasoning))
        if (rate := pass_rate(sample)) is not None:
            self.pass_rate.add(rate)

    def add_media(self, kind: str, duration_s: float) -> None:
        """Count a video or image that rows of this split are about."""
        if kind == "video":
            self.videos += 1
            self.duration_s.add(duration_s)
        else:
            self.images += 1

    @field_serializer("by_type", "by_source", "by_kind")
    def _most_frequent(self, counts: Counter[str]) -> dict[str, int]:
        return most(counts)

    @field_serializer("letters")
    def _in_order(self, letters: dict[int, Counter[str]]) -> dict[str, dict[str, int]]:
        return {str(n): dict(sorted(counts.items())) for n, counts in sorted(letters.items())}

    @field_serializer("answers")
    def _most_frequent_answers(self, answers: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
        return {kind: dict(counts.most_common(_ANSWERS_LISTED)) for kind, counts in sorted(answers.items())}


class RowCounts(Section):
    """What became of the rows: in = out + quarantined + left out."""

    rows_in: int = Field(validation_alias=AliasChoices("rows_in", "in"), serialization_alias="in")
    rows_out: int = Field(validation_alias=AliasChoices("rows_out", "out"), serialization_alias="out")
    quarantined: int
    left_out: dict[str, int]  # by the setting that says so


class MediaCounts(Section):
    """The videos and images of a set."""

    shown: int  # videos and images that rows are about; parts of a file are counted apart
    files: int  # different files, by content
    source_bytes: int  # of those files
    stored_bytes: int  # of what is kept of them
    frames: int
    files_kept_themselves: int  # files that are smaller than their frames would be
    resolutions: dict[str, dict[str, int]]  # files by ``<width>x<height>``, by kind


class Contamination(Section):
    """What training and evaluation share, in numbers."""

    rule: str
    near_duplicate_difference: float
    files_in_several_splits: int
    near_duplicate_pairs: int  # pairs of files that look the same, in whatever splits
    rows_that_leak: dict[str, int]  # rows whose video is also in a split that measures, by reason
    near_duplicates_are_dropped: bool
    questions: dict[str, dict[Literal["rows", "rows_with_a_question_of_train"], int]]  # of other splits than train


class QuarantineExample(Section):
    """A row that is left out."""

    line: int
    id: str | None
    uri: str | None
    detail: str


class QuarantineCounts(Section):
    """The rows that are left out for one reason."""

    rows: int
    examples: tuple[QuarantineExample, ...]


class DataCard(Section):
    """What is in a prepared data set, in numbers."""

    source: str
    format: str
    rows: RowCounts
    splits: dict[str, SplitCounts]
    media: MediaCounts
    contamination: Contamination
    quarantine: dict[str, QuarantineCounts]  # by reason, the most frequent first


def pass_rate(sample: Sample) -> float | None:
    """``metadata.pass_rate``: share of right answers among rollouts of some policy, in [0, 1]; None where the row
    says none."""
    rate = sample.metadata.get("pass_rate")
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1 else None


def question_kind(sample: Sample) -> str | None:
    """``metadata.kind``, where it is text."""
    kind = sample.metadata.get("kind")
    return kind if isinstance(kind, str) else None


def most(counts: Counter[str]) -> dict[str, int]:
    """The most frequent names and, as ``other``, all the rest."""
    listed = dict(counts.most_common(_NAMES_LISTED))
    rest = counts.total() - sum(listed.values())
    return {**listed, **({"other": rest} if rest else {})}


def count_quarantine(rows: Iterable[Quarantined], counts: Counter[Reason]) -> dict[str, QuarantineCounts]:
    """Number and first examples by reason."""
    examples: dict[Reason, list[QuarantineExample]] = {reason: [] for reason in counts}
    for row in rows:
        examples[row.reason].append(QuarantineExample(line=row.line, id=row.id, uri=row.uri, detail=row.detail))
    return {r: QuarantineCounts(rows=n, examples=tuple(examples[r][:_EXAMPLES])) for r, n in counts.most_common()}
