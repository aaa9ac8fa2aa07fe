"""How many threads sampling takes."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch

from audiovq.prior.prior import Prior

SMALL_NETWORK = 10_000_000  # parameters
_threads_lock = threading.Lock()
_threads_before: list[int] = []  # torch's threads before each of the calls that sample now


@contextlib.contextmanager
def few_threads(priors: Sequence[Prior]) -> Iterator[None]:
    """One thread while small networks sample on the CPU: the matrices of a step are too small to share. The
    number of threads must not depend on the batch, because it can change the last bits of a product."""
    largest = max(sum(p.numel() for p in prior.parameters()) for prior in priors)
    if largest >= SMALL_NETWORK or priors[0].head.weight.device.type != "cpu":
        yield
        return
    with _threads_lock:  # a thread that begins meanwhile must not take the 1 for what was set before
        _threads_before.append(_threads_before[0] if _threads_before else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            torch.set_num_threads(_threads_before.pop())
