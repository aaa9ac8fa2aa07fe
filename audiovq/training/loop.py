"""One training loop for every stage. It knows no model: a `Task` brings network, examples and loss.

A step is its batch, whole: however many devices there are and however little fits on one, the loss is the mean over the
batch's examples, each counted alike. Batches are shared out by `batches`, gradients gathered by `devices`.

Exact resume: the examples of a step are a function of (seed, step) and the random state is set from the same at each
step, so a run that was killed and started again ends in the very weights of one that was not.

A task may train several networks against each other: its loss is then the sum of theirs, each reaching only its own,
and every network has its optimizer and its gradient clipped. One backward pass serves all, so that with several
processes every parameter has a gradient in every step.

A step whose loss or gradients are not finite changes nothing (`skipping`); after several in a row the training stops.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.distributed import collectives, rng
from audiovq.recipe import TrainingConfig
from audiovq.training.averages import Averages
from audiovq.training.batches import Microbatch, split_batch, step_seed, steps
from audiovq.training.checkpoints import Checkpoints
from audiovq.training.devices import distribute, forget_compiled, gather_gradients, whole
from audiovq.training.early_stopping import BestWeights
from audiovq.training.health import StageFacts, Watch
from audiovq.training.logs import HEALTH, HealthLog, MetricsLog, Stopwatch
from audiovq.training.nonfinite import PATIENCE, NonFiniteGuard
from audiovq.training.optimizer import learning_rate, make_optimizer
from audiovq.training.trackers import Reporting
from audiovq.utils import signals
from audiovq.utils.progress import ProgressBar, say


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
    place = "stage"  # in the recipe, such as tokenizer or priors.0: what advice refers to
    splits_batches = False  # it keeps to device_batch_size itself, because it needs all examples of a device together
    example_seconds = 0.0  # of audio, to tell the speed

    def parts(self, config: TrainingConfig) -> list[Part]:
        """What is trained, each part with an optimizer of its own; weights are averaged of the first one."""
        return [Part(self.network, config)]

    def blocks(self) -> list[nn.Module]:
        """The repeated modules that make up most of the network: compiled, and shared out, one by one."""
        return []

    def moved(self) -> list[Tensor]:
        """All tensors that a forward pass in training mode may change."""
        return list(self.network.buffers())

    def watched(self) -> dict[str, Any]:
        """What the watch over its training must know of it: arguments of `health.StageFacts`."""
        return {}

    def dataset(self, split: str) -> Dataset[Any]:
        """Endless examples; index i is always the same one, of the track `name_of(i)` if it has that method."""
        raise NotImplementedError

    def weight(self, batch: Any) -> Tensor | float:
        """Of how many equal things the loss of this batch is the mean."""
        return float(len(batch))

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def describe(self, metrics: dict[str, float]) -> str:
        """The few figures for the progress bar."""
        return f"loss {metrics['loss']:.3f}"


def train(
    task: Task, title: str, folder: Path, config: TrainingConfig, seed: int, workers: int, accelerator: Accelerator,
    reporting: Reporting | None = None,
) -> None:  # fmt: skip
    """Train `task.network` for `config.steps` steps, going on from the newest checkpoint below `folder`; in the end it
    has the weights to keep.

    Raises:
        Interrupted: after a signal; the state is saved and the same call goes on.
        ValueError: loss or gradients are not finite, several times in a row.
    """
    with signals.deferred():
        Training(task, title, folder, config, seed, workers, accelerator, reporting or Reporting(folder)).run()


class Training:
    """One stage at work."""

    def __init__(
        self, task: Task, title: str, folder: Path, config: TrainingConfig, seed: int, workers: int,
        accelerator: Accelerator, reporting: Reporting,
    ):  # fmt: skip
        self.task, self.title, self.config, self.seed, self.workers = task, title, config, seed, workers
        self.accelerator, self.device = accelerator, accelerator.device
        self.model = distribute(task.train(), config, self.device, accelerator.mixed_precision == "bf16")
        self.parts = task.parts(config)
        self.optimizers = [make_optimizer(part.network, part.config) for part in self.parts]
        self.averages = Averages(self.parts[0].network, config.ema_decay)
        self.plan = split_batch(config.batch_size, None if task.splits_batches else config.device_batch_size)
        self.checkpoints = Checkpoints(
            folder / "checkpoints", task.network, self.optimizers, self.averages, config.checkpoint_seconds, task
        )
        state = self.checkpoints.load()
        self.start: int = state["step"]
        self.to_evaluate: bool = state.get("to_evaluate", False)  # what a signal kept it from
        self.skips = NonFiniteGuard(self.device, state.get("skipped", (0, 0)))
        self.stopwatch = Stopwatch()
        self.log = MetricsLog(folder / "metrics.jsonl", self.start)
        self.best = BestWeights(folder / "best", config, title)
        self.health = HealthLog(reporting.folder / HEALTH, title, self.start)
        self.watch = self.new_watch()
        self.trackers = reporting.stage(title, self.start, self.log.told)

    def new_watch(self) -> Watch:
        """One that knows what has been logged and said."""
        rates = {
            f"{part.suffix.removesuffix('s')}_learning_rate".lstrip("_"): part.config.learning_rate
            for part in self.parts
        }
        facts = StageFacts(
            self.title, self.task.place, self.config, rates, len(self.parts) > 1, workers=self.workers,
            cpus=os.cpu_count() or 1, **self.task.watched(),
        )  # fmt: skip
        watch = Watch(facts)
        for row in self.log.kept:
            watch.look(row["step"], row)
        watch.said = self.health.said
        return watch

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.trackers.close()

    def _run(self) -> None:
        config, title = self.config, self.title
        if self.start:
            say(f"{title}: going on from step {self.start}")
        if self.to_evaluate or (config.patience and not self.start):  # what it goes on from may already be the best
            self.evaluate(self.start)
        end = self.start if self.best.exhausted(self.start) else config.steps
        seconds = self.task.example_seconds * config.batch_size
        with ProgressBar(title, config.steps, self.start, "audio-s" if seconds else "", seconds) as bar:
            batches = self.stopwatch.waiting(self.steps("train", self.start, end, self.workers))
            for step, batch in enumerate(batches, self.start):
                figures = self.step(step, batch)
                done = step + 1
                bar.advance(1, self.report(done, figures) if self.every(config.log_steps, done) else None)
                self.to_evaluate = self.every(config.evaluate_steps, done) and not self.evaluate(done)
                stopped, due = collectives.any_rank(signals.received() is not None, self.checkpoints.due)
                ended = done == config.steps or self.best.exhausted(done)
                if stopped or due or ended:
                    self.checkpoints.save(done, to_evaluate=self.to_evaluate, skipped=self.skips.counts.tolist())
                if stopped and (not ended or self.to_evaluate):
                    raise signals.Interrupted(signals.received() or signal.SIGTERM, f" after step {done} of {title}")
                if ended:
                    break
        self.averages.keep()
        self.best.restore(self.task.network)
        forget_compiled(self.task.eval())

    def every(self, n: int, done: int) -> bool:
        return done % n == 0 or done == self.config.steps

    def steps(self, split: str, start: int, end: int, workers: int = 0) -> Iterator[list[Any]]:
        return steps(self.task.dataset(split), start, end, self.plan, self.device, workers)

    def step(self, step: int, batch: list[Any]) -> dict[str, Tensor]:
        """Learn from one batch; returns this rank's share of loss and metrics, to be added up over the ranks."""
        torch.manual_seed(step_seed(self.seed, self.title, step, collectives.rank()))
        figures: dict[str, Tensor] = {}
        shares = self.shares(batch)
        self.skips.begin(self.task.moved())
        for i, (portion, examples) in enumerate(zip(self.plan.portions(), batch, strict=True)):
            with gather_gradients(self.model, now=i == len(batch) - 1):
                with self.chances(step, portion), self.accelerator.autocast():
                    loss, metrics = self.model(examples)
                # Gathering takes the mean over the ranks, so each counts its part as if the others had as much.
                (loss * shares[i] * collectives.world_size()).backward()
            add(figures, {"loss": loss, **metrics}, shares[i])
        norms = [clip(part) for part in self.parts]
        happens = self.skips.judge(figures["loss"], norms)
        for part, optimizer, norm in zip(self.parts, self.optimizers, norms, strict=True):
            update(part, optimizer, step, happens)
            figures[f"gradient_norm{part.suffix}"] = norm / collectives.world_size()
        self.averages.update(step, happens)
        return figures

    def shares(self, batch: list[Any]) -> Tensor:
        """Of the whole step's loss, what each of this rank's portions counts."""
        weights = [self.task.weight(x) * p.counts for p, x in zip(self.plan.portions(), batch, strict=True)]
        mine = torch.stack([torch.as_tensor(weight, dtype=torch.float32, device=self.device) for weight in weights])
        return mine / collectives.all_reduce_(mine.sum())

    def chances(self, step: int, portion: Microbatch) -> Any:
        seed = step_seed(self.seed, self.title, step)
        return rng.batch_share(seed, portion.first, self.plan.batch_size, self.device)

    def report(self, done: int, figures: dict[str, Tensor]) -> str:
        """The one place where a training step's figures arrive: the whole batch's, as plain numbers, on every rank.

        Returns what the progress bar says of them.

        Raises:
            ValueError: too many of the last steps were skipped.
        """
        began = time.monotonic()
        numbers = total(figures)
        times = self.stopwatch.lap(time.monotonic() - began)
        skipped, in_a_row = self.skips.counts.tolist()
        rates = {f"learning_rate{part.suffix}": part.learning_rate(done - 1) for part in self.parts}
        self.tell(done, numbers | rates | {"skipped_steps": skipped}, times)
        if in_a_row >= PATIENCE:
            raise ValueError(self.why_it_stops(done, in_a_row))
        return self.task.describe(numbers)

    def tell(self, done: int, figures: dict[str, float], times: dict[str, float] | None = None) -> None:
        """Figures of a step to all who want them: those that any run would have, and times."""
        self.log.write(done, figures)
        self.trackers.log(done, figures | (times or {}))
        for finding in self.watch.look(done, figures | (times or {})):
            self.health.write(finding)
            say(f"health: {finding.message}")

    def why_it_stops(self, done: int, n: int) -> str:
        """With the tracks of the last `n` batches; first those that are in each of them."""
        name_of = getattr(self.task.dataset("train"), "name_of", lambda index: f"example {index}")
        size = self.config.batch_size
        batches = [{name_of(i) for i in range(step * size, (step + 1) * size)} for step in range(done - n, done)]
        names = [name for name, _ in Counter(sorted(itertools.chain.from_iterable(batches))).most_common()]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        advice = self.watch.facts.lower(10).removeprefix("set ")
        return (
            f"{self.title}: loss or gradients were not finite in the last {n} steps, up to step {done}; nothing was learned "
            f"from them. Their batches are from {shown}. Listen to those, or try a lower learning_rate: {advice}, with "
            "another --out"
        )

    @torch.no_grad()
    def evaluate(self, done: int) -> bool:
        """Report loss and metrics of the first examples of the held-out tracks, the same ones every time. False if a
        signal came, before all were looked at."""
        self.task.eval()
        sums: dict[str, Tensor] = {}
        n = self.config.evaluate_batches
        with self.averages.in_place():
            for batch in self.steps("valid", 0, n):
                if collectives.any_rank(signals.received() is not None)[0]:
                    break
                for share, examples in zip(self.shares(batch), batch, strict=True):
                    with self.accelerator.autocast():
                        loss, metrics = self.task(examples)
                    add(sums, {"loss": loss, **metrics}, share / n)
            else:
                numbers = total(sums)
                self.tell(done, {f"valid_{key}": value for key, value in numbers.items()})
                say(f"{self.title}: step {done}, held out: {self.task.describe(numbers)}")
                self.best.look(done, numbers["loss"], self.task.network)
                self.task.train()
                self.stopwatch.restart()
                return True
        self.task.train()
        return False


def clip(part: Part) -> Tensor:
    """Clip the gradients of one part; returns their norm before, the same on all ranks."""
    return whole(nn.utils.clip_grad_norm_(part.network.parameters(), part.config.gradient_clip))


def update(part: Part, optimizer: Any, step: int, happens: Tensor) -> None:
    """Unless the part rests, take its optimizer's step; it does nothing if `happens` (bool scalar) is false."""
    if step >= part.first_step:
        for group in optimizer.param_groups:
            group["lr"] = part.learning_rate(step)
        optimizer.found_inf = (~happens).float()  # which fused AdamW asks on the device
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def add(sums: dict[str, Tensor], metrics: dict[str, Tensor], share: Tensor) -> None:
    """Of metrics that are means over a part of a batch, what they contribute to those of the whole."""
    for name, value in metrics.items():
        sums[name] = sums.get(name, torch.zeros_like(share)) + value.detach().float() * share


def total(figures: dict[str, Tensor]) -> dict[str, float]:
    """Shares of all ranks, added up; every rank brings the same names."""
    sums = collectives.all_reduce_(torch.stack(list(figures.values())))
    return dict(zip(figures, sums.tolist(), strict=True))
