"""What the training loop trains: a `Task` has a network, examples and a loss."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.recipe import TrainingConfig


@dataclass(frozen=True)
class Part:
    """A network with its own optimizer. Its training and its learning rate begin at `first_step`."""

    network: nn.Module
    config: TrainingConfig
    first_step: int = 0
    suffix: str = ""  # of the names of its metrics

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to `final_fraction`; a function of the step, so that no state is saved."""
        config, n = self.config, step - self.first_step
        if n < 0:
            return 0.0
        if n < config.warmup_steps:
            return config.learning_rate * (n + 1) / config.warmup_steps
        passed = (n - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
        return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


class Task(nn.Module):
    """A network with its loss: `forward(batch)` returns it and a dict of scalars to log, all means over the
    batch. With several parts, the loss is the sum of theirs, and each term reaches one part only."""

    network: nn.Module  # saved in checkpoints
    title = "stage"  # such as prior-0: in messages, logs and the seeds of steps
    recipe_key = "stage"  # of the stage in the recipe, such as priors.0
    seed = 0
    has_held_out = True  # False: evaluations are of training tracks, because there are no others
    shown: tuple[str, ...] = ()  # metrics in the progress bar, besides the loss
    splits_batches = False  # True: the task splits a batch by `device_batch_size` itself
    example_seconds = 0.0  # seconds of audio in an example, for the speed in the progress bar
    example_flops = 0.0  # of a training step with one example, for the TFLOPS; 0 if unknown

    def parts(self, config: TrainingConfig) -> list[Part]:
        """The networks to train, each with its own optimizer. Only the first one has averaged weights."""
        return [Part(self.network, config)]

    def blocks(self) -> list[nn.Module]:
        """The repeated modules that hold most of the weights: they are compiled and sharded one by one."""
        return []

    def forward_state(self) -> list[Tensor]:
        """All tensors that a forward pass in training mode may change."""
        return list(self.network.buffers())

    def health_facts(self) -> dict[str, Any]:
        """Arguments of `health.StageFacts` that only the task knows."""
        return {}

    def dataset(self, split: str) -> Dataset[Any]:
        """An endless data set: index i is always the same example."""
        raise NotImplementedError

    def weight(self, batch: Any) -> Tensor | float:
        """The number of items, such as codes, that the loss of this batch is the mean of."""
        return float(len(batch))

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def describe(self, metrics: dict[str, float]) -> str:
        terms = " ".join(f"{name} {metrics[name]:.4g}" for name in self.shown if name in metrics)
        return f"loss {metrics['loss']:.3f} {terms}"
