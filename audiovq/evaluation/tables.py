"""Means over tracks with confidence intervals, and tables of figures on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table

MIN_WIDTH = 165  # characters: tables keep their columns where the output is no terminal
Estimate = dict[str, float | None]  # `mean`, and `ci95`: the half-width of its 95 % confidence interval


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean over tracks with Student's interval, mean ± t(0.975, n − 1) · s / √n; None for a single track."""
    if len(values) < 2:
        return {"mean": float(np.mean(values)), "ci95": None}
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return {"mean": float(np.mean(values)), "ci95": float(half_width)}


def cell(value: Any) -> str:
    """A figure or an estimate in few digits; anything else as it is."""
    mean, half_width = (value["mean"], value["ci95"]) if isinstance(value, Mapping) else (value, None)
    if not isinstance(mean, float):
        return str(mean)
    digits = 3 if abs(mean) < 10 else 1 if abs(mean) < 1000 else 0
    return f"{mean:.{digits}f}" if half_width is None else f"{mean:.{digits}f} ± {half_width:.{digits}f}"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str | None = None) -> None:
    """Print rows of figures; the column "mel_distance" is shown as "mel distance"."""
    table = Table(*(name.replace("_", " ") for name in columns), title=title, caption=caption)
    for row in rows:
        table.add_row(*map(cell, row))
    Console(width=max(MIN_WIDTH, Console().width)).print(table)
