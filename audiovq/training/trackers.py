"""Live metrics in TensorBoard, wandb or trackio, in addition to metrics.jsonl; by accelerate's trackers."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from audiovq.utils.progress import say


@dataclass(frozen=True)
class TrackerConfig:
    """The trackers of a run."""

    folder: Path  # of the run
    names: tuple[str, ...] = ()
    project: str = "audiovq"

    def start(self, stage: str) -> list[GeneralTracker]:
        """The trackers of one stage; only rank 0 logs. A stage that continues gets the same ones again."""
        metrics, title = self.folder / "metrics", f"{self.folder.name}-{stage}"
        metrics.mkdir(parents=True, exist_ok=True)
        identity = hashlib.sha256(os.fsencode(self.folder.resolve() / stage)).hexdigest()[:16]
        options = {
            "tensorboard": {"run_name": stage, "logging_dir": str(metrics / "tensorboard")},
            "wandb": {"run_name": self.project, "name": title, "id": identity, "dir": metrics, "resume": "allow"},
            "trackio": {"run_name": self.project, "name": f"{title}-{identity[:6]}", "resume": "allow"},
        }
        trackers = [LOGGER_TYPE_TO_CLASS[name](**options[name]) for name in self.names]
        for tracker in trackers:
            tracker.start()
        return trackers


def installed_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that are installed; prints one line for each that is not."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    for name in missing:
        say(f"trackers: {name} is not installed, so metrics go to metrics.jsonl only; pip install {name} adds it")
    return tuple(name for name in names if name not in missing)
