"""Figures and sounds for people who look on: TensorBoard, wandb, trackio. A new one is a class and a line in `TRACKERS`.

They come beside metrics.jsonl, never instead of it, and only the first rank has any.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audiovq.data import audio
from audiovq.distributed import collectives
from audiovq.utils.progress import say


@dataclass(frozen=True)
class Reporting:
    """Where a run's figures go, besides its metrics.jsonl."""

    folder: Path  # of the run
    trackers: tuple[str, ...] = ()
    project: str = "audiovq"

    def stage(self, title: str, start: int = 0, told: int = 0) -> Trackers:
        """The trackers of one stage.

        Args:
            start: the step that it goes on from.
            told: the last step that they have been told of already.
        """
        names = self.trackers if collectives.rank() == 0 else ()
        return Trackers([TRACKERS[name](self, title, start, told) for name in names])


class Trackers:
    """Those of a stage, as one."""

    def __init__(self, each: list[Tracker]):
        self.each = each

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for tracker in self.each:
            tracker.log(step, figures)

    def audio(self, step: int, folder: Path) -> None:
        """All sounds of a folder, each under its file's name."""
        for path in sorted(folder.glob("*.wav")) if self.each else []:
            for tracker in self.each:
                tracker.audio(step, path)

    def close(self) -> None:
        for tracker in self.each:
            tracker.close()


class Tracker:
    """One of them, for one stage. A stage that goes on must not put a second point where there is one."""

    package: str  # that it needs

    def __init__(self, reporting: Reporting, title: str, start: int, told: int):
        raise NotImplementedError

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        raise NotImplementedError

    def audio(self, step: int, path: Path) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class TensorBoard(Tracker):
    """Files in the run's metrics/tensorboard; points after the checkpoint are struck out by `purge_step`."""

    package = "tensorboard"

    def __init__(self, reporting: Reporting, title: str, start: int, told: int):
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(reporting.folder / "metrics" / "tensorboard" / title), purge_step=start + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def audio(self, step: int, path: Path) -> None:
        """In mono: the page plays nothing else."""
        waveform, rate = audio.read_audio(path, audio.audio_info(path).sample_rate, 1)
        self.writer.add_audio(path.stem, torch.clamp(waveform, -1, 1), step, rate)

    def close(self) -> None:
        self.writer.close()


class Service(Tracker):
    """Base of those that run on from an earlier start: they skip the steps that they have been told."""

    def __init__(self, reporting: Reporting, title: str, start: int, told: int):
        self.told, self.module = told, importlib.import_module(self.package)
        place = str(reporting.folder.resolve())
        name = f"{reporting.folder.name}-{title}"
        self.run = self.open(reporting, name, hashlib.sha256(f"{place}/{title}".encode()).hexdigest()[:16])

    def open(self, reporting: Reporting, name: str, identity: str) -> Any:
        raise NotImplementedError

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step > self.told:
            self.run.log(dict(figures), step=step)

    def audio(self, step: int, path: Path) -> None:
        self.run.log({f"samples/{path.stem}": self.module.Audio(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class WandB(Service):
    package = "wandb"

    def open(self, reporting: Reporting, name: str, identity: str) -> Any:
        folder = reporting.folder / "metrics"
        folder.mkdir(parents=True, exist_ok=True)
        return self.module.init(project=reporting.project, name=name, id=identity, dir=str(folder), resume="allow")


class Trackio(Service):
    package = "trackio"

    def open(self, reporting: Reporting, name: str, identity: str) -> Any:
        return self.module.init(project=reporting.project, name=f"{name}-{identity[:6]}", resume="allow")


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def usable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those whose packages are here; says in a line how to get another."""
    missing = [name for name in names if importlib.util.find_spec(TRACKERS[name].package) is None]
    for name in missing:
        say(f"trackers: {name} is not installed, metrics.jsonl has all figures; pip install {name} brings it")
    return tuple(name for name in names if name not in missing)
