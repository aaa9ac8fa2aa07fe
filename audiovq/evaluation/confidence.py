"""Means over tracks with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats


@dataclass(frozen=True)
class Estimate:
    """A figure and the half-width of its 95 % confidence interval, which is None for a single track."""

    value: float
    half_width: float | None

    def __str__(self) -> str:
        digits = 3 if abs(self.value) < 10 else 1 if abs(self.value) < 1000 else 0
        text = f"{self.value:.{digits}f}"
        return text if self.half_width is None else f"{text} ± {self.half_width:.{digits}f}"

    def to_json(self) -> dict[str, float | None]:
        return {"mean": self.value, "ci95": self.half_width}


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean over tracks with Student's interval, mean ± t(0.975, n − 1) · s / √n.

    Source: Student 1908, Biometrika 6:1.
    """
    n = len(values)
    if n < 2:
        return Estimate(float(np.mean(values)), None)
    half_width = scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Estimate(float(np.mean(values)), float(half_width))
