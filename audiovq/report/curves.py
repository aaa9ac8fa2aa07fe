"""The curves of the page, from metrics.jsonl of each stage."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiovq.training.logs import read_steps

MAX_POINTS = 240  # of a curve; neighbours are averaged
Row = dict[str, Any]
Series = list[dict[str, Any]]


def stage_curves(training: Path) -> list[dict[str, Any]]:
    """The charts of each stage, with all priors as one stage: dicts of a title and charts, which have a title, a unit
    and series of {name, level, held_out, points}, where points are [step, value]. Empty ones are left out."""
    stages = {}
    for name in ("tokenizer", "decoder"):
        rows = read_steps(training / name / "metrics.jsonl")
        n_levels = sum(key.startswith("perplexity_") for key in max(rows, key=len, default={}))
        losses = _series("loss", None, rows, "loss") + _series("discriminator", None, rows, "discriminator")
        levels = dict.fromkeys(range(n_levels), rows)
        stages[name.capitalize()] = [
            ("Loss", "", losses),
            ("Perplexity of the codes", "codes", _by_level(levels, "perplexity_{}")),
            ("Entropy of the codes", "bits per second", _by_level(levels, "unigram_bits_per_second_{}")),
        ]
    priors = {int(path.name.removeprefix("prior-")): path for path in training.glob("prior-*")}
    levels = {level: read_steps(priors[level] / "metrics.jsonl") for level in sorted(priors)}
    stages["Priors"] = [
        ("Loss", "nats per code", _by_level(levels, "loss")),
        ("Cross-entropy of the codes", "bits per second", _by_level(levels, "bits_per_second")),
    ]
    result = []
    for title, charts in stages.items():
        shown = [{"title": name, "unit": unit, "series": series} for name, unit, series in charts if series]
        if shown:
            result.append({"title": title, "charts": shown})
    return result


def _by_level(levels: dict[int, list[Row]], key: str) -> Series:
    return [series for i, rows in levels.items() for series in _series(f"level {i}", i, rows, key.format(i))]


def _series(name: str, level: int | None, rows: Iterable[Row], key: str) -> Series:
    """The values in training, and those on held-out music."""
    found = []
    for held_out, full_key in ((False, key), (True, f"valid_{key}")):
        values = [(row["step"], row.get(full_key)) for row in rows]
        points = [[step, value] for step, value in values if isinstance(value, int | float) and math.isfinite(value)]
        if points:
            found.append({"name": name, "level": level, "held_out": held_out, "points": thin(points)})
    return found


def thin(points: list[list[float]]) -> list[list[float]]:
    """At most MAX_POINTS points of five digits, each the mean of its neighbours; the last step stays."""
    size = max(1, -(-len(points) // MAX_POINTS))
    groups = [points[max(0, end - size) : end] for end in range(len(points), 0, -size)][::-1]
    return [[group[-1][0], float(f"{sum(value for _, value in group) / len(group):.5g}")] for group in groups]
