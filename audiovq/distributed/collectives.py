"""Collectives that do nothing on a single process. All ranks must call each function: a collective in a branch that
only some ranks take waits forever. Tensors on a GPU use nccl, tensors in main memory gloo, so that ranks can agree on
a flag without waiting for their GPUs."""

import contextlib
import datetime
import socket
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor
from torch.distributed import distributed_c10d

LONGEST_WORK = datetime.timedelta(days=1)  # of one rank while the others wait in `barrier`


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
    """Mean over all ranks, weighted by their `n_items`, in place."""
    if is_distributed():
        total = all_reduce_(torch.tensor(float(n_items), device=tensor.device))
        all_reduce_(tensor.mul_(n_items)).div_(total)
    return tensor


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Sum over all ranks; gradients flow back to all ranks."""
    return torch.distributed.nn.functional.all_reduce(tensor) if is_distributed() else tensor


def mean_with_gradient(tensor: Tensor, n_items: int) -> Tensor:
    """Mean [n] over all ranks, weighted by their `n_items`; gradients flow back to all ranks."""
    if not is_distributed():
        return tensor
    sums = sum_with_gradient(torch.cat([tensor * n_items, tensor.new_full((1,), n_items)]))
    return sums[:-1] / sums[-1]


def broadcast_(tensor: Tensor) -> Tensor:
    """Replace a tensor by the one of rank 0, in place."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def from_rank_0(number: int) -> int:
    """The number of rank 0. Use it for facts about a shared disk, which other ranks may see later."""
    return int(broadcast_(torch.tensor(number))) if is_distributed() else number


def largest(*numbers: float) -> list[float]:
    """The maximum of each number, or flag, over all ranks; used to stop or save together."""
    found = torch.tensor(numbers, dtype=torch.float64)
    if is_distributed():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


class Heartbeat:
    """Shows the other processes that this one lives, and notices those that show nothing for `limit`."""

    def __init__(self, limit: datetime.timedelta):
        self.store, self.limit = distributed_c10d._get_default_store(), limit.total_seconds()
        self.store.set(f"alive/{dist.get_rank()}", f"0 {socket.gethostname()}")
        self.group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WORK)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)
        self.thread.start()

    def _go_on(self) -> None:
        n = 0
        with contextlib.suppress(RuntimeError, ValueError):  # the process with the store, or all, have ended
            while not self.ended.wait(min(1.0, self.limit / 5)):
                n += 1
                self.store.set(f"alive/{dist.get_rank()}", f"{n} {socket.gethostname()}")

    def signs(self) -> list[bytes]:
        """What each process showed last: a number that grows, and the name of its machine."""
        return self.store.multi_get([f"alive/{other}" for other in range(dist.get_world_size())])

    def wait_for_all(self) -> None:
        """Raises RuntimeError if another process ends or hangs meanwhile."""
        work = dist.all_reduce(torch.zeros(()), group=self.group, async_op=True)
        assert work is not None
        pause, seen = 0.001, dict[int, tuple[bytes, float]]()  # last sign of each process, and when it was new
        looked = time.monotonic()
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
            if time.monotonic() < looked + min(5.0, self.limit / 5):
                continue
            looked = time.monotonic()
            for other, sign in enumerate(self.signs()):
                if sign != seen.get(other, (None, 0))[0]:
                    seen[other] = sign, looked
                elif looked > seen[other][1] + self.limit:
                    raise RuntimeError(f"Timed out: process {other} shows no sign of life")
        work.wait()


heartbeats: list[Heartbeat] = []


def start(limit: datetime.timedelta) -> None:
    """Join the other processes; a collective that waits longer than `limit` for one raises RuntimeError."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=limit)
    heartbeats[:] = [Heartbeat(limit)]


def stop() -> None:
    """Leave the other processes."""
    for heartbeat in heartbeats:
        heartbeat.ended.set()
        heartbeat.thread.join(timeout=10)  # a thread that still uses the store when Python ends aborts the process
    heartbeats.clear()
    dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks, as long as a rank may scan or encode music, or write samples, alone. Raises
    RuntimeError if another one has ended, or has shown no sign of life for the limit of `start`."""
    if not is_distributed():
        return
    if heartbeats:
        heartbeats[0].wait_for_all()
    else:
        dist.all_reduce(torch.zeros(()))  # in main memory: gloo raises an error if another rank has exited


class Pool:
    """The rows of all ranks, in the order that a single process with all of them would have: part 0 of all
    ranks, in their order, then part 1, and so on. `parts` are rows of this rank, [n, dim] each."""

    def __init__(self, parts: list[Tensor]):
        self.parts = parts
        counts = torch.zeros(world_size(), len(parts), dtype=torch.int64, device=parts[0].device)
        counts[rank()] = torch.tensor([len(part) for part in parts])
        all_reduce_(counts)
        totals = counts.sum(dim=0)
        self.starts = totals.cumsum(0) - totals + counts[: rank()].sum(dim=0)  # first row of each part
        self.size = totals.sum()  # a tensor, so that the device is not synchronized

    def rows(self, index: Tensor) -> Tensor:
        """Rows [k, dim] at `index`, int64 [k], which rank 0 decides."""
        index = broadcast_(index.contiguous())
        found = self.parts[0].new_zeros(len(index), self.parts[0].shape[1])
        for part, start in zip(self.parts, self.starts, strict=True):
            mine = (index >= start) & (index < start + len(part))
            found += part[(index - start).clamp(0, len(part) - 1)] * mine[:, None]
        return all_reduce_(found)
