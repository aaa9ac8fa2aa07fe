"""Reports on a training while it runs: metrics.jsonl, trackers, health checks, and lines on the terminal."""

import contextlib
import hashlib
import importlib.util
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from torch import Tensor, nn
from torch.profiler import profile, schedule, tensorboard_trace_handler

from audiovq.data.datasets import name_of
from audiovq.distributed import collectives
from audiovq.recipe import TrainingConfig
from audiovq.training.batches import sum_over_ranks
from audiovq.training.devices import compute_seconds
from audiovq.training.health import StageFacts, Watch
from audiovq.training.logs import HEALTH, StepLog
from audiovq.training.nonfinite import PATIENCE, NonFiniteGuard
from audiovq.training.task import Part, Task
from audiovq.utils.progress import say


@dataclass(frozen=True)
class TrackerConfig:
    """Live metrics in TensorBoard, wandb or trackio, besides metrics.jsonl; by accelerate's trackers."""

    folder: Path  # of the run
    names: tuple[str, ...] = ()
    project: str = "audiovq"
    profile: bool = False  # write a trace of a few steps

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


class Monitor:
    """The reports of one stage."""

    def __init__(
        self, task: Task, parts: list[Part], folder: Path, config: TrainingConfig, trackers: TrackerConfig, start: int
    ):
        self.task, self.parts, self.title, self.config, self.start = task, parts, task.title, config, start
        self.metrics_log = StepLog(folder / "metrics.jsonl", start)
        self.speed_log = StepLog(folder / "speed.jsonl", start)
        self.done, self.began, self.waited = start, time.monotonic(), 0.0
        self.trace = None
        if trackers.profile:
            save = tensorboard_trace_handler(str(folder), name := f"trace-{collectives.rank()}")
            self.trace = profile(schedule=schedule(wait=1, warmup=1, active=3, repeat=1), on_trace_ready=save)
            say(f"{self.title}: a trace of 3 steps goes to {folder}/{name}.….json; https://ui.perfetto.dev shows it")
        self.health_log = StepLog(trackers.folder / HEALTH, start, task.title)
        self.trackers = trackers.start(task.title)
        adversarial, facts = len(parts) > 1, task.health_facts()
        self.facts = StageFacts(task.title, task.recipe_key, config, adversarial, **facts)
        # After a resume, the watch sees what was logged, and knows what was reported.
        self.watch = Watch(self.facts)
        for row in self.metrics_log.rows:
            self.watch.update(row["step"], row)
        findings = [row for row in self.health_log.rows if row["stage"] == task.title]
        self.watch.reported = {(row["check"], row["subject"]) for row in findings}

    def timed(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """The same batches; notes how long the training waits for them, and traces a few steps if asked to."""
        with self.trace or contextlib.nullcontext():
            began = time.monotonic()
            for batch in batches:
                self.waited += time.monotonic() - began
                yield batch
                if self.trace:
                    self.trace.step()
                began = time.monotonic()

    def log_step(self, done: int, sums: dict[str, Tensor], guard: NonFiniteGuard, model: nn.Module) -> str:
        """Log the metrics after `done` steps, of whose means each rank has a share; all ranks call it.
        Returns a line for the progress bar. Raises ValueError if too many steps in a row were skipped."""
        metrics = sum_over_ranks(sums)  # waits until the device has finished the step
        skipped, in_a_row = guard.counts.tolist()
        rates = {f"learning_rate{part.suffix}": part.learning_rate(done - 1) for part in self.parts}
        self._write(done, metrics | rates | {"skipped_steps": skipped}, self._log_speed(done, compute_seconds(model)))
        if in_a_row >= PATIENCE:
            raise ValueError(self._nonfinite_message(done, in_a_row))
        return self.task.describe(metrics)

    def log_evaluation(self, done: int, metrics: dict[str, float]) -> None:
        self._write(done, {f"valid_{name}": value for name, value in metrics.items()})
        tracks = "held out" if self.task.has_held_out else "training tracks (none is held out)"
        say(f"{self.title}: step {done}, {tracks}: {self.task.describe(metrics)}")

    def _log_speed(self, done: int, computed: float) -> dict[str, float]:
        """Log the speed since the last call, evaluations and checkpoints included, of the slowest rank."""
        memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        now, ranks = time.monotonic(), range(collectives.world_size())
        own = [computed * (rank == collectives.rank()) for rank in ranks]
        seconds, waited, memory, *each = collectives.largest(now - self.began, self.waited, memory, *own)
        step, audio = seconds / (done - self.done), self.task.example_seconds * self.config.batch_size
        row = {"step_seconds": step, "audio_seconds_per_second": audio / step, "data_wait": waited / seconds}
        row |= {"peak_memory_gb": memory} if memory else {}
        if min(each) > 0:
            row |= {"slowest_rank": each.index(max(each)), "slowest_ratio": max(each) / min(each)}
        if flops := self.task.example_flops * self.config.batch_size / collectives.world_size():
            row["tflops"] = flops / step / 1e12
        self.speed_log.write({"step": done, **row})
        self.done, self.began, self.waited = done, now, 0.0
        return row

    def _write(self, done: int, metrics: dict[str, float], speed: dict[str, float] | None = None) -> None:
        # JSON has no infinities.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.metrics_log.write({"step": done, **finite})
        if done > self.metrics_log.last_step:  # a resumed run repeats steps that trackers already have
            for tracker in self.trackers:
                tracker.log(metrics | (speed or {}), step=done)
        for finding in self.watch.update(done, metrics):
            self.health_log.write(finding)
            say(f"health: {finding['message']}")

    def _nonfinite_message(self, done: int, n: int) -> str:
        """Names the tracks of the last `n` batches; those that are in most of these batches come first."""
        dataset: Any = self.task.dataset("train")
        size = self.config.batch_size
        batches = [{name_of(dataset, i) for i in range(k * size, (k + 1) * size)} for k in range(done - n, done)]
        names = [name for name, _ in Counter(sorted(itertools.chain.from_iterable(batches))).most_common()]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        steps = f"loss or gradients were not finite in the last {n} steps, up to step {done}, which were skipped"
        advice = f"Listen to these tracks, or try a lower learning_rate: {self.facts.lower_learning_rate(10)}"
        return f"{self.title}: {steps}. Their batches are from {shown}. {advice}, with another --out"

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()
