"""The longest runs that sequences of integers share with a large set of others, exact or nearly so.

A run is a stretch of one sequence and an equally long one of another whose symbols are equal, each with the one of its
place: all of them ("exact"), or at least nine of ten and the first and last ("near").

One symbol held for long (a chord, silence) makes long runs that say little. So a run also has its number of changes, the
stretches of one and the same symbol in it, and the longest runs are sought by either measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SEED = 5  # symbols; shorter exact runs are not looked for
NEAR_SYMBOLS = 10  # the shortest near run; at least SEED of its symbols in a row are equal, so none is missed
LOSS = 9  # equal symbols that make up for one that is not, in a near run
KINDS, MEASURES = ("exact", "near"), ("length", "changes")
BLOCK = 1 << 20  # symbols that are searched at once
AT_ONCE = 1 << 22  # comparisons in memory
OUTSIDE, BEFORE = -1, -2  # before a track; before a piece. Symbols are 0 or more.


@dataclass(frozen=True)
class SharedRun:
    """Symbols [start, start + length) of the piece, and those from `track_start` on of a track."""

    track: int
    start: int
    track_start: int
    length: int
    changes: int  # stretches of one symbol within the run of the piece
    equal: int  # symbols that are equal


Longest = dict[tuple[str, str], SharedRun]  # by kind and measure; what is absent is shorter than SEED or NEAR_SYMBOLS


def longest_runs(pieces: Sequence[np.ndarray], tracks: Iterable[np.ndarray]) -> list[Longest]:
    """Of each piece the longest runs that it shares with any of the tracks; integers [n] from 0 on.

    "near" by changes is the one of most changes among the longest near runs around each exact one. Memory is that of the
    pieces, BLOCK symbols and AT_ONCE comparisons, however many tracks there are.
    """
    searches = [_Search(piece) for piece in pieces]
    for block in _blocks(tracks):
        for search in searches:
            search.look_through(block)
    return [search.best for search in searches]


class _Block:
    """Tracks one after the other, with OUTSIDE before each, and the places of their seeds in the order of their hashes."""

    def __init__(self, first: int, tracks: list[np.ndarray]):
        self.first = first
        self.symbols = np.concatenate([part for track in tracks for part in ([OUTSIDE], track)]).astype(np.int64)
        self.begins = np.cumsum([1] + [len(track) + 1 for track in tracks[:-1]])
        keys, befores = seed_hashes(self.symbols)
        self.order = np.lexsort((befores, keys))
        self.keys, self.befores = keys[self.order], befores[self.order]


def _blocks(tracks: Iterable[np.ndarray]) -> Iterator[_Block]:
    first, waiting = 0, []
    for number, track in enumerate(tracks):
        waiting.append(track)
        if sum(map(len, waiting)) >= BLOCK:
            yield _Block(first, waiting)
            first, waiting = number + 1, []
    if waiting:
        yield _Block(first, waiting)


class _Search:
    """A piece, and the longest runs found so far."""

    def __init__(self, piece: np.ndarray):
        self.piece = piece.astype(np.int64)
        self.keys, self.befores = seed_hashes(self.piece)
        self.changed = np.concatenate([[0], np.cumsum(piece[1:] != piece[:-1])])
        self.best: Longest = {}

    def look_through(self, block: _Block) -> None:
        for starts, places in self._beginnings(block):
            lengths = extend(self.piece, block.symbols, starts, places)
            true = lengths >= SEED  # hashes may be equal where symbols are not
            if true.any():
                starts, places, lengths = starts[true], places[true], lengths[true]
                self._offer("exact", block, starts, places, lengths, lengths)
                for found in self._near(block, starts, places, lengths):
                    self._offer("near", block, *found)

    def _beginnings(self, block: _Block) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places (in the piece, in the block) where equal seeds begin a run: the symbols before them differ.

        Of a symbol held for m and for n codes these are m + n pairs, where all equal seeds would be m · n.
        """
        low, high = np.searchsorted(block.keys, self.keys), np.searchsorted(block.keys, self.keys, side="right")
        same_low = _search_within(block.befores, low, high, self.befores)
        same_high = _search_within(block.befores, low, high, self.befores + 1)
        for first, last in ((low, same_low), (same_high, high)):
            for index, within in _ranges(first, last):
                yield index, block.order[within]

    def _near(
        self, block: _Block, starts: np.ndarray, places: np.ndarray, lengths: np.ndarray
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """The longest near run around each exact one: starts, places, lengths, equal symbols.

        A near run whose longest exact part is of r < LOSS symbols has r // (LOSS - r) others at most, so it is looked for
        that close to the exact one; with r >= LOSS it may be anywhere in the alignment, place = start + shift.
        """
        n = len(self.piece)
        for r in range(SEED, LOSS):
            reach = (r // (LOSS - r) + 1) * (r + 1) - 1
            some = lengths == r
            yield from self._near_within(block, starts[some] - reach, places[some] - starts[some], r + 2 * reach)
        shifts = np.unique((places - starts)[lengths >= LOSS])
        yield from self._near_within(block, np.zeros_like(shifts), shifts, n)

    def _near_within(
        self, block: _Block, begins: np.ndarray, shifts: np.ndarray, width: int
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """The longest near run of each alignment within [begin, begin + width) of the piece."""
        n_rows = max(1, AT_ONCE // width)
        for i in range(0, len(shifts), n_rows):
            begin, shift = begins[i : i + n_rows], shifts[i : i + n_rows]
            here = begin[:, None] + np.arange(width)
            there = here + shift[:, None]
            inside = (here >= 0) & (here < len(self.piece)) & (there >= 0) & (there < len(block.symbols))
            equal = inside & (self.piece.take(here, mode="clip") == block.symbols.take(there, mode="clip"))
            first, lengths = longest_near(equal)
            row = np.flatnonzero(lengths >= NEAR_SYMBOLS)
            if len(row):
                first, lengths = first[row], lengths[row]
                sums = np.pad(np.cumsum(equal[row], axis=1), ((0, 0), (1, 0)))
                k = np.arange(len(row))
                starts = begin[row] + first
                yield starts, starts + shift[row], lengths, sums[k, first + lengths] - sums[k, first]

    def _offer(
        self, kind: str, block: _Block, starts: np.ndarray, places: np.ndarray, lengths: np.ndarray, equal: np.ndarray
    ) -> None:
        changes = self.changed[starts + lengths - 1] - self.changed[starts] + 1
        for measure, values in zip(MEASURES, (lengths, changes), strict=True):
            i = int(values.argmax())
            old = self.best.get((kind, measure))
            if old is None or int(values[i]) > getattr(old, measure):
                track = int(np.searchsorted(block.begins, places[i], side="right")) - 1
                self.best[kind, measure] = SharedRun(
                    block.first + track, int(starts[i]), int(places[i] - block.begins[track]), int(lengths[i]),
                    int(changes[i]), int(equal[i]),
                )  # fmt: skip


def seed_hashes(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit hash of each stretch of SEED symbols, and the symbol before each."""
    n = max(0, len(symbols) - SEED + 1)
    keys = np.zeros(n, dtype=np.uint64)
    for k in range(SEED):
        keys = mixed(keys, symbols[k : k + n])
    return keys, np.concatenate([[BEFORE], symbols])[:n]


def mixed(hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Take integers into 64-bit hashes by the finalizer of SplitMix64 (Steele 2014, doi:10.1145/2660193.2660195)."""
    x = hashes * np.uint64(3) + values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _search_within(values: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first place of values[low:high], which ascend, that is not below `wanted`; for each of many at once."""
    while (low < high).any():
        middle = np.minimum((low + high) // 2, len(values) - 1)
        below = (values[middle] < wanted) & (low < high)
        low, high = np.where(below, middle + 1, low), np.where(below, high, np.minimum(high, np.maximum(middle, low)))
    return low


def _ranges(first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs (i, j) with first[i] <= j < last[i], in parts of about AT_ONCE."""
    counts = last - first
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + AT_ONCE, side="right")))
        part = counts[begin:end]
        if part.any():
            index = np.repeat(np.arange(begin, end), part)
            yield index, first[index] + np.arange(len(index)) - (ends[index] - counts[index] - done)
        begin = end


def extend(piece: np.ndarray, symbols: np.ndarray, starts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many symbols are equal from each pair of places on."""
    lengths = np.zeros(len(starts), dtype=np.int64)
    most = np.minimum(len(piece) - starts, len(symbols) - places)
    going = np.arange(len(starts))
    while len(going):
        here = lengths[going]
        going = going[piece[starts[going] + here] == symbols[places[going] + here]]
        lengths[going] += 1
        going = going[lengths[going] < most[going]]
    return lengths


def longest_near(equal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of bool [rows, n], start and length of the longest stretch that begins and ends with True and has at
    least nine of ten; length 0 if there is none.

    With a balance of +1 for True and -9 for False, it is the longest stretch that does not lose: for each end, the first
    begin whose balance is not above the end's. All rows are one long one, with a loss between them that nothing makes up.
    """
    n_rows, n = equal.shape
    balance = np.zeros((n_rows, n + 1), dtype=np.int64)
    np.cumsum(np.where(equal, 1, -LOSS), axis=1, out=balance[:, 1:])
    balance -= 2 * (LOSS + 1) * (n + 1) * np.arange(n_rows)[:, None]
    begin = np.where(np.pad(equal, ((0, 0), (0, 1))), balance, np.iinfo(np.int64).max)
    lowest = np.minimum.accumulate(begin.ravel())
    first = np.searchsorted(-lowest, -balance[:, 1:].ravel()).reshape(n_rows, n) - np.arange(n_rows)[:, None] * (n + 1)
    lengths = np.where(equal, np.arange(1, n + 1) - first, 0)
    row, last = np.arange(n_rows), lengths.argmax(axis=1)
    return np.where(lengths[row, last] > 0, first[row, last], 0), lengths[row, last]
