"""Clips decoded before they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from ..common.errors import UserError
from ..common.rows.prepared import PreparedSample, Split


class Prefetcher:
    """Decodes the clips of rows that will be needed soon, in threads (decoding lets go of the interpreter lock)."""

    def __init__(self, split: Split, workers: int, timeout_s: float) -> None:
        self.split, self.timeout_s = split, timeout_s
        self._pool = ThreadPoolExecutor(workers, "prefetch") if workers else None
        self._coming: OrderedDict[int, Future[PreparedSample]] = OrderedDict()

    def announce(self, rows: Sequence[int]) -> None:
        """Start decoding; rows that were announced and never taken are forgotten after a while."""
        if self._pool is None:
            return
        for row in dict.fromkeys(rows):
            if row not in self._coming:
                self._coming[row] = self._pool.submit(self.split.__getitem__, row)
        while len(self._coming) > 4 * len(set(rows)) + 64:
            self._coming.popitem(last=False)

    def announce_batch(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`announce`, as a data collator: hands on what it gets."""
        self.announce([example["row"] for example in examples])
        return examples

    def take(self, rows: Sequence[int]) -> list[PreparedSample]:
        """The rows, decoded.

        Raises:
            UserError: one did not arrive within ``timeout_s``.
        """
        if self._pool is None:
            return [self.split[row] for row in rows]
        self.announce(rows)
        items = []
        for row in rows:
            try:
                items.append(self._coming.pop(row).result(self.timeout_s))
            except FutureTimeout:
                media = self.split.samples[row].media
                raise UserError(
                    f"row {row} ({media.uri}) was not decoded within {self.timeout_s:g} s; "
                    "is its storage reachable? (grpo.data_timeout_s)"
                ) from None
        return items
