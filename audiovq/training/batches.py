"""Which examples a step is made of, who takes which, and how many at once: never what is learned from them.

Step k of a run has examples k·batch_size … (k + 1)·batch_size - 1, on any number of devices.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from audiovq.distributed import collectives
from audiovq.utils import signals


def step_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Microbatch:
    """Examples that a device takes at once: places first … first + n - 1 in the step's batch."""

    first: int
    n: int
    counts: bool = True  # False: there is nothing left, and the example is there only to keep step with the others


@dataclass(frozen=True)
class BatchSplit:
    """How a batch is shared out: every rank has the same number of portions, and no two differ by more than an example.

    Raises:
        ValueError: fewer examples than ranks.
    """

    batch_size: int
    at_once: int | None  # examples that a device takes at once; None: all of its share
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < self.world_size:
            raise ValueError(
                f"batch_size: expected at least one example for each of the {self.world_size} processes, "
                f"found {self.batch_size}; use fewer (--gpus, --processes)"
            )

    @property
    def n_portions(self) -> int:
        largest = -(-self.batch_size // self.world_size)
        return -(-largest // (self.at_once or largest))

    def portions(self) -> list[Microbatch]:
        """This rank's, in order."""
        begin, end = (self.batch_size * rank // self.world_size for rank in (self.rank, self.rank + 1))
        edges = [begin + (end - begin) * i // self.n_portions for i in range(self.n_portions + 1)]
        return [Microbatch(a, b - a) if b > a else Microbatch(begin, 1, False) for a, b in itertools.pairwise(edges)]


class _Indexes:
    """The example indexes of each portion of each step, from `start` on."""

    def __init__(self, start: int, end: int, plan: BatchSplit):
        self.start, self.end, self.plan = start, end, plan

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.end):
            for portion in self.plan.portions():
                first = step * self.plan.batch_size + portion.first
                yield list(range(first, first + portion.n))

    def __len__(self) -> int:
        return (self.end - self.start) * self.plan.n_portions


def steps(
    dataset: Dataset[Any], start: int, end: int, plan: BatchSplit, device: torch.device, workers: int = 0
) -> Iterator[list[Any]]:
    """The batches of steps [start, end) on this rank, a list of portions each, on the device."""
    loader = DataLoader(
        dataset, batch_sampler=_Indexes(start, end, plan), num_workers=workers, pin_memory=device.type == "cuda",
        worker_init_fn=signals.ignore_in_worker,
    )  # fmt: skip
    portions = iter(loader)
    for _ in range(start, end):
        yield [to_device(batch, device) for batch in itertools.islice(portions, plan.n_portions)]


def split_batch(batch_size: int, at_once: int | None) -> BatchSplit:
    return BatchSplit(batch_size, at_once, collectives.rank(), collectives.world_size())


def to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
