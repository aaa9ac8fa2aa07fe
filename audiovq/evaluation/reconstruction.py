"""How well a tokenizer reconstructs a test set: a row a track and level prefix, their means, and the codes' use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from audiovq.data.codes import Codes
from audiovq.evaluation.code_statistics import entropy_of_counts, usage
from audiovq.evaluation.confidence import mean_estimate
from audiovq.evaluation.metrics import METRICS, Metric, compare

Row = dict[str, Any]


@dataclass
class Reconstruction:
    """A track, what each level prefix makes of it, and how long that took."""

    track: str
    source: Tensor  # float [channels, samples]
    prefixes: list[Tensor]  # float [channels, samples]: of the first level, the first two, …
    codes: Codes
    encode_seconds: float
    decode_seconds: list[float]  # a prefix


def evaluate_tracks(tracks: Iterable[Reconstruction], metrics: Mapping[str, Metric] = METRICS) -> dict[str, Any]:
    """Judge a test set; one track at a time is in memory.

    Returns:
        tracks: a row a track and level prefix: the metrics, raw kbps, and how many times faster than the music plays it
            was encoded and decoded (`encode_speed`, `decode_speed`).
        summary: a row a level prefix: of the same columns `mean` over tracks, each equally, and `ci95`, the half-width of
            Student's interval (null for one track); raw kbps and kbps at the codes' entropy over the whole test set.
        levels: a row a level: codes a second, number of codes, entropy in bits a code, perplexity, share of codes used.
            With fewer than about ten codes for each entry of the codebook the entropy comes out too low.
    """
    rows: list[Row] = []
    counts: list[np.ndarray] = []
    codes = None
    for track in tracks:
        codes = track.codes
        found = [np.bincount(level.numpy(), minlength=codes.codebook_size) for level in codes.levels]
        counts = [a + b for a, b in zip(counts, found, strict=True)] if counts else found
        rows += _track_rows(track, metrics)
    if codes is None:
        raise ValueError("expected at least one track to evaluate, found none")
    levels = [_level_row(i, n, codes.sample_rate / codes.hop_lengths[i]) for i, n in enumerate(counts)]
    return {"tracks": rows, "summary": _summary(rows, levels, codes.codebook_size), "levels": levels}


def _track_rows(track: Reconstruction, metrics: Mapping[str, Metric]) -> list[Row]:
    codes, rows = track.codes, []
    for k, (waveform, decode_seconds) in enumerate(zip(track.prefixes, track.decode_seconds, strict=True), start=1):
        n_codes = sum(map(len, codes.levels[:k]))
        rows.append({
            "track": track.track,
            "levels": k,
            "seconds": codes.seconds,
            "samples": codes.n_samples,
            **compare(waveform, track.source, codes.sample_rate, metrics),
            "kbps": n_codes * math.log2(codes.codebook_size) / codes.seconds / 1000,
            "encode_speed": codes.seconds / track.encode_seconds,
            "decode_speed": codes.seconds / decode_seconds,
        })  # fmt: skip
    return rows


def _level_row(level: int, counts: np.ndarray, code_rate: float) -> Row:
    bits = entropy_of_counts(counts)
    return {
        "level": level, "codes_per_second": code_rate, "n_codes": int(counts.sum()), "entropy_bits": bits,
        "perplexity": 2**bits, "usage": usage(counts),
    }  # fmt: skip


def _summary(rows: list[Row], levels: list[Row], codebook_size: int) -> list[Row]:
    summary = []
    for k in range(1, len(levels) + 1):
        group = [row for row in rows if row["levels"] == k]
        means = {
            name: mean_estimate([row[name] for row in group]).to_json()
            for name in group[0]
            if name not in {"track", "levels", "seconds", "samples", "kbps"}
        }
        seconds = sum(row["seconds"] for row in group)
        n_codes = [level["n_codes"] for level in levels[:k]]
        entropy = sum(n * level["entropy_bits"] for n, level in zip(n_codes, levels, strict=False))
        summary.append({
            "levels": k,
            "n_tracks": len(group),
            "seconds": seconds,
            **means,
            "kbps": sum(n_codes) * math.log2(codebook_size) / seconds / 1000,
            "entropy_kbps": entropy / seconds / 1000,
        })  # fmt: skip
    return summary
