"""The loss of a task on held-out examples."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from audiovq.distributed import collectives
from audiovq.training.batches import BatchSplit, add_weighted, microbatch_weights, sum_over_ranks
from audiovq.training.task import Task
from audiovq.utils import signals


@torch.no_grad()
def evaluate(
    task: Task, batches: Iterable[list[Any]], n_batches: int, split: BatchSplit, accelerator: Accelerator
) -> dict[str, float] | None:
    """Mean loss and metrics over some batches; None if a signal was received before the last one.

    Args:
        batches: each a list of this rank's micro-batches.
    """
    sums: dict[str, Tensor] = {}
    task.eval()
    try:
        for batch in batches:
            if collectives.any_rank(signals.received() is not None)[0]:
                return None
            weights = microbatch_weights(task, batch, split, accelerator.device)
            for weight, examples in zip(weights, batch, strict=True):
                with accelerator.autocast():
                    loss, metrics = task(examples)
                add_weighted(sums, {"loss": loss, **metrics}, weight / n_batches)
    finally:
        task.train()
    return sum_over_ranks(sums)
