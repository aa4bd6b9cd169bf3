"""Keys and values of prompts that were read before, so that what two prompts have in common is read once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer: keys and values (1, heads, tokens, dimensions)


@dataclass(slots=True, eq=False)
class Prefix:
    """The first tokens of prompts about one clip, and the model's state behind them."""

    key: Hashable
    input_ids: torch.Tensor  # (P,) all of them
    own: KeysValues  # those of the tokens behind the parent's
    parent: Prefix | None = None
    used_s: float = 0.0

    @property
    def num_bytes(self) -> int:
        """What it takes of the memory beyond its parent."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.own) + self.input_ids.nbytes

    def layers(self, count: int) -> KeysValues:
        """Keys and values of the first ``count`` tokens."""
        if self.parent is None:
            return [(keys[:, :, :count], values[:, :, :count]) for keys, values in self.own]
        both = zip(self.parent.own, self.own, strict=True)
        joined = [tuple(torch.cat([a, b], 2)[:, :, :count] for a, b in zip(*pair, strict=True)) for pair in both]
        return [(keys, values) for keys, values in joined]


class PrefixCache:
    """Prefixes by the clip that is in them (with whoever may share it), the least recently used of which go first.
    Vision tokens look alike whatever they show: prefixes of different clips must have different keys."""

    def __init__(self, max_bytes: int, max_age_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Args: ``max_age_s``: how long an unused prefix is kept."""
        self._max_bytes, self._max_age_s, self._now = max_bytes, max_age_s, now
        self._entries: OrderedDict[int, Prefix] = OrderedDict()
        self._by_key: dict[Hashable, list[Prefix]] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, key: Hashable, input_ids: torch.Tensor, least: int) -> tuple[Prefix, int] | None:
        """The prefix with the most first tokens in common with ``input_ids`` (P,), and how many: ``least`` to P - 1."""
        self.expire()
        best, length = None, least - 1
        for prefix in self._by_key.get(key, ()):
            common = min(_common(prefix.input_ids, input_ids), len(input_ids) - 1)
            if common > length:
                best, length = prefix, common
        if best is None:
            return None
        self._use(best)
        return best, length

    def add(self, key: Hashable, input_ids: torch.Tensor, own: KeysValues, parent: Prefix | None = None) -> Prefix:
        """Keep a prefix in place of those it continues; its tensors must be its own. It begins with its ``parent``."""
        prefix = Prefix(key, input_ids, own, parent)
        if prefix.num_bytes > self._max_bytes:
            return prefix
        for other in list(self._by_key.get(key, ())):
            covered = other is not parent and other.parent is parent is not None
            if covered and _common(other.input_ids, input_ids) == len(other.input_ids):
                self._drop(other)
        self._entries[id(prefix)] = prefix
        self._by_key.setdefault(key, []).append(prefix)
        self.num_bytes += prefix.num_bytes
        self._use(prefix)
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries.values())))
        return prefix

    def expire(self) -> None:
        """Forget what has not been used for too long."""
        while self._entries:
            oldest = next(iter(self._entries.values()))
            if self._now() - oldest.used_s < self._max_age_s:
                return
            self._drop(oldest)

    def _use(self, prefix: Prefix) -> None:
        """A parent stays longer than its children: its memory is theirs."""
        for entry in (prefix, prefix.parent):
            if entry is not None and id(entry) in self._entries:
                entry.used_s = self._now()
                self._entries.move_to_end(id(entry))

    def _drop(self, prefix: Prefix) -> None:
        del self._entries[id(prefix)]
        self.num_bytes -= prefix.num_bytes
        self._by_key[prefix.key].remove(prefix)
        if not self._by_key[prefix.key]:
            del self._by_key[prefix.key]


def _common(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many tokens two prompts begin with alike."""
    length = min(len(first), len(second))
    different = (first[:length] != second[:length]).nonzero()
    return int(different[0]) if len(different) else length
