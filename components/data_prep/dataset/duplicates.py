"""Videos and images that are nearly the same, found by what they look like: another size, compression or container.

`common.video.clip.signature` reduces a file to 768 mean colours; here pairs of signatures with a small difference are
found without comparing all with all, by locality-sensitive hashing for the Euclidean distance (Datar et al. 2004,
"Locality-sensitive hashing scheme based on p-stable distributions"). Not found: a crop, a mirror image, a cut of
another length, other brightness.
"""

from collections.abc import Iterator

import numpy as np

TABLES = 8  # independent hash tables; a pair is found when it shares a cell in one of them
PROJECTIONS = 6  # random directions per table
CELL_WIDTHS = 8.0
"""Width of a cell, in units of the largest difference that counts. With these numbers a pair at that limit shares a
cell of a table with probability (1 − 0.8 / 8)^6 = 0.53, and is missed by all eight with probability 0.002."""
MAX_SHARE_OF_CONTRAST = 0.2
"""The difference must also be below this share of the signature's own standard deviation: pages with a few lines on
white are all alike in absolute terms."""
MIN_CONTRAST = 2.0
"""Signatures with a smaller standard deviation (black or blank throughout) say nothing, and have no near duplicates."""
CROWDED = 2048
"""In a cell with more members than this a file is compared with the first of each kind only, so that thousands of
equal pictures make thousands of pairs, not millions."""
_BLOCK = 4096


def near_pairs(signatures: np.ndarray, max_difference: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (i < j) of signatures whose root mean square difference is at most ``max_difference`` (of 255; 0 finds
    none), with it; each once, in no particular order. ``signatures``: (N, D) uint8; may be memory-mapped: 8 bytes per
    row and table are held in memory, and no more."""
    if max_difference <= 0 or len(signatures) < 2:
        return
    keys = _keys(signatures, max_difference)
    for table in range(TABLES):
        order = np.argsort(keys[table], kind="stable")
        ordered = keys[table][order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        ends = np.r_[starts[1:], len(ordered)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            for i, j, difference in _close(signatures, order[start:end], max_difference):
                # The first table in which a pair meets yields it; the others need not remember it.
                if not (keys[:table, i] == keys[:table, j]).any():
                    yield i, j, difference


def _keys(signatures: np.ndarray, max_difference: float) -> np.ndarray:
    """(TABLES, N) uint64: the cell of each signature in each table."""
    rng = np.random.default_rng(0)
    size = signatures.shape[1]
    directions = (rng.standard_normal((size, TABLES * PROJECTIONS)) / np.sqrt(size)).astype(np.float32)
    width = CELL_WIDTHS * max_difference
    offsets = rng.uniform(0, width, TABLES * PROJECTIONS).astype(np.float32)
    factors = rng.integers(1, 2**63, (TABLES, PROJECTIONS), dtype=np.uint64) | np.uint64(1)
    keys = np.empty((TABLES, len(signatures)), dtype=np.uint64)
    for start in range(0, len(signatures), _BLOCK):
        block = np.asarray(signatures[start : start + _BLOCK], dtype=np.float32)
        cells = np.floor((block @ directions + offsets) / width).astype(np.int64).astype(np.uint64)
        cells = cells.reshape(-1, TABLES, PROJECTIONS)
        keys[:, start : start + _BLOCK] = (cells * factors).sum(axis=2, dtype=np.uint64).T
    return keys


def _close(signatures: np.ndarray, members: np.ndarray, max_difference: float) -> Iterator[tuple[int, int, float]]:
    """The pairs among ``members`` that are close enough; in a crowded cell, each with the first that it is close to."""
    members = np.sort(members)
    crowded = len(members) > CROWDED
    while len(members) > 1:
        firsts = members[:1] if crowded else members
        joined = np.zeros(len(members), dtype=bool)
        joined[: len(firsts)] = True
        for start in range(0, len(members), CROWDED):
            others = members[start : start + CROWDED]
            differences = _differences(signatures[firsts], signatures[others], max_difference)
            for i, j in np.argwhere(~np.isnan(differences)):
                if firsts[i] < others[j]:
                    joined[start + j] = True
                    yield int(firsts[i]), int(others[j]), float(differences[i, j])
        members = members[~joined] if crowded else members[:0]


def _differences(a: np.ndarray, b: np.ndarray, max_difference: float) -> np.ndarray:
    """(A, B) root mean square differences; NaN where they are too large to be the same, or say nothing."""
    a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    squares = (a**2).mean(1)[:, None] + (b**2).mean(1)[None] - 2 * (a @ b.T) / a.shape[1]
    contrast = np.minimum(a.std(1)[:, None], b.std(1)[None])
    limit = np.minimum(max_difference, MAX_SHARE_OF_CONTRAST * contrast)
    # Rounding of float32 leaves about 0.1 of a difference of 0.
    same = (squares <= np.maximum(limit, 0.2) ** 2) & (contrast >= MIN_CONTRAST)
    return np.where(same, np.sqrt(np.maximum(squares, 0.0)), np.nan)


class Groups:
    """Things joined pair by pair (union-find)."""

    def __init__(self, count: int):
        self._parent = np.arange(count)

    def join(self, i: int, j: int) -> None:
        """Put two things, and all that are joined to them, into one group; its name is its smallest member."""
        a, b = sorted((self.find(i), self.find(j)))
        self._parent[b] = a

    def find(self, i: int) -> int:
        """The name of the group that a thing is in."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = int(self._parent[i])
        return i
