"""Applies a function to a batch a few items at a time: the same values and gradients with less memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_microbatches(function: Callable[..., Any], microbatch_size: int | None, *inputs: Tensor) -> list[Any]:
    """Apply a function to each micro-batch.

    The backward pass computes a micro-batch again when it gets there (gradient checkpointing,
    arXiv:1604.06174), so that the activations of only one micro-batch are in memory.

    Args:
        function: of tensors with the same first dimension; its items must not depend on each other or on
            random numbers.
        microbatch_size: items per micro-batch; None for all at once.
    Returns:
        The results, one per micro-batch.
    """
    if microbatch_size is None or microbatch_size >= len(inputs[0]):
        return [function(*inputs)]
    pieces = zip(*(x.split(microbatch_size) for x in inputs), strict=True)
    if not torch.is_grad_enabled():
        return [function(*piece) for piece in pieces]
    return [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]
