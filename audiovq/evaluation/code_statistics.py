"""How the codes of a data set are used, and what they cost under a prior."""

import math
from collections.abc import Iterator

import numpy as np
import scipy.stats
import torch
from torch.utils.data import default_collate

from audiovq.data.datasets import CodeWindows
from audiovq.data.shards import Shards
from audiovq.distributed import collectives
from audiovq.prior.prior import Prior
from audiovq.utils import signals
from audiovq.utils.progress import ProgressBar, track as progress

MAX_WINDOWS, BATCH_SIZE = 1 << 14, 8


def level_counts(shards: Shards, split: str | None = None) -> list[np.ndarray]:
    """How often each code occurs in one split or in all: int64 [codebook_size] for each level."""
    index = shards.index
    tracks = index.tracks.of(split)
    counted = [np.zeros(index.codebook_size, dtype=np.int64) for _ in index.hop_lengths]
    for track in progress(tracks, "count codes", len(tracks)):
        for level, counts in enumerate(counted):
            counts += np.bincount(shards.codes(track, level), minlength=index.codebook_size)
    return counted


def code_statistics(counts: np.ndarray, code_rate: float, slots: int = 1) -> dict[str, float]:
    """Figures of one level, of which `counts`, int64 [codebook_size], says how often each code occurs; a part of the
    codebook for each of `VQVAEConfig.slots`."""
    entropy = scipy.stats.entropy(counts, base=2) if counts.any() else 0.0
    bits = max(0.0, float(entropy) - math.log2(slots))  # a code's slot is known
    rates = {"unigram_bits_per_code": bits, "unigram_bits_per_second": bits * code_rate}
    return rates | {"perplexity": 2**bits, "usage": float((counts > 0).mean())}


@torch.inference_mode()
def held_out_bits(prior: Prior, shards: Shards, split: str = "valid", limit: int = MAX_WINDOWS) -> dict[str, float]:
    """bits_per_code, bits_per_second and n_codes of the tracks of a split, in windows of the prior's context,
    which begin without a past; at most `limit`, evenly spread. Each process computes its share."""
    c, spec = prior.config, prior.spec
    level, context = spec.level, c.transformer.context // spec.ratio * spec.ratio
    inputs = {"seed": 0, **c.extra_inputs}
    data = CodeWindows(shards, split, level, context, c.context_codes, spec.vocabularies, **inputs)
    n_windows = -(-data.tracks.lengths(level) // context)
    windows = list(spread(n_windows, limit))[collectives.rank() :: collectives.world_size()]
    nll, n_codes = 0.0, 0
    device = prior.head.weight.device
    with ProgressBar(f"held-out bits, level {level}", len(windows)) as bar:
        for i in range(0, len(windows), BATCH_SIZE):
            some = windows[i : i + BATCH_SIZE]
            batch = default_collate([data.window(data.tracks[track], k * context) for track, k in some])
            part, count = prior.loss({key: value.to(device) for key, value in batch.items()})
            nll, n_codes = nll + float(part), n_codes + int(count)
            bar.advance(len(some))
            signals.poll()
    nll, n_codes = collectives.all_reduce_(torch.tensor([nll, n_codes], dtype=torch.float64)).tolist()
    bits = nll / n_codes / math.log(2)
    return {"bits_per_code": bits, "bits_per_second": bits * spec.code_rate, "n_codes": int(n_codes)}


def spread(counts: np.ndarray, at_most: int) -> Iterator[tuple[int, int]]:
    """Choose places in tracks with `counts` [n_tracks] places, evenly spread: (track, place within it), in order."""
    ends = np.cumsum(counts)
    n = int(ends[-1]) if len(ends) else 0
    for place in np.linspace(0, n - 1, min(n, at_most)).round().astype(int):
        track = int(np.searchsorted(ends, place, side="right"))
        yield track, int(place - ends[track] + counts[track])
