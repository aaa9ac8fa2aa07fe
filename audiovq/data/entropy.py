"""Codes in fewer bits, exactly: an adaptive model of each level in front of constriction's range coder.

A code's probability is a mixture of how often it came so far: at all, after the code before it, and together with the
coarser level's code at that time. How much each of the three is trusted is learned on the way, by how well it
predicted when it had seen as much (blending as in PPM and context mixing: Bell, Cleary and Witten, Text Compression,
1990, chapter 6). Nothing is stored but the coded bits: the decoder learns the same counts from what it has decoded.

All probabilities are integers, and integers below 2^53 are exact in the coder's doubles, so that any machine decodes what
any other encoded. The trained priors would predict better, but their floating-point results differ in the last bits
between machines, batch sizes and versions of torch, and one bit is enough to make the rest of a file undecodable: they
are not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import constriction
import numpy as np

stream: Any = constriction.stream  # type: ignore[attr-defined]  # a compiled module, which pyright cannot see

CODING = "range-1"  # the name of all that follows: a change in any number makes a new one
ONE = 1 << 16  # of weights
LARGEST_CONTEXT = 4096  # codebook size up to which codes after each code are counted
TRUSTED = 15  # counts of a context up to which trust is learned apart


class Counts:
    """How often each code came in one kind of context, and how far that is to be trusted, by how much was seen."""

    def __init__(self, size: int):
        self.size = size
        self.rows: dict[int, np.ndarray] = {}  # context -> int64 [size]
        self.totals: dict[int, int] = {}
        self.good, self.bad = [ONE] * 64, [ONE] * 64

    def trust(self, context: int) -> int:
        """Weight of these counts against the more general ones, in [0, ONE)."""
        bucket = self.bucket(context)
        return (self.good[bucket] << 16) // (self.good[bucket] + self.bad[bucket]) if bucket else 0

    def bucket(self, context: int) -> int:
        total = self.totals.get(context, 0)
        return total if total <= TRUSTED else min(TRUSTED + (total >> 4).bit_length(), 63)

    def learn(self, context: int, code: int, probability: int) -> int:
        """Count a code; returns its probability by these counts and the more general `probability`, of 2^24."""
        row = self.rows.setdefault(context, np.zeros(self.size, dtype=np.int64))
        bucket, total = self.bucket(context), self.totals.get(context, 0)
        if total:
            trust = self.trust(context)
            own = (int(row[code]) << 24) // total
            mixed = max(1, (trust * own + (ONE - trust) * probability) >> 16)
            credit = min(ONE, trust * own // mixed)
            self.good[bucket] += credit
            self.bad[bucket] += ONE - credit
            probability = mixed
        row[code] += 1
        self.totals[context] = total + 1
        return probability


class LevelModel:
    """Predicts the codes of one level, from the contexts general to special."""

    def __init__(self, size: int, n_contexts: int):
        self.size = size
        self.counts = [Counts(size) for _ in range(n_contexts)]

    def frequencies(self, contexts: Sequence[int]) -> np.ndarray:
        """int64 [size], all above 0; their sum is about 2^24."""
        left = ONE  # weight that the more general ones share
        result = np.zeros(self.size, dtype=np.int64)
        for counts, context in zip(reversed(self.counts), reversed(contexts), strict=True):
            weight = left * counts.trust(context) >> 16
            if weight:
                result += counts.rows[context] * ((weight << 24) // counts.totals[context]) >> 16
                left -= weight
        return result + ((left << 8) // self.size + 1)

    def learn(self, contexts: Sequence[int], code: int) -> None:
        probability = max(1, (1 << 24) // self.size)
        for counts, context in zip(self.counts, contexts, strict=True):
            probability = counts.learn(context, code, probability)


def _walk(
    lengths: Sequence[int], hop_lengths: Sequence[int], size: int, code_at: Callable[[int, int, Any], int]
) -> list[np.ndarray]:
    """Visit all codes in their order in the file, the same for encoder and decoder; int64 a level."""
    levels: list[np.ndarray] = []
    for i, length in enumerate(lengths):
        n_contexts = (1 if size > LARGEST_CONTEXT else 2) + (1 if i and size <= LARGEST_CONTEXT else 0)
        model, codes, previous = LevelModel(size, n_contexts), np.zeros(length, dtype=np.int64), size
        for t in range(length):
            coarser = int(levels[i - 1][t * hop_lengths[i] // hop_lengths[i - 1]]) if i else 0
            contexts = (0, coarser, previous)[:n_contexts] if i else (0, previous)[:n_contexts]
            frequencies = model.frequencies(contexts).astype(np.float64)
            previous = code_at(i, t, stream.model.Categorical(frequencies, perfect=False, lazy=True))
            model.learn(contexts, previous)
            codes[t] = previous
        levels.append(codes)
    return levels


def compress(levels: Sequence[np.ndarray], hop_lengths: Sequence[int], codebook_size: int) -> np.ndarray:
    """Codes of each level, coarse to fine -> uint8 [n]. Some ten thousand codes a second."""
    coder = stream.queue.RangeEncoder()

    def code_at(level: int, t: int, model: Any) -> int:
        code = int(levels[level][t])
        coder.encode(code, model)
        return code

    _walk([len(level) for level in levels], hop_lengths, codebook_size, code_at)
    return coder.get_compressed().astype("<u4").view(np.uint8)


def decompress(
    data: np.ndarray, lengths: Sequence[int], hop_lengths: Sequence[int], codebook_size: int
) -> list[np.ndarray]:
    """The inverse of `compress`, int64 a level. Data that was not compressed so gives any codes, or an exception."""
    coder = stream.queue.RangeDecoder(np.ascontiguousarray(data).view("<u4").astype(np.uint32))
    return _walk(lengths, hop_lengths, codebook_size, lambda level, t, model: int(coder.decode(model)))
