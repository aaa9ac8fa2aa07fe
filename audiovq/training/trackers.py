"""Live metrics and samples in TensorBoard, wandb or trackio. A new one is a class and an entry in `TRACKERS`.

Trackers come in addition to metrics.jsonl. Only rank 0 has any.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from audiovq.data import audio
from audiovq.distributed import collectives
from audiovq.utils.progress import say


@dataclass(frozen=True)
class TrackerConfig:
    """The trackers of a run."""

    folder: Path  # of the run
    names: tuple[str, ...] = ()
    project: str = "audiovq"

    def open(self, stage: str, start: int = 0, last_step: int = 0) -> list[Tracker]:
        """The trackers of one stage. When a stage continues, no step is shown twice.

        Args:
            start: the step where the stage continues.
            last_step: the last step that was logged before.
        """
        names = self.names if collectives.rank() == 0 else ()
        return [TRACKERS[name](self, stage, start, last_step) for name in names]


class TensorBoard:
    """Files in the run's metrics/tensorboard. `purge_step` discards points after the checkpoint."""

    def __init__(self, config: TrackerConfig, stage: str, start: int, last_step: int):
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(config.folder / "metrics" / "tensorboard" / stage), purge_step=start + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def audio(self, step: int, path: Path) -> None:
        """In mono, the only kind that TensorBoard plays."""
        waveform, rate = audio.read_audio(path, audio.audio_info(path).sample_rate, 1)
        self.writer.add_audio(path.stem, torch.clamp(waveform, -1, 1), step, rate)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of its own at wandb for each stage; it skips steps that were logged before."""

    package = "wandb"

    def __init__(self, config: TrackerConfig, stage: str, start: int, last_step: int):
        self.last_step, self.module = last_step, importlib.import_module(self.package)
        identity = hashlib.sha256(f"{config.folder.resolve()}/{stage}".encode()).hexdigest()[:16]
        self.run = self.open(config, f"{config.folder.name}-{stage}", identity)

    def open(self, config: TrackerConfig, name: str, identity: str) -> Any:
        folder = config.folder / "metrics"
        folder.mkdir(parents=True, exist_ok=True)
        options = {"id": identity, "dir": str(folder), "resume": "allow"}
        return self.module.init(project=config.project, name=name, **options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.last_step:
            self.run.log(dict(metrics), step=step)

    def audio(self, step: int, path: Path) -> None:
        self.run.log({f"samples/{path.stem}": self.module.Audio(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio(WandB):
    """trackio, which has the functions of wandb."""

    package = "trackio"

    def open(self, config: TrackerConfig, name: str, identity: str) -> Any:
        return self.module.init(project=config.project, name=f"{name}-{identity[:6]}", resume="allow")


Tracker: TypeAlias = TensorBoard | WandB
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def installed_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that are installed; prints one line for each that is not."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    for name in missing:
        say(f"trackers: {name} is not installed, so metrics go to metrics.jsonl only; pip install {name} adds it")
    return tuple(name for name in names if name not in missing)
