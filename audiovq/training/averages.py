"""A moving average of the weights, which is evaluated and saved instead of the last step's weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from audiovq.training.devices import local


class Averages:
    """Exponential moving averages of all trainable weights of a network; with `decay` None, there are none. Codebooks
    and running statistics are not averaged. (torch's `AveragedModel` copies the module, which FSDP forbids.) Source:
    Polyak averaging, with Adam: arXiv:1412.6980, section 7.2."""

    def __init__(self, network: nn.Module, decay: float | None):
        self.decay = decay
        weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.weights = {} if decay is None else weights
        self.tensors = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int, is_finite: Tensor) -> None:
        """Move the averages towards the weights, faster in the first steps, which are soon forgotten; not at
        all if the step was skipped, which the bool scalar `is_finite` says."""
        if self.decay is not None:
            rate = (1 - min(self.decay, (1 + step) / (10 + step))) * is_finite.float()
            for name, average in self.tensors.items():
                local(average).lerp_(local(self.weights[name]), rate.to(average.dtype))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within `with`, the network's weights are the averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for name, average in self.tensors.items():
            weight = local(self.weights[name])
            kept = weight.clone()
            weight.copy_(local(average))
            local(average).copy_(kept)
