"""The copy report: the longest runs that a piece shares with the training tracks, compared with chance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from audiovq.data.codes import Codes
from audiovq.data.shards import Shards, ShardTrack, spread
from audiovq.evaluation import shared_runs
from audiovq.evaluation.shared_runs import Longest, SharedRun, longest_runs

MAX_STRETCHES = 100  # of the held-out tracks


def copy_reports(pieces: Sequence[Codes], shards: Shards) -> list[dict[str, Any]]:
    """Find the longest runs that pieces share with the training tracks, and with which probability by chance.

    A symbol stands for the time of one code of level 0: that code alone ("top"), or with all finer codes of
    its time ("all"). To tell chance from copying, held-out tracks are cut into stretches of the length of a
    piece, each half a stretch after the one before, and searched in the same way.

    Args:
        pieces: all of one length.
        shards: codes of the run; shifted copies of its tracks are searched, too.
    Returns:
        For each piece `seconds`, `n_stretches` and `runs`. A run has
        symbols, kind, by: which symbols, which kind of run and which measure (see `shared_runs`);
        p: the share of held-out stretches, the piece counted in, whose run is at least as long, and
        held_out_95: what 95 % of these stretches reach at most; both None if no held-out track is so long;
        if anything is shared, length, changes, distinct, equal_share, seconds, start_seconds (in the
        piece), track and track_seconds (in the track).
    Raises:
        ValueError: codes of another tokenizer, or no training tracks.
    """
    training = _training_tracks(pieces[0], shards)
    reports: list[dict[str, Any]] = [{"seconds": piece.seconds, "runs": []} for piece in pieces]
    n_levels = len(pieces[0].levels)
    for name, depth in (("top", 1), ("all", n_levels))[:n_levels]:
        symbols = [_symbols([level.numpy() for level in piece.levels[:depth]], shards) for piece in pieces]
        stretches = list(_held_out_stretches(shards, depth, len(symbols[0])))
        tracks = (_track_symbols(shards, track, depth) for track in training)
        found = longest_runs([*symbols, *stretches], tracks)
        by_chance = found[len(pieces) :]
        for report, piece, longest in zip(reports, symbols, found, strict=False):
            report["n_stretches"] = len(stretches)
            for kind, measure in itertools.product(shared_runs.KINDS, shared_runs.MEASURES):
                row = {"symbols": name, "kind": kind, "by": measure}
                row |= _chance(longest, by_chance, kind, measure)
                run = longest.get((kind, measure))
                report["runs"].append(row | (_describe(run, piece, training, shards) if run else {}))
    return reports


def _training_tracks(piece: Codes, shards: Shards) -> list[ShardTrack]:
    index, folder = shards.index, shards.folder
    if piece.tokenizer_hash != index.tokenizer_hash:
        raise ValueError(
            f"{folder}: expected codes of its tokenizer ({index.tokenizer_hash[:12]}), found those of "
            f"another ({piece.tokenizer_hash[:12]}); encode the audio with the model of that run"
        )
    training = index.of("train")
    if not training:
        raise ValueError(f"{folder}: no training tracks among the codes")
    return training


def symbols_of(levels: Sequence[np.ndarray], hop_lengths: Sequence[int], missing: int) -> np.ndarray:
    """One symbol for each code of level 0: the code itself, or a hash of the codes of all levels.

    Args:
        levels: int [n_codes] each, coarse to fine.
        hop_lengths: of the levels.
        missing: stands for finer codes beyond the end of a piece.
    Returns:
        int64 [n_codes of level 0].
    """
    n_top = len(levels[0])
    if len(levels) == 1:
        return levels[0].astype(np.int64)
    hashes = np.zeros(n_top, dtype=np.uint64)
    for level, hop_length in zip(levels, hop_lengths, strict=False):
        ratio = hop_lengths[0] // hop_length
        padded = np.pad(level, (0, n_top * ratio - len(level)), constant_values=missing)
        for codes in padded.reshape(n_top, ratio).T:
            hashes = shared_runs.mix(hashes, codes)
    return (hashes >> np.uint64(1)).astype(np.int64)


def _symbols(levels: Sequence[np.ndarray], shards: Shards) -> np.ndarray:
    return symbols_of(levels, shards.index.hop_lengths, shards.index.codebook_size)


def _track_symbols(shards: Shards, track: ShardTrack, n_levels: int) -> np.ndarray:
    return _symbols([shards.codes(track, level) for level in range(n_levels)], shards)


def _held_out_stretches(shards: Shards, n_levels: int, n: int) -> Iterator[np.ndarray]:
    """At most MAX_STRETCHES stretches of `n` symbols, evenly spread over the held-out tracks."""
    held_out, step = shards.index.of("valid"), max(1, n // 2)
    n_stretches = np.array([max(0, (track.lengths[0] - n) // step + 1) for track in held_out])
    for track, k in spread(n_stretches, MAX_STRETCHES):
        yield _track_symbols(shards, held_out[track], n_levels)[k * step : k * step + n]


def _chance(longest: Longest, by_chance: Sequence[Longest], kind: str, measure: str) -> dict[str, Any]:
    """How often runs of held-out stretches are as long as that of a piece."""
    found = [runs.get((kind, measure)) for runs in (longest, *by_chance)]
    value, *others = (getattr(run, measure) if run else 0 for run in found)
    if not others:
        return {"p": None, "held_out_95": None}
    n_as_long = sum(other >= value for other in others)
    return {"p": (1 + n_as_long) / (1 + len(others)), "held_out_95": float(np.quantile(others, 0.95))}


def _describe(run: SharedRun, piece: np.ndarray, training: list[ShardTrack], shards: Shards) -> dict[str, Any]:
    index, track = shards.index, training[run.track]
    code_seconds = index.hop_lengths[0] / index.sample_rate
    # The shifted copies of a track follow it. They lack its first samples, so their codes are later in it.
    first = run.track
    while first and training[first - 1].path == track.path:
        first -= 1
    shift_seconds = (training[first].n_samples - track.n_samples) / index.sample_rate
    return {
        "length": run.length,
        "changes": run.changes,
        "distinct": len(np.unique(piece[run.start : run.start + run.length])),
        "equal_share": run.equal / run.length,
        "seconds": run.length * code_seconds,
        "start_seconds": run.start * code_seconds,
        "track": track.path,
        "track_seconds": run.track_start * code_seconds + shift_seconds,
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as text, a line for each run."""
    lines, shortest = [], {"exact": shared_runs.SEED, "near": shared_runs.NEAR_SYMBOLS}
    for row in report["runs"]:
        name = f"{row['symbols']:3} {row['kind']:5} by {row['by']:7}"
        if "track" not in row:
            lines.append(f"{name}  none of {shortest[row['kind']]} codes or more")
            continue
        chance = "no held-out track is as long as the piece"
        if row["p"] is not None:
            chance = f"p = {row['p']:.3f}, 95 % of held-out stretches reach at most {row['held_out_95']:g}"
        lines.append(
            f"{name}  {row['length']} codes, {row['changes']} changes, {row['distinct']} distinct, "
            f"{row['equal_share']:.0%} equal, {row['seconds']:.2f} s: at {row['start_seconds']:.2f} s "
            f"as {row['track']} at {row['track_seconds']:.2f} s; {chance}"
        )
    return lines
