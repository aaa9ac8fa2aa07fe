"""metrics.jsonl: what a run finds out about itself, one line a log step."""

from __future__ import annotations

import json
import math
from pathlib import Path

from audiovq import distributed


class MetricsLog:
    """A resumed run drops what its checkpoint does not know."""

    def __init__(self, path: Path, start: int):
        self.path = path
        self.writes = distributed.rank() == 0
        if self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            path.write_text("".join(line for line in lines if _step_of(line) <= start))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # half a line, written when the power went
