"""Random numbers of a training step that do not depend on how its batch is shared among devices and micro-batches.

Whatever is drawn once an item (is this label dropped?) or once a step (where k-means begins) comes from here. Within
`batch_share` every process draws for the whole batch and takes its items' numbers; outside, it is torch's own generator.
Noise for each element of a large tensor (dropout in layers, Gumbel noise) is not drawn here: it would cost as much as
for the whole batch on every device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _BatchShare:
    source: torch.Generator
    first: int
    total: int


_current: _BatchShare | None = None


@contextlib.contextmanager
def batch_share(seed: int, first: int, total: int, device: torch.device) -> Iterator[None]:
    """Within `with`, items 0, 1, … here are items `first`, `first` + 1, … of a batch of `total`."""
    global _current
    _current = _BatchShare(torch.Generator(device).manual_seed(seed), first, total)
    try:
        yield
    finally:
        _current = None


def generator() -> torch.Generator | None:
    """For numbers that all processes draw alike; None is torch's own generator."""
    return _current.source if _current else None


def rand_per_item(n: int, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), float [n], one an item of the batch."""
    if _current is None:
        return torch.rand(n, device=device)
    assert _current.first + n <= _current.total, "more items than the batch was said to have"
    drawn = torch.rand(_current.total, generator=_current.source, device=device)
    return drawn[_current.first : _current.first + n]
