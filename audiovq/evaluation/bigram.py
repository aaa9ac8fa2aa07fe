"""What the code before tells of a code: the yardstick between counting codes and a prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from audiovq.data.shards import Shards
from audiovq.utils import signals

MAX_CODES = 1 << 24  # that are counted, or judged
STRENGTHS = 4.0 ** np.arange(9)  # how many codes the single codes' frequencies weigh as much as


def bigram_bits(shards: Shards, level: int, split: str) -> float:
    """Bits a code of a split's tracks under p(code | code before), learned from the training tracks."""
    return cross_entropy(_codes(shards, level, "train"), _codes(shards, level, split), shards.index.codebook_size)


def _codes(shards: Shards, level: int, split: str) -> Iterator[np.ndarray]:
    """Of each track, in random order, because there may be more than are looked at."""
    tracks = shards.index.tracks.of(split)
    for i in np.random.default_rng(0).permutation(len(tracks)):
        signals.poll()
        yield shards.codes(tracks[int(i)], level)


def cross_entropy(learned: Iterable[np.ndarray], judged: Iterable[np.ndarray], codebook_size: int) -> float:
    """Bits a code of `judged` under p(code | code before) of `learned`; 0 if there is nothing to judge.

    Counts of pairs, smoothed towards the frequencies of single codes (counted with one more each): a pair's probability is
    (count + strength · p(code)) / (count of the code before + strength), the mean of a Dirichlet posterior (MacKay and
    Peto 1995, "A hierarchical Dirichlet language model"). The strength is the one that is best for the learned
    pairs when each is left out of its own count.

    Args:
        learned, judged: int codes, a track each; a track's first code comes after nothing.
    """
    size = codebook_size + 1  # and "nothing"
    known, asked = _pairs(learned, size), _pairs(judged, size)
    if not len(asked):
        return 0.0
    single = np.bincount(known % size, minlength=size) + 1.0
    single[-1] = 0  # "nothing" comes after no code
    single /= single.sum()
    pairs, counts = np.unique(known, return_counts=True)
    after = np.bincount(known // size, minlength=size)  # how often anything came after each code

    def left_out(strength: float) -> float:
        p = (counts - 1 + strength * single[pairs % size]) / (after[pairs // size] - 1 + strength)
        return float(-(counts * np.log2(p)).sum())

    strength = min(STRENGTHS, key=left_out)
    place = np.searchsorted(pairs, asked)
    found = np.append(pairs, -1)[place] == asked
    seen = np.where(found, np.append(counts, 0)[place], 0)
    p = (seen + strength * single[asked % size]) / (after[asked // size] + strength)
    return float(-np.log2(p).mean())


def _pairs(tracks: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Each code with the one before it as one number, int64."""
    found, n = [np.zeros(0, dtype=np.int64)], 0
    for codes in tracks:
        before = np.concatenate([[size - 1], codes[:-1]])
        found.append(before * size + codes)
        n += len(codes)
        if n >= MAX_CODES:
            break
    return np.concatenate(found)[:MAX_CODES]
