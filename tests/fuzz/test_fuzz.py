"""Damaged files of every kind are used as they are meant or refused in one line; `run.py` tries as many as wanted."""

import time

import pytest
from run import GOOD, fuzz
from targets import TARGETS


def _fails(n_each: int, seed: int) -> dict[str, dict[str, int]]:
    targets = list(TARGETS)
    counts = fuzz(targets, n_each * len(targets), seed, n_jobs=1)
    assert all(sum(row.values()) == n_each for row in counts.values())
    return {target: bad for target, row in counts.items() if (bad := {k: n for k, n in row.items() if k not in GOOD})}


def test_a_few_damaged_files_of_each_kind() -> None:
    assert _fails(4, seed=20) == {}


@pytest.mark.slow
def test_many_damaged_files_of_each_kind() -> None:
    seed = time.time_ns() // 10**9  # other files every time; the seed is printed with what fails
    assert _fails(100, seed) == {}, f"python tests/fuzz/run.py --seed {seed}"
