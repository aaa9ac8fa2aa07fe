"""A moving average of the weights: smoother than the last step's, and what is evaluated and kept if the recipe asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Averages:
    """Of all weights of a network that learn (Polyak averaging, with Adam: arXiv:1412.6980, section 7.2).

    Codebooks and running statistics are no weights: they stay what they are. With `decay` None everything here does nothing.
    """

    def __init__(self, network: nn.Module, decay: float | None):
        self.decay = decay
        self.weights = {name: p for name, p in network.named_parameters() if p.requires_grad and decay is not None}
        self.tensors = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int, happened: Tensor) -> None:
        """After each step; the first steps decay faster, so that the beginning is soon forgotten.

        Args:
            happened: bool scalar on the device; a step that was skipped changes nothing.
        """
        if self.decay is not None:
            part = (1 - min(self.decay, (1 + step) / (10 + step))) * happened.float()
            for average, weight in zip(_local(self.tensors), _local(self.weights), strict=True):
                average.lerp_(weight, part.to(average.dtype))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within `with`, the network has the averages for weights."""
        kept = [weight.clone() for weight in _local(self.weights)]
        self.keep()
        try:
            yield
        finally:
            self._set(kept)

    def keep(self) -> None:
        """From now on the network has the averages for weights."""
        self._set(_local(self.tensors))

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for weight, value in zip(_local(self.weights), values, strict=True):
            weight.copy_(value)


def _local(tensors: Mapping[str, Any]) -> list[Tensor]:
    """This rank's part of each."""
    return [(t.to_local() if isinstance(t, DTensor) else t).detach() for t in tensors.values()]
