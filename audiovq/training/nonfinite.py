"""Steps with a loss or gradients that are not finite are skipped: weights, codebooks and moments stay. The decision is
made on the device, from numbers that are the same on all ranks, so that no rank waits or differs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from audiovq.distributed import collectives

PATIENCE = 3  # skipped steps in a row, after which a training stops


class NonFiniteGuard:
    """Decides whether a step is skipped, and restores what its forward pass changed."""

    def __init__(self, device: torch.device, counts: Sequence[int] = (0, 0)):
        self.counts = torch.tensor(list(counts), device=device)  # all skipped steps, and the latest ones in a row
        self.remembered: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def remember(self, tensors: Sequence[Tensor]) -> None:
        """Before the forward pass, with all tensors that it may change."""
        self.remembered = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def check(self, loss: Tensor, norms: Sequence[Tensor]) -> Tensor:
        """True if loss and norms of all ranks are finite, bool scalar; else remembered tensors are restored."""
        is_finite = torch.stack([collectives.all_reduce_(loss.detach().clone()), *norms]).isfinite().all()
        for tensor, before in self.remembered:
            tensor.copy_(torch.where(is_finite, tensor, before))
        self.remembered = []
        skipped = (~is_finite).long()
        self.counts = torch.stack([self.counts[0] + skipped, (self.counts[1] + 1) * skipped])
        return is_finite
