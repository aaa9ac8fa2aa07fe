"""The device that models run on."""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

if hasattr(os, "register_at_fork"):  # OpenMP hangs in a forked process if its parent has used several threads
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

Device = str | torch.device | None  # None: a GPU if there is one, else the CPU


def pick_device(device: Device = None) -> torch.device:
    """The device by its name, or the best one."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def torch_defaults(inference: bool = True) -> Iterator[None]:
    """Inference mode (or none), float32, no autocast and the CPU, whatever the caller has set. Also a decorator."""
    default = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(inference))
        for kind in ("cpu", "cuda", "mps"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if default != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, default)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
