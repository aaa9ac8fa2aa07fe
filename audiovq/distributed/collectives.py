"""The few collectives we need, as no-ops on a single process.

Every function here is called unconditionally by all ranks: a collective behind a rank-local branch hangs. Tensors on a
GPU go by nccl, those in main memory by gloo: so ranks can agree on something without waiting for their GPUs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def mean_(tensor: Tensor, n_items: int = 1) -> Tensor:
    """Mean over all ranks, each with the weight of its `n_items`, in place."""
    if is_distributed():
        total = all_reduce_(torch.tensor(float(n_items), device=tensor.device))
        all_reduce_(tensor.mul_(n_items)).div_(total)
    return tensor


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Sum over all ranks, through which gradients flow back to all ranks."""
    return torch.distributed.nn.functional.all_reduce(tensor) if is_distributed() else tensor


def mean_with_gradient(tensor: Tensor, n_items: int) -> Tensor:
    """Mean [n] over all ranks, each with the weight of its `n_items`; gradients flow back to all ranks."""
    if not is_distributed():
        return tensor
    sums = sum_with_gradient(torch.cat([tensor * n_items, tensor.new_full((1,), n_items)]))
    return sums[:-1] / sums[-1]


def broadcast_(tensor: Tensor) -> Tensor:
    """Rank 0's values for everyone, in place."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def from_rank_0(number: int) -> int:
    """Rank 0's number for everyone: what it sees on a shared disk, others may see later."""
    return int(broadcast_(torch.tensor(number))) if is_distributed() else number


def any_rank(*flags: bool) -> list[bool]:
    """Each flag true on every rank if it is true on one: how ranks agree to stop or to save."""
    return (all_reduce_(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()


def barrier() -> None:
    """Wait for all ranks. By gloo: a rank that waits notices when another one is gone."""
    all_reduce_(torch.zeros(()))


class Pool:
    """The rows of all ranks, in the order in which one process that has them all would have them.

    Args:
        parts: this rank's rows, [n, dim] each; as many parts on all ranks. Row i of a part is behind those of lower ranks.
    """

    def __init__(self, parts: list[Tensor]):
        self.parts = parts
        counts = torch.zeros(world_size(), len(parts), dtype=torch.int64, device=parts[0].device)
        counts[rank()] = torch.tensor([len(part) for part in parts])
        all_reduce_(counts)
        totals = counts.sum(dim=0)
        self.starts = totals.cumsum(0) - totals + counts[: rank()].sum(dim=0)  # of this rank's rows, a part
        self.size = totals.sum()  # on the device: nobody waits for it unless it is looked at

    def rows(self, index: Tensor) -> Tensor:
        """Rows [k, dim] at `index` int64 [k], rank 0's for everyone."""
        index = broadcast_(index.contiguous())
        found = self.parts[0].new_zeros(len(index), self.parts[0].shape[1])
        for part, start in zip(self.parts, self.starts, strict=True):
            mine = (index >= start) & (index < start + len(part))
            found += part[(index - start).clamp(0, len(part) - 1)] * mine[:, None]
        return all_reduce_(found)
