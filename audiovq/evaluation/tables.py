"""Tables of figures on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from audiovq.evaluation.confidence import Estimate

MIN_WIDTH = 165  # characters: tables keep their columns where the output is no terminal


def cell(value: Any) -> str:
    """A figure in few digits; one with a confidence interval is a mapping with `mean` and `ci95`."""
    if isinstance(value, Mapping):
        return str(Estimate(value["mean"], value["ci95"]))
    return str(Estimate(value, None)) if isinstance(value, float) else str(value)


def words(name: str) -> str:
    """The name of a figure as it is shown: "mel_distance" as "mel distance"."""
    return name.replace("_", " ")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str | None = None) -> None:
    """Print rows of figures; each row begins with its name."""
    table = Table(*columns, title=title, caption=caption)
    for row in rows:
        table.add_row(*map(cell, row))
    Console(width=max(MIN_WIDTH, Console().width)).print(table)
