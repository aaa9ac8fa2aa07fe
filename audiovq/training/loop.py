"""One training loop for every stage. It knows no model: a `Task` brings network, examples and loss.

Exact resume: the examples of a step are a function of (seed, step, rank) and the random state is set from the same at
each step, so a run that was killed and started again ends in the very weights of one that was not.

A task may train several networks against each other: its loss is then the sum of theirs, each reaching only its own,
and every network has its optimizer and its gradient clipped. One backward pass serves all, so that with several
processes every parameter has a gradient in every step.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from audiovq import checkpoint, distributed
from audiovq.recipe import TrainingConfig
from audiovq.terminal import ProgressBar, say
from audiovq.training.best import BestWeights
from audiovq.training.optimizer import learning_rate, make_optimizer


@dataclass(frozen=True)
class Part:
    """A network with an optimizer of its own. It rests before `first_step`; its learning rate counts from there."""

    network: nn.Module
    config: TrainingConfig
    first_step: int = 0
    suffix: str = ""  # of what is logged of it

    def learning_rate(self, step: int) -> float:
        return learning_rate(step - self.first_step, self.config) if step >= self.first_step else 0.0


class Task(nn.Module):
    """A network with its loss. `forward(batch)` returns the loss and scalars to log; the loop trains `network`."""

    network: nn.Module  # what checkpoints hold

    def parts(self, config: TrainingConfig) -> list[Part]:
        """What is trained, each part with an optimizer of its own."""
        return [Part(self.network, config)]

    def dataset(self, split: str) -> Dataset[Any]:
        """Endless examples; index i is always the same one."""
        raise NotImplementedError

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def describe(self, metrics: dict[str, float]) -> str:
        """The few figures for the progress bar."""
        return f"loss {metrics['loss']:.3f}"


class Interrupted(Exception):
    """A signal asked to stop; everything up to `step` is saved."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.signal_number = signal_number


