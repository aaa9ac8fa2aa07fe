"""The few collectives we need, as no-ops on a single process.

Every function here is called unconditionally by all ranks: a collective behind a rank-local branch hangs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun or `accelerate launch` started, for as long as the block lasts; each takes its
    own GPU if there are any. Nothing on a single process."""
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


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


def mean_(tensor: Tensor) -> Tensor:
    """Mean over all ranks, in place."""
    return all_reduce_(tensor).div_(world_size())


def mean_with_gradient(tensor: Tensor) -> Tensor:
    """Mean over all ranks, through which gradients flow back to all ranks."""
    if is_distributed():
        return torch.distributed.nn.functional.all_reduce(tensor) / world_size()
    return tensor


def broadcast_(tensor: Tensor) -> Tensor:
    """Rank 0's values for everyone, in place."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on one: how ranks agree to stop or to save."""
    if not is_distributed():
        return flag
    return bool(all_reduce_(torch.tensor(float(flag), device=device)).item() > 0)


def barrier() -> None:
    if is_distributed():
        dist.barrier()
