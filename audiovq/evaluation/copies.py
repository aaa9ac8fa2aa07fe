"""The copy report: what a piece shares with the training tracks, and whether held-out music shares as much by chance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from audiovq.data.codes import Codes
from audiovq.data.shards import Shards, ShardTrack, TrackTable, spread
from audiovq.evaluation.shared_runs import KINDS, MEASURES, NEAR_SYMBOLS, SEED, SharedRun, longest_runs, mixed

MAX_STRETCHES = 100  # of the held-out tracks


def copy_reports(pieces: Sequence[Codes], shards: Shards) -> list[dict[str, Any]]:
    """Of each piece, all of one length, the longest runs that it shares with the training tracks, and what held-out tracks
    share with them.

    A symbol is what a piece is at one code of the top level: that code alone ("top"), or with all finer codes of its time
    ("all"). Held-out tracks are cut into stretches as long as a piece (each begins half a stretch after the one
    before, at most MAX_STRETCHES are taken) and searched alike. `p` is the share of them, the piece counted in, whose
    longest run is at least as long; 95 % of them reach at most `held_out_95`. Both are None if no held-out track is so long.

    Args:
        shards: of the run; shifted copies of its tracks are searched, too.
    Returns:
        seconds, n_stretches, and runs, a list of dicts: symbols, kind, by, p, held_out_95, and if anything is shared
        length, changes, distinct, equal_share, seconds, start_seconds, track, track_seconds (see `shared_runs`).
    Raises:
        ValueError: codes of another tokenizer, or no training tracks.
    """
    train = _training_tracks(pieces[0], shards)
    reports: list[dict[str, Any]] = [{"seconds": piece.seconds, "n_stretches": 0, "runs": []} for piece in pieces]
    n_levels = len(pieces[0].levels)
    for name, depth in (("top", 1), ("all", n_levels))[:n_levels]:
        symbols = [
            symbols_of(
                [level.numpy() for level in piece.levels[:depth]], shards.index.hop_lengths, shards.index.codebook_size
            )
            for piece in pieces
        ]
        stretches = list(_held_out_stretches(shards, depth, len(symbols[0])))
        found = longest_runs([*symbols, *stretches], (_symbols(shards, track, depth) for track in train))
        chance = found[len(pieces) :]
        for report, piece, longest in zip(reports, symbols, found, strict=False):
            report["n_stretches"] = len(stretches)
            for kind, measure in itertools.product(KINDS, MEASURES):
                run = longest.get((kind, measure))
                others = [getattr(c[kind, measure], measure) if (kind, measure) in c else 0 for c in chance]
                row = {"symbols": name, "kind": kind, "by": measure}
                row |= _judged(getattr(run, measure) if run else 0, others)
                report["runs"].append(row | (_described(run, piece, train, shards) if run else {}))
    return reports


def _training_tracks(piece: Codes, shards: Shards) -> TrackTable:
    index, folder = shards.index, shards.folder
    if piece.tokenizer_hash != index.tokenizer_hash:
        raise ValueError(
            f"{folder}: expected codes of its tokenizer ({index.tokenizer_hash[:12]}), found those of another "
            f"({piece.tokenizer_hash[:12]}); encode the audio with the model of that run"
        )
    train = index.tracks.of("train")
    if not train:
        raise ValueError(f"{folder}: no training tracks among the codes")
    return train


def symbols_of(levels: Sequence[np.ndarray], hop_lengths: Sequence[int], outside: int) -> np.ndarray:
    """Codes of the first levels -> int64 [n_top], what a piece is at each top code.

    One level gives its codes, several a hash of 63 bits. Where the end of the piece cuts finer codes off, `outside` is.
    """
    top = levels[0].astype(np.int64)
    if len(levels) == 1:
        return top
    hashes = np.zeros(len(top), dtype=np.uint64)
    for level, hop in zip(levels, hop_lengths, strict=False):
        ratio = hop_lengths[0] // hop
        whole = np.pad(level, (0, len(top) * ratio - len(level)), constant_values=outside).reshape(len(top), ratio)
        for k in range(ratio):
            hashes = mixed(hashes, whole[:, k])
    return (hashes >> np.uint64(1)).astype(np.int64)


def _symbols(shards: Shards, track: ShardTrack, n_levels: int) -> np.ndarray:
    levels = [shards.codes(track, level) for level in range(n_levels)]
    return symbols_of(levels, shards.index.hop_lengths, shards.index.codebook_size)


def _held_out_stretches(shards: Shards, n_levels: int, n: int) -> Iterator[np.ndarray]:
    held_out, step = shards.index.tracks.of("valid"), max(1, n // 2)
    for track, k in spread(np.maximum(0, (held_out.lengths(0) - n) // step + 1), MAX_STRETCHES):
        yield _symbols(shards, held_out[track], n_levels)[k * step : k * step + n]


def _judged(value: int, others: list[int]) -> dict[str, float | None]:
    if not others:
        return {"p": None, "held_out_95": None}
    reached = sum(other >= value for other in others)
    return {"p": (1 + reached) / (1 + len(others)), "held_out_95": float(np.quantile(others, 0.95))}


def _described(run: SharedRun, piece: np.ndarray, train: TrackTable, shards: Shards) -> dict[str, Any]:
    index, track = shards.index, train[run.track]
    step = index.hop_lengths[0] / index.sample_rate
    # A shifted copy lacks the first samples of its track, so its codes are that much later in the track. All copies of a
    # track follow each other, the whole one first.
    whole = next((train[i + 1] for i in range(run.track - 1, -1, -1) if train[i].path != track.path), train[0])
    cut = whole.n_samples - track.n_samples
    return {
        "length": run.length, "changes": run.changes,
        "distinct": len(np.unique(piece[run.start : run.start + run.length])), "equal_share": run.equal / run.length,
        "seconds": run.length * step, "start_seconds": run.start * step, "track": track.path,
        "track_seconds": run.track_start * step + cut / index.sample_rate,
    }  # fmt: skip


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report for people, a line a run."""
    lines = []
    for row in report["runs"]:
        what = f"{row['symbols']:3} {row['kind']:5} by {row['by']:7}"
        if "track" not in row:
            lines.append(f"{what}  none of {SEED if row['kind'] == 'exact' else NEAR_SYMBOLS} codes or more")
            continue
        chance = "no held-out track is as long as the piece"
        if row["p"] is not None:
            chance = f"p = {row['p']:.3f}, 95 % of held-out stretches reach at most {row['held_out_95']:g}"
        lines.append(
            f"{what}  {row['length']} codes, {row['changes']} changes, {row['distinct']} distinct, {row['equal_share']:.0%} equal, "
            f"{row['seconds']:.2f} s: at {row['start_seconds']:.2f} s as {row['track']} at {row['track_seconds']:.2f} s; {chance}"
        )
    return lines
