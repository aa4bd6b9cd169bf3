"""The held-out split as a benchmark: its questions, and the frames that were prepared for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.rows.sample import Sample
from .ask import Media
from .benchmarks.benchmark import Benchmark, QuestionSet
from .conditions import choose_items
from .results import HELD_OUT
from .scores import ACCURACY

if TYPE_CHECKING:
    from ..common.rows.prepared import Split
    from ..common.video.clip import Clip


class HeldOutSplit:
    """The questions of a split that are asked, with their clips."""

    def __init__(self, split: Split, name: str, max_items: int | None, seed: int) -> None:
        """Choose the questions.

        Raises:
            UserError: there are none.
        """
        self._split = split
        samples: Sequence[Sample] = split.samples
        if not samples:
            raise UserError(f"split '{name}' is empty; name another (evaluation.split)")
        self._index = {samples[index].id: index for index in choose_items(samples, max_items, seed)}
        benchmark = Benchmark(
            name=HELD_OUT, title=f"split “{name}”", asks="", source="the prepared data", scores={"accuracy": ACCURACY}
        )
        self.questions = QuestionSet(benchmark, [samples[index] for index in self._index.values()], {}, {})

    def clip(self, item_id: str) -> Clip:
        """The clip of a question.

        Raises:
            DecodeError: it is damaged.
        """
        return self._split[self._index[item_id]].clip

    @property
    def media(self) -> Media:
        """Their clips, for `ask`."""

        def read(samples: Iterable[Sample]) -> Iterator[Any]:
            for sample in samples:
                try:
                    yield self.clip(sample.id)
                except Exception as error:
                    yield error

        return read
