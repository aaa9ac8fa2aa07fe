"""metrics.jsonl of each stage → the curves of the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audiovq.utils.files import read_jsonl

MAX_POINTS = 240  # a curve; more are averaged
Line = dict[str, Any]
Value = Callable[[Line], float | None]


def stage_curves(training: Path) -> list[dict[str, Any]]:
    """One entry a stage, all priors together: its title and charts, each with a title, a unit and series of
    {name, level, held_out, points [[step, value], …]}; what has no points is left out."""
    stages = []
    for name in ("tokenizer", "decoder"):
        lines = read_metrics(training / name / "metrics.jsonl")
        n_levels = sum(key.startswith("perplexity_") for key in max(lines, key=len, default={}))
        losses = ["loss", "discriminator"] if name == "decoder" else ["loss"]
        stages.append((name.capitalize(), [
            ("Loss", "", [s for key in losses for s in _pair(key, None, lines, key)]),
            ("Perplexity of the codes", "codes", [
                s for i in range(n_levels) for s in _pair(_level(i), i, lines, f"perplexity_{i}")
            ]),
            ("Cost at their entropy", "bits a second", [
                s for i in range(n_levels) for s in _pair(_level(i), i, lines, f"unigram_bits_per_second_{i}")
            ]),
        ]))  # fmt: skip
    priors = sorted(training.glob("prior-*"), key=lambda path: int(path.name.removeprefix("prior-")))
    logs = {int(path.name.removeprefix("prior-")): read_metrics(path / "metrics.jsonl") for path in priors}
    stages.append(("Priors", [
        ("Loss", "nats a code", [s for i, lines in logs.items() for s in _pair(_level(i), i, lines, "loss")]),
        ("Perplexity of the next code", "codes", [
            s for i, lines in logs.items() for s in _pair(_level(i), i, lines, "bits_per_code", lambda x: 2**x)
        ]),
        ("Cost to the prior", "bits a second", [
            s for i, lines in logs.items() for s in _pair(_level(i), i, lines, "bits_per_second")
        ]),
    ]))  # fmt: skip
    entries = [
        {"title": title, "charts": [{"title": t, "unit": u, "series": s} for t, u, s in charts if s]}
        for title, charts in stages
    ]
    return [entry for entry in entries if entry["charts"]]


def _level(i: int) -> str:
    return f"level {i}"


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl; half a line at the end, as a crash leaves it, is no line."""
    return [line for line in read_jsonl(path, skip_damaged=True) if isinstance(line.get("step"), int)]


def _pair(
    name: str, level: int | None, lines: list[Line], key: str, change: Callable[[float], float] = float
) -> list[dict[str, Any]]:
    """What was logged in training, and on held-out music."""
    series = []
    for held_out in (False, True):
        full = f"valid_{key}" if held_out else key
        points = [[line["step"], change(line[full])] for line in lines if _is_finite(line.get(full))]
        if points:
            series.append({"name": name, "level": level, "held_out": held_out, "points": thin(points)})
    return series


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def thin(points: list[list[float]]) -> list[list[float]]:
    """At most MAX_POINTS points, each the mean of as many neighbours; the last stays the last."""
    if len(points) <= MAX_POINTS:
        return [[step, _short(value)] for step, value in points]
    size = -(-len(points) // MAX_POINTS)
    groups = [points[max(0, end - size) : end] for end in range(len(points), 0, -size)][::-1]
    return [[group[-1][0], _short(sum(value for _, value in group) / len(group))] for group in groups]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
