"""A step whose loss or gradients are not finite changes nothing: no weight, no moment, no codebook, no average.

All of it is decided on the device, from numbers that every rank has alike: nobody waits, and ranks never differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audiovq.distributed import collectives

PATIENCE = 3  # skipped steps in a row, after which a training stops


class NonFiniteGuard:
    """Which steps were skipped. `counts`: int64 [2] on the device, all of them and those in a row that just were."""

    def __init__(self, device: torch.device, counts: Sequence[int] = (0, 0)):
        self.counts = torch.tensor(list(counts), device=device)
        self.kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def begin(self, moved: Sequence[Tensor]) -> None:
        """Before the forward pass, with all tensors that it may change."""
        self.kept = [(tensor, tensor.detach().clone()) for tensor in moved]

    @torch.no_grad()
    def judge(self, loss: Tensor, norms: Sequence[Tensor]) -> Tensor:
        """Whether the step happens, a bool scalar; if not, what the forward pass changed is as it was.

        Args:
            loss: this rank's share.
            norms: of the gradients, the same on all ranks.
        """
        happens = torch.stack([collectives.all_reduce_(loss.detach().clone()), *norms]).isfinite().all()
        for tensor, before in self.kept:
            tensor.copy_(torch.where(happens, tensor, before))
        self.kept = []
        skipped = (~happens).long()
        self.counts = torch.stack([self.counts[0] + skipped, (self.counts[1] + 1) * skipped])
        return happens
