"""The bigram model against a plain computation of its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from audiovq.evaluation.bigram import STRENGTHS, cross_entropy


def plain(learned: list[list[int]], judged: list[list[int]], size: int) -> float:
    """Pair by pair, with dictionaries."""
    pairs: dict[tuple[int | None, int], int] = {}
    after: dict[int | None, int] = {}
    single = dict.fromkeys(range(size), 1.0)
    for track in learned:
        for before, code in zip([None, *track], track, strict=False):
            pairs[before, code] = pairs.get((before, code), 0) + 1
            after[before] = after.get(before, 0) + 1
            single[code] += 1
    total = sum(single.values())

    def p(before: int | None, code: int, strength: float, left_out: int = 0) -> float:
        seen = pairs.get((before, code), 0) - left_out
        return (seen + strength * single[code] / total) / (after.get(before, 0) - left_out + strength)

    def own(strength: float) -> float:
        return sum(-n * math.log2(p(before, code, strength, 1)) for (before, code), n in pairs.items())

    strength = min(map(float, STRENGTHS), key=own)
    wanted = [(before, code) for track in judged for before, code in zip([None, *track], track, strict=False)]
    return sum(-math.log2(p(before, code, strength)) for before, code in wanted) / len(wanted)


def test_bigram_equals_the_formula_pair_by_pair() -> None:
    random = np.random.default_rng(0)
    learned = [random.integers(0, 7, n).tolist() for n in (40, 1, 25)]
    judged = [random.integers(0, 7, n).tolist() for n in (20, 9)] + [[6, 6, 6]]
    found = cross_entropy(map(np.array, learned), map(np.array, judged), 7)
    assert found == pytest.approx(plain(learned, judged, 7), rel=1e-12)


def test_bigram_knows_a_chain_and_does_not_invent_one() -> None:
    """Codes that follow the code before with 90 %: the chain's own entropy; without any order: that of single codes."""
    random = np.random.default_rng(1)
    size, n = 16, 40000
    steps = np.where(random.random(n) < 0.9, 1, random.integers(0, size, n))
    chain = np.cumsum(steps) % size
    likely = 0.9 + 0.1 / size
    entropy = -likely * math.log2(likely) - (size - 1) * (0.1 / size) * math.log2(0.1 / size)
    assert cross_entropy([chain[: n // 2]], [chain[n // 2 :]], size) == pytest.approx(entropy, abs=0.02)
    loose = random.integers(0, size, n)
    assert cross_entropy([loose[: n // 2]], [loose[n // 2 :]], size) == pytest.approx(math.log2(size), abs=0.01)


def test_bigram_of_unseen_codes_and_of_nothing() -> None:
    """Nothing learned: every code is as likely as any; nothing judged: no bits."""
    assert cross_entropy([], [np.array([0, 3, 1])], 8) == pytest.approx(3.0)
    assert cross_entropy([np.array([1, 2])], [], 8) == 0.0
