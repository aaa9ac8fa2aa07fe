"""The longest passages that a piece shares with the training tracks, compared with chance.

A passage is a run of symbols that occurs in a piece and in a track. A symbol stands for the time of one code
of level 0: that code alone ("top"), or with all finer codes of its time ("all"). Passages are compared by
"length", symbol by symbol, and by "changes", where a symbol that is held counts once, however long: a held
chord or silence makes a long run that means little.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiovq.data.codes import Codes
from audiovq.data.shards import ShardIndex, Shards, ShardTrack
from audiovq.evaluation.code_statistics import spread

SHORTEST = 5  # symbols; a shorter run is not reported
MAX_STRETCHES = 100  # of the held-out tracks
BLOCK_SYMBOLS = 1 << 20  # of tracks, searched at once
# Odd numbers whose powers weight symbols in hashes modulo 2 ** 64.
SYMBOL_BASE, RUN_BASE = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


@dataclass(frozen=True)
class Run:
    """Symbols [start, start + length) of a piece, and as many of a track from `track_start` on."""

    length: int
    start: int
    track: int
    track_start: int


def copy_reports(pieces: Sequence[Codes], shards: Shards) -> list[dict[str, Any]]:
    """Find the longest runs that pieces share with the training tracks, and with which probability by chance.

    To tell chance from copying, held-out tracks are cut into stretches of the length of a piece, each half a
    stretch after the one before, and searched in the same way.

    Args:
        pieces: all of one length.
        shards: codes of the run; shifted copies of its tracks are searched, too.
    Returns:
        For each piece `seconds`, `n_stretches` and `runs`. A run has
        symbols, by: "top" or "all", "length" or "changes";
        length: of the longest run in symbols, 0 if it is below SHORTEST;
        p: the share of held-out stretches, the piece counted in, whose run is at least as long, and
        held_out_95: what 95 % of these stretches reach at most; both None if no held-out track is so long;
        if anything is shared, seconds, start_seconds (in the piece), track and track_seconds (in the track).
    Raises:
        ValueError: codes of another tokenizer, or no training tracks.
    """
    index, training = shards.index, shards.index.tracks.of("train")
    if pieces[0].tokenizer_hash != index.tokenizer_hash:
        raise ValueError(
            f"{shards.folder}: expected codes of its tokenizer ({index.tokenizer_hash[:12]}), found those of "
            f"another ({pieces[0].tokenizer_hash[:12]}); encode the audio with the model of that run"
        )
    if not training:
        raise ValueError(f"{shards.folder}: no training tracks among the codes")
    reports: list[dict[str, Any]] = [{"seconds": piece.seconds, "runs": []} for piece in pieces]
    n_levels = len(pieces[0].levels)
    for name, depth in (("top", 1), ("all", n_levels))[:n_levels]:
        symbols = [symbols_of([level.numpy() for level in piece.levels[:depth]], index) for piece in pieces]
        stretches = list(_held_out_stretches(shards, depth, len(symbols[0])))
        for measure in ("length", "changes"):
            searched = [piece[_counted(piece, measure)] for piece in (*symbols, *stretches)]
            tracks = (_track_symbols(shards, track, depth) for track in training)
            found = longest_runs(searched, (track[_counted(track, measure)] for track in tracks))
            by_chance = [run.length for run in found[len(pieces) :]]
            for report, piece, run in zip(reports, symbols, found, strict=False):
                report["n_stretches"] = len(stretches)
                row = {"symbols": name, "by": measure, "length": run.length, "p": None, "held_out_95": None}
                if stretches:
                    n_as_long = sum(length >= run.length for length in by_chance)
                    row["p"] = (1 + n_as_long) / (1 + len(stretches))
                    row["held_out_95"] = float(np.quantile(by_chance, 0.95))
                if run.length:
                    places = np.append(_counted(piece, measure), len(piece))
                    track = _track_symbols(shards, training[run.track], depth)
                    track_start = _counted(track, measure)[run.track_start]
                    start, end = places[[run.start, run.start + run.length]]
                    row |= _times(start, end, track_start, run.track, shards)
                report["runs"].append(row)
    return reports


def symbols_of(levels: Sequence[np.ndarray], index: ShardIndex) -> np.ndarray:
    """One symbol for each code of level 0: the code itself, or a hash of the codes of all given levels.

    Args:
        levels: int [n_codes] each, coarse to fine.
    Returns:
        int64 [n_codes of level 0], 0 or more.
    """
    n_top = len(levels[0])
    hashes = np.zeros(n_top, dtype=np.uint64)
    for level, hop_length in zip(levels, index.hop_lengths, strict=False):
        ratio = index.hop_lengths[0] // hop_length
        # A piece may end before its last code of level 0 does; codebook_size stands for the missing codes.
        padded = np.pad(level, (0, n_top * ratio - len(level)), constant_values=index.codebook_size)
        for codes in padded.reshape(n_top, ratio).T:
            hashes = hashes * SYMBOL_BASE + codes.astype(np.uint64)
    return (hashes & np.uint64(2**63 - 1)).astype(np.int64)


def _track_symbols(shards: Shards, track: ShardTrack, n_levels: int) -> np.ndarray:
    return symbols_of([shards.codes(track, level) for level in range(n_levels)], shards.index)


def _held_out_stretches(shards: Shards, n_levels: int, n: int) -> Iterator[np.ndarray]:
    """At most MAX_STRETCHES stretches of `n` symbols, evenly spread over the held-out tracks."""
    held_out, step = shards.index.tracks.of("valid"), max(1, n // 2)
    n_stretches = np.maximum(0, (held_out.lengths(0) - n) // step + 1)  # in each track
    for track, k in spread(n_stretches, MAX_STRETCHES):
        yield _track_symbols(shards, held_out[track], n_levels)[k * step : k * step + n]


def _counted(symbols: np.ndarray, measure: str) -> np.ndarray:
    """The indices of the symbols that count: all, or those that differ from the one before."""
    if measure == "length":
        return np.arange(len(symbols))
    return np.flatnonzero(np.append(True, np.diff(symbols)))[: len(symbols)]


def longest_runs(pieces: Sequence[np.ndarray], tracks: Iterable[np.ndarray]) -> list[Run]:
    """Find the longest run that each piece shares with any of the tracks; its length is 0 below SHORTEST.

    Windows of a piece are looked up by their hashes among the sorted ones of the tracks. Each match is
    extended to its end, and what is found must be surpassed by longer windows, until there are none.
    Memory is that of BLOCK_SYMBOLS symbols and the pieces, however many tracks there are.

    Args:
        pieces, tracks: int [n] each, symbols from 0 on.
    """
    longest = [Run(0, 0, 0, 0)] * len(pieces)
    for first_track, block in _blocks(tracks):
        begins = np.cumsum([0, *(len(track) + 1 for track in block)])  # a track ends with -1
        symbols = np.concatenate([np.append(track, -1) for track in block])
        wanted = {i: max(SHORTEST, run.length + 1) for i, run in enumerate(longest)}
        while wanted:
            n = min(wanted.values())
            hashes = window_hashes(symbols, n)
            order = np.argsort(hashes)
            hashes = hashes[order]
            for i in [i for i, length in wanted.items() if length == n]:
                mine = window_hashes(pieces[i], n)
                nearest = np.minimum(np.searchsorted(hashes, mine), len(hashes) - 1)
                starts = np.flatnonzero(hashes[nearest] == mine) if len(hashes) else []
                matches = [(_n_equal(pieces[i][k:], symbols[order[nearest[k]] :]), k) for k in starts]
                length, start = max(matches, default=(0, 0))
                if length < n:
                    del wanted[i]
                    continue
                place = order[nearest[start]]
                track = int(np.searchsorted(begins, place, side="right")) - 1
                longest[i] = Run(length, int(start), first_track + track, int(place - begins[track]))
                wanted[i] = length + 1
    return longest


def _blocks(tracks: Iterable[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The number of the first track, and tracks with about BLOCK_SYMBOLS symbols."""
    first_track, waiting = 0, []
    for number, track in enumerate(tracks):
        waiting.append(track)
        if sum(map(len, waiting)) >= BLOCK_SYMBOLS:
            yield first_track, waiting
            first_track, waiting = number + 1, []
    if waiting:
        yield first_track, waiting


