"""The longest runs of symbols that sequences share with a large set of tracks.

A run is a stretch of a piece and an equally long stretch of a track whose symbols are equal position by
position: all of them in an "exact" run; in a "near" run at least nine of ten, the first and the last among
them. A symbol that is held (a chord, silence) makes long runs that mean little, so runs are also ranked by
their changes: the number of stretches of one symbol in them.

Every run contains SEED equal symbols in a row. The search sorts the hashes of all seeds of the tracks,
looks up the seeds of a piece, extends each match to an exact run, and searches for near runs around it.
Memory is that of the pieces, BLOCK_SYMBOLS symbols and PAIRS_AT_ONCE comparisons, however many tracks there
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SEED = 5  # symbols; the shortest exact run
NEAR_SYMBOLS = 10  # the shortest near run: at most one of ten symbols differs, so five in a row are equal
LOSS = 9  # equal symbols that make up for one unequal symbol in a near run
KINDS, MEASURES = ("exact", "near"), ("length", "changes")
BLOCK_SYMBOLS = 1 << 20  # of tracks, searched at once
PAIRS_AT_ONCE = 1 << 22
TRACK_BEGIN, PIECE_BEGIN = -1, -2  # stand for the symbol before the first one; symbols are 0 or more
SEED_BITS, BEFORE_BITS = np.uint64(0xFFFFFFFF00000000), np.uint64(0xFFFFFFFF)  # halves of a seed's key


@dataclass(frozen=True)
class SharedRun:
    """Symbols [start, start + length) of a piece, and as many of a track from `track_start` on."""

    track: int
    start: int
    track_start: int
    length: int
    changes: int  # stretches of one symbol in the piece's part
    equal: int  # number of equal symbols


Longest = dict[tuple[str, str], SharedRun]  # by kind and measure; a run below SEED or NEAR_SYMBOLS is missing


@dataclass(frozen=True)
class _Runs:
    """Runs of a piece and a block of tracks; int64 [n] each."""

    starts: np.ndarray  # in the piece
    places: np.ndarray  # in the block
    lengths: np.ndarray
    equal: np.ndarray  # number of equal symbols


def longest_runs(pieces: Sequence[np.ndarray], tracks: Iterable[np.ndarray]) -> list[Longest]:
    """Find the longest runs that each piece shares with any of the tracks.

    Args:
        pieces: int [n] each, symbols from 0 on.
        tracks: int [n] each.
    Returns:
        For each piece the longest exact and near run by length and by changes. The near run by changes is
        the one with most changes among the longest near runs around each exact run.
    """
    searches = [_Search(piece) for piece in pieces]
    for block in _blocks(tracks):
        for search in searches:
            search.search(block)
    return [search.best for search in searches]


class _Block:
    """Several tracks, with TRACK_BEGIN before each, and their seeds in the order of their keys."""

    def __init__(self, first_track: int, tracks: list[np.ndarray]):
        self.first_track = first_track
        parts = [part for track in tracks for part in ([TRACK_BEGIN], track)]
        self.symbols = np.concatenate(parts).astype(np.int64)
        self.track_begins = np.cumsum([1] + [len(track) + 1 for track in tracks[:-1]])
        keys = seed_keys(self.symbols, TRACK_BEGIN)
        self.places = np.argsort(keys)
        self.keys = keys[self.places]


def _blocks(tracks: Iterable[np.ndarray]) -> Iterator[_Block]:
    first_track, waiting = 0, []
    for number, track in enumerate(tracks):
        waiting.append(track)
        if sum(map(len, waiting)) >= BLOCK_SYMBOLS:
            yield _Block(first_track, waiting)
            first_track, waiting = number + 1, []
    if waiting:
        yield _Block(first_track, waiting)


class _Search:
    """A piece, and the longest runs found so far."""

    def __init__(self, piece: np.ndarray):
        self.piece = piece.astype(np.int64)
        self.keys = seed_keys(self.piece, PIECE_BEGIN)
        self.n_changes = np.concatenate([[0], np.cumsum(piece[1:] != piece[:-1])])  # up to each symbol
        self.best: Longest = {}

    def search(self, block: _Block) -> None:
        for starts, places in self._seed_matches(block):
            lengths = equal_symbols(self.piece, block.symbols, starts, places)
            true = lengths >= SEED  # different symbols can have equal hashes
            if true.any():
                exact = _Runs(starts[true], places[true], lengths[true], lengths[true])
                self._keep_longest("exact", block, exact)
                for begins, shifts, width in self._near_windows(exact):
                    n_rows = max(1, PAIRS_AT_ONCE // width)
                    for i in range(0, len(shifts), n_rows):
                        near = self._near_runs(block, begins[i : i + n_rows], shifts[i : i + n_rows], width)
                        self._keep_longest("near", block, near)

    def _seed_matches(self, block: _Block) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions (in the piece, in the block) where a run begins: equal seeds after different symbols.

        A symbol held m times in the piece and n times in a track gives m + n such pairs instead of m · n.
        """
        # In the order of keys, equal seeds lie together, and among them those with an equal symbol before.
        first = np.searchsorted(block.keys, self.keys & SEED_BITS)
        same_first = np.searchsorted(block.keys, self.keys)
        same_last = np.searchsorted(block.keys, self.keys, side="right")
        last = np.searchsorted(block.keys, self.keys | BEFORE_BITS, side="right")
        for low, high in ((first, same_first), (same_last, last)):
            for start, i in _pairs(low, high):
                yield start, block.places[i]

    def _near_windows(self, exact: _Runs) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Windows for the near runs around exact runs: begins in the piece, shifts (place - start), width.

        Let r be the longest exact part of a near run. With m unequal symbols it has at most (m + 1) · r
        equal ones, and needs 9 · m. If r < 9, so m <= r / (9 - r), and the run is at most (m + 1) · r + m
        long. If r >= 9, it may be as long as the piece.
        """
        shifts = exact.places - exact.starts
        for r in range(SEED, LOSS):
            chosen, most_unequal = exact.lengths == r, r // (LOSS - r)
            longest = (most_unequal + 1) * r + most_unequal
            yield exact.starts[chosen] - longest, shifts[chosen], r + 2 * longest
        anywhere = np.unique(shifts[exact.lengths >= LOSS])
        yield np.zeros_like(anywhere), anywhere, len(self.piece)

    def _near_runs(self, block: _Block, begins: np.ndarray, shifts: np.ndarray, width: int) -> _Runs:
        """The longest near run in each window of `width` symbols, where there is one."""
        here = begins[:, None] + np.arange(width)  # [windows, width], in the piece
        there = here + shifts[:, None]  # in the block
        inside = (here >= 0) & (here < len(self.piece)) & (there >= 0) & (there < len(block.symbols))
        equal = inside & (self.piece.take(here, mode="clip") == block.symbols.take(there, mode="clip"))
        first, lengths = longest_near(equal)
        row = np.flatnonzero(lengths >= NEAR_SYMBOLS)
        first, lengths = first[row], lengths[row]
        n_equal = np.pad(np.cumsum(equal[row], axis=1), ((0, 0), (1, 0)))  # before each symbol
        k = np.arange(len(row))
        starts = begins[row] + first
        return _Runs(starts, starts + shifts[row], lengths, n_equal[k, first + lengths] - n_equal[k, first])

    def _keep_longest(self, kind: str, block: _Block, runs: _Runs) -> None:
        if not len(runs.starts):
            return
        changes = self.n_changes[runs.starts + runs.lengths - 1] - self.n_changes[runs.starts] + 1
        for measure, values in zip(MEASURES, (runs.lengths, changes), strict=True):
            i = int(values.argmax())
            old = self.best.get((kind, measure))
            if old is None or int(values[i]) > getattr(old, measure):
                track = int(np.searchsorted(block.track_begins, runs.places[i], side="right")) - 1
                self.best[kind, measure] = SharedRun(
                    track=block.first_track + track,
                    start=int(runs.starts[i]),
                    track_start=int(runs.places[i] - block.track_begins[track]),
                    length=int(runs.lengths[i]),
                    changes=int(changes[i]),
                    equal=int(runs.equal[i]),
                )


def seed_keys(symbols: np.ndarray, before: int) -> np.ndarray:
    """A key of 64 bits for each stretch of SEED symbols.

    The upper half is a hash of these symbols, the lower half that of the symbol before them, which is
    `before` at the beginning.
    """
    n = max(0, len(symbols) - SEED + 1)
    seeds = np.zeros(n, dtype=np.uint64)
    for k in range(SEED):
        seeds = mix(seeds, symbols[k : k + n])
    previous = mix(np.zeros(n, dtype=np.uint64), np.concatenate([[before], symbols])[:n])
    return (seeds & SEED_BITS) | (previous & BEFORE_BITS)


def mix(hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Add integers to 64-bit hashes.

    Source: the finalizer of SplitMix64, Steele 2014, doi:10.1145/2660193.2660195.
    """
    x = hashes * np.uint64(3) + values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _pairs(first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs (i, j) with first[i] <= j < last[i], about PAIRS_AT_ONCE at a time."""
    counts = last - first
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        n_before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, n_before + PAIRS_AT_ONCE, side="right")))
        part = counts[begin:end]
        if part.any():
            i = np.repeat(np.arange(begin, end), part)
            yield i, first[i] + np.arange(len(i)) - (ends[i] - counts[i] - n_before)
        begin = end


def equal_symbols(piece: np.ndarray, symbols: np.ndarray, starts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many symbols in a row are equal from each pair of positions on; int64 [n]."""
    lengths = np.zeros(len(starts), dtype=np.int64)
    most = np.minimum(len(piece) - starts, len(symbols) - places)
    growing = np.arange(len(starts))
    while len(growing):
        length = lengths[growing]
        growing = growing[piece[starts[growing] + length] == symbols[places[growing] + length]]
        lengths[growing] += 1
        growing = growing[lengths[growing] < most[growing]]
    return lengths


def longest_near(equal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The longest near run in each row of bool [rows, n]: its start, and its length or 0.

    It begins and ends with True, and at least nine of ten are True. With a balance that rises by 1 at True
    and falls by 9 at False, it is the longest stretch that does not lose. So for each end, the earliest
    begin whose balance is not above that of the end is wanted, which a binary search finds among the
    running minima.
    """
    n_rows, n = equal.shape
    balance = np.zeros((n_rows, n + 1), dtype=np.int64)
    np.cumsum(np.where(equal, 1, -LOSS), axis=1, out=balance[:, 1:])
    # One search for all rows: they are laid end to end, with a loss between them that no row makes up for.
    balance -= 2 * (LOSS + 1) * (n + 1) * np.arange(n_rows)[:, None]
    begins = np.where(np.pad(equal, ((0, 0), (0, 1))), balance, np.iinfo(np.int64).max)
    minima = np.minimum.accumulate(begins.ravel())
    first = np.searchsorted(-minima, -balance[:, 1:].ravel()).reshape(n_rows, n)
    first -= np.arange(n_rows)[:, None] * (n + 1)
    lengths = np.where(equal, np.arange(1, n + 1) - first, 0)
    row, last = np.arange(n_rows), lengths.argmax(axis=1)
    return np.where(lengths[row, last] > 0, first[row, last], 0), lengths[row, last]
