"""Results of several models on several benchmarks, in the order in which a page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ..results import BenchmarkResult


class Board:
    """A table of results: models × benchmarks. Several results of one model on one benchmark are its runs."""

    def __init__(self, results: Sequence[BenchmarkResult]) -> None:
        self.results = results
        self.models = list(dict.fromkeys(result.model for result in results))
        self.titles = {result.key: result.result.title for result in reversed(results)}
        """Of the benchmarks by key, in the order of the columns."""
        self.titles = {key: self.titles[key] for key in dict.fromkeys(result.key for result in results)}
        self.runs: dict[tuple[str, str], list[BenchmarkResult]] = {}
        """By model and benchmark."""
        for result in results:
            self.runs.setdefault((result.model, result.key), []).append(result)

    def get(self, model: str, key: str) -> BenchmarkResult | None:
        """The first run of a model on a benchmark, which stands for it."""
        runs = self.runs.get((model, key))
        return runs[0] if runs else None

    @cached_property
    def by_benchmark(self) -> dict[str, list[BenchmarkResult]]:
        """The first run of every model that was measured on a benchmark, by benchmark."""
        return {
            key: [result for model in self.models if (result := self.get(model, key)) is not None]
            for key in self.titles
        }

    @property
    def firsts(self) -> list[BenchmarkResult]:
        """The first run of every model on every benchmark."""
        return [result for results in self.by_benchmark.values() for result in results]

    @property
    def num_questions(self) -> int:
        """Different questions of all benchmarks."""
        return sum(
            len({item.id for result in results for cell in result.items.values() for item in cell})
            for results in self.by_benchmark.values()
        )