def window_hashes(symbols: np.ndarray, n: int) -> np.ndarray:
    """A hash of each window of `n` symbols, uint64; that at k is Σ symbols[k + i] · RUN_BASE ** i."""
    if len(symbols) < n:
        return np.zeros(0, dtype=np.uint64)
    bases = np.full((2, len(symbols)), [[RUN_BASE], [pow(RUN_BASE, -1, 2**64)]], dtype=np.uint64)
    bases[:, 0] = 1
    powers, inverse_powers = np.cumprod(bases, axis=1)
    sums = np.append(np.uint64(0), np.cumsum(symbols.astype(np.uint64) * powers))
    return (sums[n:] - sums[:-n]) * inverse_powers[: len(symbols) - n + 1]


def _n_equal(a: np.ndarray, b: np.ndarray) -> int:
    """How many symbols are equal before the first difference."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _times(start: int, end: int, track_start: int, number: int, shards: Shards) -> dict[str, Any]:
    """Symbols [start, end) of a piece and those from `track_start` on in a training track, in seconds."""
    index, training = shards.index, shards.index.tracks.of("train")
    track, code_seconds = training[number], index.hop_lengths[0] / index.sample_rate
    # The shifted copies of a track follow it. They lack its first samples, so their codes are later in it.
    while number and training[number - 1].path == track.path:
        number -= 1
    shift_seconds = (training[number].n_samples - track.n_samples) / index.sample_rate
    return {
        "seconds": float((end - start) * code_seconds),
        "start_seconds": float(start * code_seconds),
        "track": track.path,
        "track_seconds": float(track_start * code_seconds + shift_seconds),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as text, a line for each run."""
    lines = []
    for row in report["runs"]:
        name = f"{row['symbols']} by {row['by']:7}"
        if not row["length"]:
            lines.append(f"{name}  none of {SHORTEST} codes or more")
            continue
        chance = "no held-out track is as long as the piece"
        if row["p"] is not None:
            chance = f"p = {row['p']:.3f}, 95 % of held-out stretches reach at most {row['held_out_95']:g}"
        lines.append(
            f"{name}  {row['length']} codes, {row['seconds']:.2f} s: at {row['start_seconds']:.2f} s as "
            f"{row['track']} at {row['track_seconds']:.2f} s; {chance}"
        )
    return lines
