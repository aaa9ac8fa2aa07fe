"""The cost of codes under a bigram model: a yardstick between the entropy of single codes and a prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from audiovq.data.shards import Shards
from audiovq.utils import signals

MAX_CODES = 1 << 24  # codes that are counted or evaluated at most
STRENGTHS = 4.0 ** np.arange(9)  # of the smoothing, in codes


def bigram_bits(shards: Shards, level: int, split: str) -> float:
    """Bits per code of the tracks of a split under a bigram model of the training tracks."""
    return cross_entropy(_codes(shards, level, "train"), _codes(shards, level, split), shards.index.codebook_size)


def _codes(shards: Shards, level: int, split: str) -> Iterator[np.ndarray]:
    """The codes of each track; in random order, because there may be more than MAX_CODES."""
    tracks = shards.index.of(split)
    for i in np.random.default_rng(0).permutation(len(tracks)):
        signals.poll()
        yield shards.codes(tracks[int(i)], level)


def cross_entropy(training: Iterable[np.ndarray], evaluated: Iterable[np.ndarray], codebook_size: int) -> float:
    """Bits per code under p(code | code before); 0 if there are no codes to evaluate.

    The counts of pairs are smoothed towards the frequencies of single codes, each counted once more than it
    occurs: p = (count + strength · p(code)) / (count of the code before + strength), the mean of a
    Dirichlet posterior. The strength is the one that is best for the training pairs when each is left out
    of its own count.

    Args:
        training, evaluated: int codes, one array per track. The first code of a track follows a begin symbol.
    Source: MacKay and Peto 1995, "A hierarchical Dirichlet language model".
    """
    size = codebook_size + 1  # with the begin symbol
    known, wanted = _pairs(training, size), _pairs(evaluated, size)
    if not len(wanted):
        return 0.0
    single = np.bincount(known % size, minlength=size) + 1.0
    single[-1] = 0  # the begin symbol follows no code
    single /= single.sum()
    pairs, counts = np.unique(known, return_counts=True)
    after = np.bincount(known // size, minlength=size)  # how many codes follow each code

    def leave_one_out_bits(strength: float) -> float:
        p = (counts - 1 + strength * single[pairs % size]) / (after[pairs // size] - 1 + strength)
        return float(-(counts * np.log2(p)).sum())

    strength = min(STRENGTHS, key=leave_one_out_bits)
    place = np.searchsorted(pairs, wanted)
    is_known = np.append(pairs, -1)[place] == wanted
    count = np.where(is_known, np.append(counts, 0)[place], 0)
    p = (count + strength * single[wanted % size]) / (after[wanted // size] + strength)
    return float(-np.log2(p).mean())


def _pairs(tracks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Each code with the one before it as a single number, int64 [n]."""
    found, n = [np.zeros(0, dtype=np.int64)], 0
    for codes in tracks:
        before = np.concatenate([[size - 1], codes[:-1]])
        found.append(before * size + codes)
        n += len(codes)
        if n >= MAX_CODES:
            break
    return np.concatenate(found)[:MAX_CODES]
