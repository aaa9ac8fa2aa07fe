"""Log files of a run: metrics.jsonl of each stage, and health.jsonl. A resumed run drops lines after its checkpoint."""

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
    """metrics.jsonl of a stage: one line for each step that is logged. Only rank 0 has one.

    Attributes:
        rows: the lines up to the step where the stage continues.
        last_logged: the last step that was logged before, perhaps after the checkpoint.
    """

    def __init__(self, path: Path, start: int):
        self.path = path
        self.writes = collectives.rank() == 0
        rows = _read_rows(path) if self.writes else []
        self.rows = [row for row in rows if row["step"] <= start]
        self.last_logged: int = max((row["step"] for row in rows), default=0)
        if self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(path, self.rows)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line, without values that are not finite, which JSON has no numbers for."""
        if self.writes:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            append_jsonl(self.path, {"step": step, **finite})


class HealthLog:
    """health.jsonl of a run, as one stage sees it.

    Attributes:
        reported: check and subject of the stage's findings so far.
    """

    def __init__(self, path: Path, stage: str, start: int):
        self.path = path
        self.writes = collectives.rank() == 0
        rows = _read_rows(path) if self.writes else []
        valid = [row for row in rows if row["stage"] != stage or row["step"] <= start]
        if len(valid) < len(rows):
            write_jsonl(path, valid)
        self.reported = {(str(row["check"]), str(row["subject"])) for row in valid if row["stage"] == stage}

    def write(self, finding: Finding) -> None:
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.path, asdict(finding))


def read_health(run: Path) -> list[dict[str, Any]]:
    """The findings of all stages of a run."""
    return _read_rows(run / HEALTH)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without one that was cut off by a crash."""
    return [row for row in read_jsonl(path, skip_damaged=True) if "step" in row]


class Stopwatch:
    """Measures how long a step takes, and how much of that time is spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.n = time.monotonic(), 0.0, 0

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Iterate over the batches, one a step."""
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

    def lap(self, device_seconds: float = 0.0) -> dict[str, float]:
        """Metrics since the last lap.

        Args:
            device_seconds: seconds that the device needed to finish its work after the host had. If these are whole
                steps, the device always had work, and no time was lost by waiting for data.
        """
        passed, n = max(time.monotonic() - self.began, 1e-9), max(self.n, 1)
        waited = self.waited if device_seconds < 2 * passed / n else 0.0
        self.restart()
        return {"seconds_a_step": passed / n, "data_wait_share": waited / passed}
