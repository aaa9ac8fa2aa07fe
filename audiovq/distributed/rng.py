"""Random numbers of a training step that do not depend on how its batch is split over devices and micro-batches.

Numbers that are drawn once per item (whether its label is dropped) or once per step (where k-means starts)
come from here. Within `batch_share` each process draws the numbers of the whole batch and uses those of its
items; outside, the numbers come from torch's own generator, as does noise for the elements of large tensors.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_current: tuple[torch.Generator, int, int] | None = None  # the generator, the first item, the size of the batch


@contextlib.contextmanager
def batch_share(seed: int, first: int, total: int, device: torch.device) -> Iterator[None]:
    """Within `with`, items 0, 1, … of this process are items `first`, `first` + 1, … of a batch of `total`."""
    global _current
    _current = torch.Generator(device).manual_seed(seed), first, total
    try:
        yield
    finally:
        _current = None


def generator() -> torch.Generator | None:
    """The generator for numbers that are equal in all processes; None means torch's own generator."""
    return _current[0] if _current else None


def rand_per_item(n: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), float [n], one per item of the batch."""
    if _current is None:
        return torch.rand(n, device=device)
    source, first, total = _current
    assert first + n <= total, "the batch has more items than `batch_share` was given"
    return torch.rand(total, generator=source, device=device)[first : first + n]
