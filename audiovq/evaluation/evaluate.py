"""Use of the codes of a data set, and bits of a prior on held-out tracks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import default_collate

from audiovq import stopping
from audiovq.data.codes import Shards
from audiovq.data.datasets import CodeWindows
from audiovq.prior.prior import Prior
from audiovq.terminal import track as progress


def code_statistics(shards: Shards, split: str | None = None) -> list[dict[str, float]]:
    """Of each level's codes, in one split or in all: unigram entropy (bits a code and a second), perplexity, share of
    codes used."""
    index = shards.index
    tracks = [track for track in index.tracks if split in {None, track.split}]
    result = []
    for level, hop in enumerate(index.hop_lengths):
        counts = count_codes((shards.codes(track, level) for track in tracks), index.codebook_size)
        bits = entropy_of_counts(counts)
        result.append({
            "unigram_bits_per_code": bits,
            "unigram_bits_per_second": bits * index.sample_rate / hop,
            "perplexity": 2**bits,
            "usage": float((counts > 0).mean()),
        })  # fmt: skip
    return result


def entropy_bits(codes: Iterable[np.ndarray], codebook_size: int) -> float:
    """Entropy of the codes' own frequencies, bits a code."""
    return entropy_of_counts(count_codes(codes, codebook_size))


def count_codes(codes: Iterable[np.ndarray], codebook_size: int) -> np.ndarray:
    """How often each code occurs, int64 [codebook_size]; one array after the other, never all at once."""
    counts = np.zeros(codebook_size, dtype=np.int64)
    for part in codes:
        stopping.poll()
        counts += np.bincount(part, minlength=codebook_size)
    return counts


def entropy_of_counts(counts: np.ndarray) -> float:
    """In bits a code; 0 if nothing was counted."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum()) if len(p) else 0.0


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
    first_windows = range(0, len(windows), windows_at_once)
    for i in progress(first_windows, f"held-out bits of level {prior.spec.level}", len(first_windows)):
        batch = default_collate([data.window(track, start) for track, start in windows[i : i + windows_at_once]])
        part, count = prior.loss({key: value.to(device) for key, value in batch.items()})
        nll, n_codes = nll + float(part), n_codes + int(count)
    bits = nll / n_codes / math.log(2)
    return {"bits_per_code": bits, "bits_per_second": bits * prior.spec.code_rate, "n_codes": n_codes}
