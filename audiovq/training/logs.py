"""Log files of a training: metrics.jsonl and health.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiovq.distributed import collectives
from audiovq.utils.files import append_jsonl, read_jsonl, write_jsonl

HEALTH = Path("metrics") / "health.jsonl"  # in a run folder


class StepLog:
    """A JSONL file with a step in each row, on rank 0. A stage that continues drops its rows after the
    checkpoint; they have its name under "stage" if several stages share the file."""

    def __init__(self, path: Path, start: int, stage: str | None = None):
        self.path = path
        self.writes = collectives.rank() == 0
        rows = read_steps(path) if self.writes else []
        self.rows = [row for row in rows if row.get("stage") != stage or row["step"] <= start]
        self.last_step: int = max((row["step"] for row in rows), default=0)  # perhaps after the checkpoint
        if self.writes and path.exists():
            write_jsonl(path, self.rows)

    def write(self, row: Mapping[str, Any]) -> None:
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.path, row)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without one that was cut off by a crash."""
    return [row for row in read_jsonl(path, skip_damaged=True) if "step" in row]
