"""Reconstruction quality of a tokenizer on a test set, and bits of a prior on held-out tracks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from audiovq.data.codes import Codes, Shards
from audiovq.data.datasets import CodeWindows
from audiovq.evaluation.metrics import mel_distance, si_sdr
from audiovq.prior.prior import Prior

Reconstruct = Callable[[Path], tuple[Tensor, list[Tensor], Codes]]  # source, one reconstruction a level prefix, codes


def evaluate_tracks(paths: Iterable[Path], reconstruct: Reconstruct) -> list[dict[str, Any]]:
    """One row a track and level prefix: mel distance, SI-SDR, raw bit rate, entropy bit rate."""
    rows = []
    for path in paths:
        source, reconstructions, codes = reconstruct(path)
        for n_levels, reconstruction in enumerate(reconstructions, start=1):
            prefix = codes.levels[:n_levels]
            rows.append({
                "track": path.name,
                "levels": n_levels,
                "seconds": codes.seconds,
                "samples": source.shape[-1],
                "mel_distance": mel_distance(source, reconstruction, codes.sample_rate),
                "si_sdr_db": si_sdr(source, reconstruction),
                "kbps": sum(map(len, prefix)) * math.log2(codes.codebook_size) / codes.seconds / 1000,
                "entropy_kbps": sum(len(x) * entropy_bits([x.numpy()], codes.codebook_size) for x in prefix)
                / codes.seconds
                / 1000,
            })  # fmt: skip
    return rows


def mean_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over tracks of each level prefix, each track equally."""
    means = []
    for n_levels in sorted({row["levels"] for row in rows}):
        group = [row for row in rows if row["levels"] == n_levels]
        mean = {key: float(np.mean([row[key] for row in group])) for key in group[0] if key not in {"track", "levels"}}
        means.append({"track": f"mean of {len(group)}", "levels": n_levels, **mean})
    return means


def code_statistics(shards: Shards, split: str) -> list[dict[str, float]]:
    """Of each level's codes in a split: unigram entropy (bits a code and a second), perplexity, share of codes used."""
    index = shards.index
    result = []
    for level, hop in enumerate(index.hop_lengths):
        codes = [shards.codes(track, level) for track in index.tracks if track.split == split]
        counts = np.bincount(np.concatenate(codes), minlength=index.codebook_size) if codes else np.zeros(1)
        bits = entropy_bits(codes, index.codebook_size)
        result.append({
            "unigram_bits_per_code": bits,
            "unigram_bits_per_second": bits * index.sample_rate / hop,
            "perplexity": 2**bits,
            "usage": float((counts > 0).mean()),
        })  # fmt: skip
    return result


def entropy_bits(codes: list[np.ndarray], codebook_size: int) -> float:
    """Entropy of the codes' own frequencies, bits a code."""
    if not codes:
        return 0.0
    p = np.bincount(np.concatenate(codes), minlength=codebook_size) / sum(map(len, codes))
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


@torch.inference_mode()
def held_out_bits(prior: Prior, shards: Shards, split: str = "valid", windows_at_once: int = 8) -> dict[str, float]:
    """Bits a code and bits a second over every code of a split, window after window (each begins without a past)."""
    context = prior.config.transformer.context // prior.spec.ratio * prior.spec.ratio
    data = CodeWindows(
        shards,
        split,
        prior.spec.level,
        context,
        prior.config.halo,
        prior.spec.vocabularies,
        seed=0,
        **prior.config.beside,
    )
    windows = [(t, s) for t in data.tracks for s in range(0, t.lengths[prior.spec.level], context)]
    nll, n_codes = 0.0, 0
    device = prior.head.weight.device
    for i in range(0, len(windows), windows_at_once):
        batch = default_collate([data.window(track, start) for track, start in windows[i : i + windows_at_once]])
        part, count = prior.loss({key: value.to(device) for key, value in batch.items()})
        nll, n_codes = nll + float(part), n_codes + int(count)
    bits = nll / n_codes / math.log(2)
    return {"bits_per_code": bits, "bits_per_second": bits * prior.spec.code_rate, "n_codes": n_codes}
