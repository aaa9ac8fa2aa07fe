"""Live metrics and samples in TensorBoard, wandb or trackio. A new tracker is a class and an entry in `TRACKERS`.

Trackers come in addition to metrics.jsonl. Only rank 0 has any.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

    def open(self, stage: str, start: int = 0, last_logged: int = 0) -> Trackers:
        """The trackers of one stage.

        Args:
            start: the step where the stage continues.
            last_logged: the last step that was logged before.
        """
        names = self.names if collectives.rank() == 0 else ()
        return Trackers([TRACKERS[name](self, stage, start, last_logged) for name in names])


class Tracker(Protocol):
    """A tracker of one stage. When a stage continues, no step may be logged twice."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def audio(self, step: int, path: Path) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """All trackers of one stage."""

    def __init__(self, trackers: list[Tracker]):
        self.trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def audio(self, step: int, folder: Path) -> None:
        """All WAV files of a folder, each under its file's name."""
        for tracker in self.trackers:
            for path in sorted(folder.glob("*.wav")):
                tracker.audio(step, path)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


class TensorBoard:
    """Files in the run's metrics/tensorboard. `purge_step` discards points after the checkpoint."""

    def __init__(self, config: TrackerConfig, stage: str, start: int, last_logged: int):
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

    def __init__(self, config: TrackerConfig, stage: str, start: int, last_logged: int):
        self.last_logged, self.module = last_logged, importlib.import_module(self.package)
        identity = hashlib.sha256(f"{config.folder.resolve()}/{stage}".encode()).hexdigest()[:16]
        self.run = self.open(config, f"{config.folder.name}-{stage}", identity)

    def open(self, config: TrackerConfig, name: str, identity: str) -> Any:
        folder = config.folder / "metrics"
        folder.mkdir(parents=True, exist_ok=True)
        return self.module.init(project=config.project, name=name, id=identity, dir=str(folder), resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.last_logged:
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


TRACKERS: dict[str, type[TensorBoard] | type[WandB]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def installed_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that are installed; prints one line for each that is not."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    for name in missing:
        say(f"trackers: {name} is not installed, so metrics go to metrics.jsonl only; pip install {name} adds it")
    return tuple(name for name in names if name not in missing)
