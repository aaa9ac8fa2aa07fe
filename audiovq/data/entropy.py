"""Lossless compression of codes: an adaptive model of each level, and constriction's range coder.

The probability of a code is a mixture of its frequencies so far: overall, after the code before it, and together with
the coarser level's code at that time. The weights are learned on the way, as in the decoder, from how well each
predicted at similar counts (blending as in PPM: Bell, Cleary and Witten, Text Compression, 1990, chapter 6).

All probabilities are integers, which are exact in the coder's doubles, so that any machine decodes the files
of any other. (The priors would predict better, but their last bits differ between machines.)
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import constriction
import numpy as np

stream: Any = constriction.stream  # type: ignore[attr-defined]  # a compiled module, which pyright cannot see

CODING = "range-1"  # name of this format; any change below needs a new one
ONE = 1 << 16  # the weight 1, as an integer
LARGEST_CONTEXT = 4096  # codebook size up to which pairs of codes are counted
TRUSTED = 15  # trust is learned for each count up to this one, and for ranges of counts above


class Counts:
    """Frequencies of the codes in one kind of context, and the trust in them at each number of codes seen."""

    def __init__(self, size: int):
        self.rows = defaultdict(lambda: np.zeros(size, dtype=np.int64))  # by context
        self.totals: Counter[int] = Counter()
        self.good, self.bad = [ONE] * 64, [ONE] * 64

    def trust(self, context: int) -> int:
        """Weight of these frequencies against the more general ones, in [0, ONE)."""
        bucket = self.bucket(context)
        return (self.good[bucket] << 16) // (self.good[bucket] + self.bad[bucket]) if bucket else 0

    def bucket(self, context: int) -> int:
        total = self.totals[context]
        return total if total <= TRUSTED else min(TRUSTED + (total >> 4).bit_length(), 63)

    def learn(self, context: int, code: int, probability: int) -> int:
        """Count a code; returns its probability, of 2^24, mixed with the more general `probability`."""
        row, bucket, total = self.rows[context], self.bucket(context), self.totals[context]
        if total:
            trust = self.trust(context)
            own = (int(row[code]) << 24) // total
            mixed = max(1, (trust * own + (ONE - trust) * probability) >> 16)
            credit = min(ONE, trust * own // mixed)
            self.good[bucket] += credit
            self.bad[bucket] += ONE - credit
            probability = mixed
        row[code] += 1
        self.totals[context] += 1
        return probability


class LevelModel:
    """Predicts the codes of one level from several contexts, general to special."""

    def __init__(self, size: int, n_contexts: int):
        self.size = size
        self.counts = [Counts(size) for _ in range(n_contexts)]

    def frequencies(self, contexts: Sequence[int]) -> np.ndarray:
        """int64 [size], all above 0; their sum is about 2^24."""
        left = ONE  # the weight of the more general contexts
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
    """Visit all codes in the order that encoder and decoder share; returns int64 [n] per level."""
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
    """Codes of each level, coarse to fine -> uint8 [n]; about ten thousand codes per second."""
    coder = stream.queue.RangeEncoder()

    def code_at(level: int, t: int, model: Any) -> int:
        code = int(levels[level][t])
        coder.encode(code, model)
        return code

    _walk([len(level) for level in levels], hop_lengths, codebook_size, code_at)
    return coder.get_compressed().astype("<u4").view(np.uint8)


def decompress(data: np.ndarray, lengths: Sequence[int], hops: Sequence[int], codebook_size: int) -> list[np.ndarray]:
    """The inverse of `compress`, int64 [n] per level. Other data gives arbitrary codes, or an exception."""
    coder = stream.queue.RangeDecoder(np.ascontiguousarray(data).view("<u4").astype(np.uint32))
    return _walk(lengths, hops, codebook_size, lambda level, t, model: int(coder.decode(model)))