class StopSignal:
    """Within `with`, the first SIGINT or SIGTERM only raises a flag; a second one stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        say("stopping after this step; once more stops at once")

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def step_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class _StepSampler:
    """Yields the example indexes of each step for this rank, from `start` on."""

    def __init__(self, start: int, end: int, batch_size: int, rank: int, world_size: int):
        self.start, self.end, self.batch_size, self.rank = start, end, batch_size, rank
        self.local = batch_size // world_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.end):
            first = step * self.batch_size + self.rank * self.local
            yield list(range(first, first + self.local))

    def __len__(self) -> int:
        return self.end - self.start


def batches(dataset: Dataset[Any], start: int, end: int, batch_size: int, workers: int, pin: bool) -> DataLoader[Any]:
    """The batches of steps [start, end) for this rank."""
    world_size = distributed.world_size()
    if batch_size % world_size:
        raise ValueError(f"batch_size: expected a multiple of the {world_size} processes, found {batch_size}")
    sampler = _StepSampler(start, end, batch_size, distributed.rank(), world_size)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin)


def to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


class MetricsLog:
    """metrics.jsonl, one line a log step; a resumed run drops what its checkpoint does not know."""

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


def train(
    task: Task, title: str, folder: Path, config: TrainingConfig, seed: int, workers: int, accelerator: Accelerator
) -> None:
    """Train `task.network` for `config.steps` steps, going on from the newest checkpoint below `folder`.

    Raises:
        Interrupted: after a signal; the state is saved and the same call goes on.
        ValueError: the loss is not finite.
    """
    device = accelerator.device
    task.to(device).train()
    parts = task.parts(config)
    optimizers = [make_optimizer(part.network, part.config) for part in parts]
    checkpoints = folder / "checkpoints"
    newest = checkpoint.newest_training(checkpoints)
    start = checkpoint.load_training(newest, task.network, *optimizers) if newest else 0
    model = accelerator.prepare_model(task)
    log = MetricsLog(folder / "metrics.jsonl", start)
    best = BestWeights(folder / "best", config, title)
    if config.patience and start == 0:  # what it goes on from may already be the best
        tell_held_out(task, title, 0, evaluate(task, config, device), log, best)
    end = start if best.exhausted(start) else config.steps
    loader = batches(task.dataset("train"), start, end, config.batch_size, workers, device.type == "cuda")
    saved_at = time.monotonic()
    if start:
        say(f"{title}: going on from step {start}")
    bar = ProgressBar(title, config.steps, start, hidden=distributed.rank() > 0)
    with StopSignal() as stop, bar:
        for step, batch in enumerate(loader, start=start):
            torch.manual_seed(step_seed(seed, title, step, distributed.rank()))
            loss, metrics = model(to_device(batch, device))
            accelerator.backward(loss)
            for part, optimizer in zip(parts, optimizers, strict=True):
                metrics |= update(part, optimizer, step)
            done = step + 1
            note = None
            if done % config.log_steps == 0 or done == config.steps:
                figures = {k: float(v) for k, v in mean_over_ranks({"loss": loss.detach(), **metrics}).items()}
                if not math.isfinite(figures["loss"]):
                    raise ValueError(
                        f"{title}: the loss is {figures['loss']} at step {done}; try a lower learning_rate"
                    )
                rates = {f"learning_rate{part.suffix}": part.learning_rate(step) for part in parts}
                log.write(done, figures | rates)
                note = task.describe(figures)
            if done % config.evaluate_steps == 0 or done == config.steps:
                held_out = evaluate(task, config, device)
                tell_held_out(task, title, done, held_out, log, best)
            bar.advance(1, note)
            interrupted = distributed.any_rank(stop.received is not None, device)
            due = distributed.any_rank(time.monotonic() - saved_at >= config.checkpoint_seconds, device)
            ended = best.exhausted(done)
            if interrupted or due or ended or done == config.steps:
                if distributed.rank() == 0:
                    checkpoint.save_training(checkpoints, done, task.network, *optimizers)
                distributed.barrier()
                saved_at = time.monotonic()
            if interrupted and done < config.steps:
                raise Interrupted(stop.received or signal.SIGTERM, done)
            if ended:
                break
    best.restore(task.network)
    task.eval()


def tell_held_out(
    task: Task, title: str, done: int, held_out: dict[str, float], log: MetricsLog, best: BestWeights
) -> None:
    """Log an evaluation, say it, and keep the weights if they are the best so far."""
    log.write(done, {f"valid_{key}": value for key, value in held_out.items()})
    say(f"{title}: step {done}, held out: {task.describe(held_out)}") if log.writes else None
    best.look(done, held_out["loss"], task.network)


def update(part: Part, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Tensor]:
    """Clip the gradients of one part and, unless it rests, take its optimizer's step; the gradients' norm to log."""
    norm = nn.utils.clip_grad_norm_(part.network.parameters(), part.config.gradient_clip)
    if step >= part.first_step:
        for group in optimizer.param_groups:
            group["lr"] = part.learning_rate(step)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {f"gradient_norm{part.suffix}": norm}


@torch.no_grad()
def mean_over_ranks(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every rank brings the same keys."""
    stacked = torch.stack([value.detach().float() for value in metrics.values()])
    return dict(zip(metrics, distributed.all_reduce_(stacked) / distributed.world_size(), strict=True))


@torch.no_grad()
def evaluate(task: Task, config: TrainingConfig, device: torch.device) -> dict[str, float]:
    """Mean of loss and metrics over the first examples of the held-out tracks: the same ones every time."""
    task.eval()
    totals: dict[str, float] = {}
    dataset = task.dataset("valid")
    for batch in batches(dataset, 0, config.evaluate_batches, config.batch_size, 0, False):
        loss, metrics = task(to_device(batch, device))
        for key, value in mean_over_ranks({"loss": loss, **metrics}).items():
            totals[key] = totals.get(key, 0.0) + float(value) / config.evaluate_batches
    task.train()
    return totals
