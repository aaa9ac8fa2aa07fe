"""A function of a batch, some items at a time: the same values and gradients, with the memory of a few items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_microbatches(function: Callable[..., Any], microbatch_size: int | None, *inputs: Tensor) -> list[Any]:
    """`function(*pieces)` of each piece of the inputs, `microbatch_size` items long (None: all).

    The backward pass computes a piece anew when it gets there (gradient checkpointing, arXiv:1604.06174), so that no two
    pieces' activations are in memory together. For a function that treats items apart and draws nothing by `chance`.
    """
    if microbatch_size is None or microbatch_size >= len(inputs[0]):
        return [function(*inputs)]
    pieces = zip(*(x.split(microbatch_size) for x in inputs), strict=True)
    if not torch.is_grad_enabled():
        return [function(*piece) for piece in pieces]
    return [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]
