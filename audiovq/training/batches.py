"""The examples of each step, split among ranks and micro-batches, and means over the whole batch or several. Step k of
a run has examples k·batch_size … (k + 1)·batch_size - 1, on any number of devices."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from audiovq.distributed import collectives
from audiovq.training.task import Task
from audiovq.utils import signals


def step_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


class Microbatch(NamedTuple):
    """Examples `first` … `first + n - 1` of a step's batch."""

    first: int
    n: int
    counts: bool = True  # False: a placeholder on a rank that has fewer micro-batches than others


@dataclass(frozen=True)
class BatchSplit:
    """All ranks have equally many micro-batches, of sizes that differ by at most 1; ValueError if too few."""

    batch_size: int  # examples of a step, on all ranks together
    device_batch_size: int | None  # the largest micro-batch; None: a rank's whole share
    rank: int = field(default_factory=collectives.rank)
    world_size: int = field(default_factory=collectives.world_size)

    def __post_init__(self) -> None:
        if self.batch_size < self.world_size:
            expected = f"at least one example for each of the {self.world_size} processes"
            found = f"{self.batch_size}; use fewer (--gpus, --processes)"
            raise ValueError(f"batch_size: expected {expected}, found {found}")

    @property
    def n_microbatches(self) -> int:
        largest_share = -(-self.batch_size // self.world_size)
        return -(-largest_share // (self.device_batch_size or largest_share))

    def microbatches(self) -> list[Microbatch]:
        """Those of this rank, in order."""
        begin, end = (self.batch_size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        n = self.n_microbatches
        edges = [begin + (end - begin) * i // n for i in range(n + 1)]
        placeholder = Microbatch(begin, 1, counts=False)
        return [Microbatch(a, b - a) if b > a else placeholder for a, b in itertools.pairwise(edges)]


def load_batches(
    dataset: Dataset[Any], start: int, end: int, split: BatchSplit, device: torch.device, workers: int = 0
) -> Iterator[list[Any]]:
    """The batches of steps [start, end) on `device`: a list of this rank's micro-batches for each step."""
    indexes = (
        [step * split.batch_size + part.first + i for i in range(part.n)]
        for step in range(start, end)
        for part in split.microbatches()
    )
    options: Any = {"pin_memory": device.type == "cuda", "worker_init_fn": signals.ignore_in_worker}
    microbatches = iter(DataLoader(dataset, batch_sampler=indexes, num_workers=workers, **options))
    for _ in range(start, end):
        step = itertools.islice(microbatches, split.n_microbatches)
        yield [send_to_device(batch, device, non_blocking=True) for batch in step]


def microbatch_weights(task: Task, batch: list[Any], split: BatchSplit, device: torch.device) -> Tensor:
    """The weight of each micro-batch in the mean over the whole batch; on all ranks together they sum to 1."""
    pairs = zip(split.microbatches(), batch, strict=True)
    counts = [task.weight(examples) * microbatch.counts for microbatch, examples in pairs]
    weights = torch.stack([torch.as_tensor(count, dtype=torch.float32, device=device) for count in counts])
    return weights / collectives.all_reduce_(weights.sum())


def add_weighted(sums: dict[str, Tensor], means: dict[str, Tensor], weight: Tensor) -> None:
    """Add the means over a micro-batch to `sums`, in place."""
    for name, value in means.items():
        sums[name] = sums.get(name, torch.zeros_like(weight)) + value.detach().float() * weight


def sum_over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    """The sums of all ranks, which must have the same names, as numbers."""
    return dict(zip(sums, collectives.all_reduce_(torch.stack(list(sums.values()))).tolist(), strict=True))


@torch.no_grad()
def evaluate(
    task: Task, batches: Iterable[list[Any]], n_batches: int, split: BatchSplit, accelerator: Accelerator
) -> dict[str, float] | None:
    """Mean loss and metrics over some batches of micro-batches; None if a signal was received before the last one."""
    sums: dict[str, Tensor] = {}
    task.eval()
    try:
        for batch in batches:
            if collectives.largest(signals.received() is not None)[0]:
                return None
            weights = microbatch_weights(task, batch, split, accelerator.device)
            for weight, examples in zip(weights, batch, strict=True):
                with accelerator.autocast():
                    loss, metrics = task(examples)
                add_weighted(sums, {"loss": loss, **metrics}, weight / n_batches)
    finally:
        task.train()
    return sum_over_ranks(sums)
