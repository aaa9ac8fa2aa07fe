"""The longest passages that a piece shares with the training tracks, compared with chance. A passage is a run of
symbols that occurs in a piece and in a track. A symbol stands for the time of one code of level 0: that code alone
("top"), or with all finer codes of its time ("all"). A held one counts once."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np

from audiovq.data.codes import Codes
from audiovq.data.shards import ShardIndex, Shards, ShardTrack
from audiovq.evaluation.code_statistics import spread
from audiovq.utils.progress import track as progress

SHORTEST = 5  # symbols; a shorter run is not reported
MAX_STRETCHES = 100  # of the held-out tracks
SYMBOL_BASE = 0x9E3779B97F4A7C15  # an odd number whose powers weight codes in hashes modulo 2 ** 64


class Run(NamedTuple):
    """Symbols [start, start + length) of a piece, and as many of a track from `track_start` on."""

    length: int = 0
    start: int = 0
    track: int = 0
    track_start: int = 0


def copy_reports(pieces: Sequence[Codes], shards: Shards) -> list[dict[str, Any]]:
    """Find the longest runs that pieces share with the training tracks, and with which probability by chance.

    To tell chance from copying, held-out tracks are cut into stretches of the length of a piece, each half a
    stretch after the one before, and searched in the same way. All pieces have one length.

    Returns:
        For each piece `seconds`, `n_stretches` and `runs`. A run has symbols ("top" or "all"); length, of the longest run
        in symbols, 0 if it is below SHORTEST; p, the share of held-out stretches, the piece counted in, whose run is at
        least as long, None if no held-out track is so long; and if anything is shared, seconds, start_seconds (in the
        piece), track and track_seconds (in the track).
    Raises:
        ValueError: codes of another tokenizer, or no training tracks.
    """
    index, training = shards.index, shards.index.tracks.of("train")
    if pieces[0].tokenizer_hash != index.tokenizer_hash:
        expected, found = (each.tokenizer_hash[:12] for each in (index, pieces[0]))
        wrong = f"expected codes of its tokenizer ({expected}), found those of another ({found})"
        raise ValueError(f"{shards.folder}: {wrong}; encode the audio with the model of that run")
    if not training:
        raise ValueError(f"{shards.folder}: no training tracks among the codes")
    reports: list[dict[str, Any]] = [{"seconds": piece.seconds, "runs": []} for piece in pieces]
    n_levels = len(pieces[0].levels)
    held_out = index.tracks.of("valid")
    for name, depth in (("top", 1), ("all", n_levels))[:n_levels]:
        symbols = [symbols_of([level.numpy() for level in piece.levels[:depth]], index) for piece in pieces]
        n, step = len(symbols[0]), max(1, len(symbols[0]) // 2)
        n_stretches = np.maximum(0, (held_out.lengths(0) - n) // step + 1)  # in each track
        places = spread(n_stretches, MAX_STRETCHES)
        stretches = [_symbols(shards, held_out[i], depth)[k * step : k * step + n] for i, k in places]
        tracks = (_symbols(shards, track, depth) for track in progress(training, "search for copies", len(training)))
        searched = [piece[changes(piece)] for piece in (*symbols, *stretches)]  # held symbols count once
        found = longest_runs(searched, (track[changes(track)] for track in tracks))
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
                later = (whole - track.n_samples) / index.sample_rate
                row |= {"seconds": float((end - start) * code_seconds), "start_seconds": float(start * code_seconds)}
                row |= {"track": track.path, "track_seconds": float(track_start + later)}
            report["runs"].append(row)
    return reports


def _symbols(shards: Shards, track: ShardTrack, depth: int) -> np.ndarray:
    return symbols_of([shards.codes(track, level) for level in range(depth)], shards.index)


def symbols_of(levels: Sequence[np.ndarray], index: ShardIndex) -> np.ndarray:
    """The codes of level 0, or hashes of the codes of all given levels at their time; int64 [n_codes], 0 or more."""
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
    return np.flatnonzero(np.diff(symbols, prepend=-1))


def longest_runs(pieces: Sequence[np.ndarray], tracks: Iterable[np.ndarray]) -> list[Run]:
    """The longest run that each piece shares with a track, int [n] each; its length is 0 below SHORTEST."""
    longest, sequences = [Run()] * len(pieces), [piece.tolist() for piece in pieces]
    for number, track in enumerate(tracks):
        matcher = SequenceMatcher(None, b=track.tolist(), autojunk=False)
        for i, sequence in enumerate(sequences):
            matcher.set_seq1(sequence)
            start, track_start, length = matcher.find_longest_match()
            if length >= SHORTEST and length > longest[i].length:
                longest[i] = Run(length, start, number, track_start)
    return longest


def report_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for row in report["runs"]:
        if not row["length"]:
            lines.append(f"{row['symbols']}  none of {SHORTEST} codes or more")
            continue
        chance = "no held-out track is as long as the piece" if row["p"] is None else f"p = {row['p']:.3f}"
        length = f"{row['symbols']}  {row['length']} codes, {row['seconds']:.2f} s"
        places = f"at {row['start_seconds']:.2f} s as {row['track']} at {row['track_seconds']:.2f} s"
        lines.append(f"{length}: {places}; {chance}")
    return lines
