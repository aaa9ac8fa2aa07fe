"""What a run finds out about itself, written down: metrics.jsonl of each stage, one line a log step, and health.jsonl.

A resumed run drops what its checkpoint does not know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from audiovq.distributed import collectives
from audiovq.training.health import Finding
from audiovq.utils.files import append_jsonl, read_jsonl, write_jsonl

T = TypeVar("T")
HEALTH = Path("metrics") / "health.jsonl"  # in a run folder


class MetricsLog:
    """One stage's figures. What differs from run to run, such as times, does not belong here.

    Attributes:
        kept: the lines so far.
        told: the last step that an earlier start had come to, perhaps beyond its checkpoint.
    """

    def __init__(self, path: Path, start: int):
        self.path = path
        self.writes = collectives.rank() == 0
        found = _rows(path) if self.writes else []
        self.kept = [row for row in found if row["step"] <= start]
        self.told: int = max((row["step"] for row in found), default=0)
        if self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, self.kept)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Figures that are not finite are left out: JSON has no such numbers."""
        if self.writes:
            append_jsonl(self.path, {"step": step, **{k: v for k, v in metrics.items() if math.isfinite(v)}})


class HealthLog:
    """What was said about one stage, among that of the others."""

    def __init__(self, path: Path, stage: str, start: int):
        self.path = path
        self.writes = collectives.rank() == 0
        rows = _rows(path) if self.writes else []
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= start]
        if len(kept) < len(rows):
            write_jsonl(path, kept)
        self.said = {(str(row["check"]), str(row["subject"])) for row in kept if row["stage"] == stage}

    def write(self, finding: Finding) -> None:
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.path, asdict(finding))


def read_health(run: Path) -> list[dict[str, Any]]:
    """Everything that was said about the stages of a run."""
    return _rows(run / HEALTH)


class Stopwatch:
    """How long a step takes, and how much of that it waits for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.n = time.monotonic(), 0.0, 0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Iterate; what the iterator itself takes is waiting."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - began
            self.n += 1
            yield item

    def lap(self, drained: float = 0.0) -> dict[str, float]:
        """Figures since the last lap.

        Args:
            drained: seconds that the device still needed for steps the host was done with. If that is steps, the device
                had work all the time, and the host's waiting cost nothing.
        """
        passed, n = max(time.monotonic() - self.began, 1e-9), max(self.n, 1)
        waited = self.waited if drained < 2 * passed / n else 0.0
        self.restart()
        return {"seconds_a_step": passed / n, "data_wait_share": waited / passed}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, without half a line that was written when the power went."""
    return [row for row in read_jsonl(path, skip_damaged=True) if "step" in row]
