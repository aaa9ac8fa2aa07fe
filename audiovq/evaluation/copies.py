"""The longest passages that a piece shares with the training tracks, compared with chance.

A passage is a run of symbols that occurs in a piece and in a track. A symbol stands for the time of one code
of level 0: that code alone ("top"), or with all finer codes of its time ("all"). A symbol that is held counts
once, however long: a held chord or silence makes a long run that means little.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from audiovq.data.codes import Codes
from audiovq.data.shards import ShardIndex, Shards, ShardTrack
from audiovq.evaluation.code_statistics import spread

SHORTEST = 5  # symbols; a shorter run is not reported
MAX_STRETCHES = 100  # of the held-out tracks
TRACKS_AT_ONCE = 1000  # that are searched, and in memory
# Odd numbers whose powers weight symbols in hashes modulo 2 ** 64.
SYMBOL_BASE, RUN_BASE = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


class Run(NamedTuple):
    """Symbols [start, start + length) of a piece, and as many of a track from `track_start` on."""

    length: int = 0
    start: int = 0
    track: int = 0
    track_start: int = 0


def copy_reports(pieces: Sequence[Codes], shards: Shards) -> list[dict[str, Any]]:
    """Find the longest runs that pieces share with the training tracks, and with which probability by chance.

    To tell chance from copying, held-out tracks are cut into stretches of the length of a piece, each half a
    stretch after the one before, and searched in the same way.

    Args:
        pieces: all of one length.
        shards: codes of the run; shifted copies of its tracks are searched, too.
    Returns:
        For each piece `seconds`, `n_stretches` and `runs`. A run has
        symbols: "top" or "all";
        length: of the longest run in symbols, 0 if it is below SHORTEST;
        p: the share of held-out stretches, the piece counted in, whose run is at least as long; None if no
        held-out track is so long;
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
        stretches = _held_out_stretches(shards, depth, len(symbols[0]))
        found = _longest_runs_of_all([*symbols, *stretches], shards, depth)
        by_chance = [run.length for run in found[len(pieces) :]]
        for report, piece, run in zip(reports, symbols, found, strict=False):
            report["n_stretches"] = len(stretches)
            row = {"symbols": name, "length": run.length, "p": None}
            if stretches:
                row["p"] = (1 + sum(length >= run.length for length in by_chance)) / (1 + len(stretches))
            if run.length:
                start, end = np.append(changes(piece), len(piece))[[run.start, run.start + run.length]]
                track, code_seconds = training[run.track], index.hop_lengths[0] / index.sample_rate
                track_start = changes(_symbols(shards, track, depth))[run.track_start] * code_seconds
                # Shifted copies of a track lack its first samples, so their codes are later in it.
                whole = max(other.n_samples for other in training if other.path == track.path)
                row |= {
                    "seconds": float((end - start) * code_seconds),
                    "start_seconds": float(start * code_seconds),
                    "track": track.path,
                    "track_seconds": float(track_start + (whole - track.n_samples) / index.sample_rate),
                }
            report["runs"].append(row)
    return reports


def _symbols(shards: Shards, track: ShardTrack, depth: int) -> np.ndarray:
    return symbols_of([shards.codes(track, level) for level in range(depth)], shards.index)


def _held_out_stretches(shards: Shards, depth: int, n: int) -> list[np.ndarray]:
    """At most MAX_STRETCHES stretches of `n` symbols, evenly spread over the held-out tracks."""
    held_out, step = shards.index.tracks.of("valid"), max(1, n // 2)
    n_stretches = np.maximum(0, (held_out.lengths(0) - n) // step + 1)  # in each track
    places = spread(n_stretches, MAX_STRETCHES)
    return [_symbols(shards, held_out[track], depth)[k * step : k * step + n] for track, k in places]


def _longest_runs_of_all(pieces: Sequence[np.ndarray], shards: Shards, depth: int) -> list[Run]:
    """The longest run of each piece in any training track, where held symbols count once."""
    training, pieces = shards.index.tracks.of("train"), [piece[changes(piece)] for piece in pieces]
    longest = [Run()] * len(pieces)
    for first in range(0, len(training), TRACKS_AT_ONCE):
        numbers = range(first, min(first + TRACKS_AT_ONCE, len(training)))
        tracks = [_symbols(shards, training[i], depth) for i in numbers]
        runs = longest_runs(pieces, [track[changes(track)] for track in tracks])
        found = [run._replace(track=first + run.track) for run in runs]
        longest = [max(pair, key=lambda run: run.length) for pair in zip(longest, found, strict=True)]
    return longest


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


def changes(symbols: np.ndarray) -> np.ndarray:
    """The indices of the symbols that differ from the one before."""
    return np.flatnonzero(np.diff(symbols, prepend=-1))


def longest_runs(pieces: Sequence[np.ndarray], tracks: Sequence[np.ndarray]) -> list[Run]:
    """Find the longest run that each piece shares with any of the tracks; its length is 0 below SHORTEST.

    Windows of a piece are looked up by their hashes among the sorted ones of the tracks. Each match is
    extended to its end, and what is found must be surpassed by longer windows, until there are none.

    Args:
        pieces, tracks: int [n] each, symbols from 0 on.
    """
    begins = np.cumsum([0, *(len(track) + 1 for track in tracks)])  # a track ends with -1
    symbols = np.concatenate([np.append(track, -1) for track in tracks])
    longest, wanted = [Run()] * len(pieces), dict.fromkeys(range(len(pieces)), SHORTEST)
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
            longest[i] = Run(length, int(start), track, int(place - begins[track]))
            wanted[i] = length + 1
    return longest


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


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as text, a line for each run."""
    lines = []
    for row in report["runs"]:
        if not row["length"]:
            lines.append(f"{row['symbols']}  none of {SHORTEST} codes or more")
            continue
        chance = "no held-out track is as long as the piece" if row["p"] is None else f"p = {row['p']:.3f}"
        lines.append(
            f"{row['symbols']}  {row['length']} codes, {row['seconds']:.2f} s: at {row['start_seconds']:.2f} s "
            f"as {row['track']} at {row['track_seconds']:.2f} s; {chance}"
        )
    return lines
