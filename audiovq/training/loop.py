"""One training loop for every stage. It knows no model: a `Task` brings network, examples and loss.

The loss of a step is the mean over its batch, however many devices and micro-batches the batch is split into.

Exact resume: the examples and random numbers of a step are functions of (seed, step). A run that was killed
and started again ends with the same weights, bit for bit, as one that was not.

A task may train several networks against each other. Each has its own optimizer, and one backward pass serves all.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from audiovq.distributed import collectives, rng
from audiovq.recipe import TrainingConfig
from audiovq.training.averages import Averages
from audiovq.training.batches import BatchSplit, add_weighted, evaluate, load_batches, microbatch_weights, step_seed
from audiovq.training.checkpoints import BestWeights, Checkpoints
from audiovq.training.devices import distribute, forget_compiled, gather_gradients, whole
from audiovq.training.monitor import Monitor, TrackerConfig
from audiovq.training.nonfinite import NonFiniteGuard
from audiovq.training.optimizer import make_optimizer
from audiovq.training.task import Part, Task
from audiovq.utils import signals
from audiovq.utils.progress import ProgressBar, say


class Training:
    """The training of one stage, from its newest checkpoint if there is one; checkpoints and metrics are in `folder`."""

    def __init__(
        self, task: Task, folder: Path, config: TrainingConfig, accelerator: Accelerator, workers: int = 0,
        trackers: TrackerConfig | None = None,
    ):  # fmt: skip
        self.task, self.config, self.workers = task, config, workers
        self.accelerator, self.device = accelerator, accelerator.device
        # Parameters are final only after `distribute`: it moves them to the device and may shard them.
        self.model = distribute(task.train(), config, self.device, accelerator.mixed_precision == "bf16")
        self.parts = task.parts(config)
        self.optimizers = [make_optimizer(part.network, part.config) for part in self.parts]
        self.averages = Averages(self.parts[0].network, config.ema_decay)
        self.split = BatchSplit(config.batch_size, None if task.splits_batches else config.device_batch_size)
        # The newest checkpoint, if any, fills network, optimizers and averages.
        target = folder / "checkpoints"
        self.checkpoints = Checkpoints(target, task.network, self.optimizers, self.averages, config, task)
        state = self.checkpoints.load()
        self.start: int = state["step"]
        self.must_evaluate: bool = state.get("to_evaluate", False)  # a signal prevented it
        self.guard = NonFiniteGuard(self.device, state.get("skipped", (0, 0)))
        self.best = BestWeights(folder / "best", config, task.title)
        self.monitor = Monitor(task, self.parts, folder, config, trackers or TrackerConfig(folder), self.start)

    def run(self) -> None:
        """Train; `task.network` has its final weights then. Raises `Interrupted` after a signal, with the
        state saved, and ValueError if the loss or gradients were not finite in several steps in a row."""
        with signals.deferred(), contextlib.closing(self.monitor):
            try:
                self._run()
            finally:  # after an error, too, what was saved is there
                self.checkpoints.wait()

    def _run(self) -> None:
        config = self.config
        if self.start:
            say(f"{self.task.title}: continues from step {self.start}")
        # With early stopping, the weights at the start may already be the best.
        if self.must_evaluate or (config.patience and not self.start):
            self.evaluate(self.start)
        end = self.start if self.best.exhausted(self.start) else config.steps
        seconds = self.task.example_seconds * config.batch_size
        with ProgressBar(self.task.title, config.steps, self.start, "audio-s" if seconds else "", seconds) as bar:
            batches = self.monitor.timed(self.batches("train", self.start, end, self.workers))
            for step, batch in enumerate(batches, self.start):
                sums = self.step(step, batch)
                done = step + 1
                # Every few steps: log, and measure the held-out loss.
                is_logged = self.is_due(config.log_steps, done)
                bar.advance(1, self.monitor.log_step(done, sums, self.guard, self.model) if is_logged else None)
                self.must_evaluate = self.is_due(config.evaluate_steps, done) and not self.evaluate(done)
                # Ranks agree on when to save and when to stop.
                stopped, is_late = collectives.largest(signals.received() is not None, self.checkpoints.due)
                finished = done == config.steps or self.best.exhausted(done)
                is_kept = config.keep_every_steps and done % config.keep_every_steps == 0
                if stopped or is_late or is_kept or finished:
                    self.checkpoints.save(done, to_evaluate=self.must_evaluate, skipped=self.guard.counts.tolist())
                if stopped or finished:
                    self.checkpoints.wait()
                    collectives.barrier()
                if stopped and (not finished or self.must_evaluate):
                    number = signals.received() or signal.SIGTERM
                    raise signals.Interrupted(number, f" after step {done} of {self.task.title}")
                if finished:
                    break
        # The final weights: the moving average if there is one, or the best ones with early stopping.
        self.averages.swap()
        self.best.restore(self.task.network)
        forget_compiled(self.task.eval())

    def is_due(self, n_steps: int, done: int) -> bool:
        """True after every `n_steps` steps, and after the last one."""
        return done % n_steps == 0 or done == self.config.steps

    def batches(self, split: str, start: int, end: int, workers: int = 0) -> Iterator[list[Any]]:
        """The batches of steps [start, end): each a list of this rank's micro-batches."""
        return load_batches(self.task.dataset(split), start, end, self.split, self.device, workers)

    def step(self, step: int, batch: list[Any]) -> dict[str, Tensor]:
        """One optimizer step with this rank's micro-batches: scalars whose sums over ranks are means over the batch."""
        seed = step_seed(self.task.seed, self.task.title, step)
        torch.manual_seed(step_seed(self.task.seed, self.task.title, step, collectives.rank()))
        sums: dict[str, Tensor] = {}
        weights = microbatch_weights(self.task, batch, self.split, self.device)  # [micro-batches]
        self.guard.remember(self.task.forward_state())
        for i, (microbatch, examples) in enumerate(zip(self.split.microbatches(), batch, strict=True)):
            # Gradients add up over the micro-batches; ranks exchange them once, in the last backward pass.
            with gather_gradients(self.model, now=i == len(batch) - 1):
                # Random numbers are functions of seed, step and an example's place in the batch.
                numbers = rng.batch_share(seed, microbatch.first, self.split.batch_size, self.device)
                with numbers, self.accelerator.autocast():
                    loss, metrics = self.model(examples)
                # The exchange takes the mean over ranks, but the weights are for a sum: hence world_size.
                (loss * weights[i] * collectives.world_size()).backward()
            add_weighted(sums, {"loss": loss, **metrics}, weights[i])
        # Clip; the norms are those before, the same on all ranks.
        norms = [whole(nn.utils.clip_grad_norm_(p.network.parameters(), p.config.gradient_clip)) for p in self.parts]
        # A step with a loss or gradients that are not finite is skipped: it leaves all state as it was.
        is_finite = self.guard.check(sums["loss"], norms)
        for part, optimizer, norm in zip(self.parts, self.optimizers, norms, strict=True):
            update(part, optimizer, step, is_finite)
            sums[f"gradient_norm{part.suffix}"] = norm / collectives.world_size()
        self.averages.update(step, is_finite)
        return sums

    def evaluate(self, done: int) -> bool:
        """Measure the held-out loss and keep the best weights; False if a signal interrupted it."""
        n = self.config.evaluate_batches
        with self.averages.applied():
            metrics = evaluate(self.task, self.batches("valid", 0, n), n, self.split, self.accelerator)
            if metrics is not None:
                self.monitor.log_evaluation(done, metrics)
                if not (codes_from := self.task.health_facts().get("codes_from")) or done > codes_from:
                    self.best.update(done, metrics["loss"], self.task.network)
        return metrics is not None


def update(part: Part, optimizer: Any, step: int, is_finite: Tensor) -> None:
    """Step the optimizer of a part if its training has begun and `is_finite`, a bool scalar; clear gradients."""
    if step >= part.first_step:
        for group in optimizer.param_groups:
            group["lr"] = part.learning_rate(step)
        optimizer.found_inf = (~is_finite).float()  # fused AdamW reads this on the device, without a wait
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
