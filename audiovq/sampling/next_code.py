"""Logits → code: temperature, top-k, top-p, and the Gumbel-max draw."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """-inf for all but the k largest of each row (ties with the k-th stay)."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set of codes whose probability reaches p (nucleus sampling, arXiv:1904.09751; ties with
    the last stay)."""
    if p >= 1:
        return logits
    if logits.is_cpu:  # NumPy sorts with vector instructions, and without an index: some ten times faster here
        ordered = torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
    else:
        ordered = logits.sort(dim=-1, descending=True).values
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of all more likely codes: the first is always kept
    least = ordered.masked_fill(before >= p, math.inf).amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < least, -math.inf)


def next_code(logits: Tensor, noise: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Draw one code a row, float [b, codebook_size] twice -> int64 [b].

    argmax(logits / temperature + Gumbel noise) is a draw from softmax(logits / temperature) (Gumbel 1954; Maddison 2014,
    arXiv:1411.0030). Temperature 0 takes the most likely code.
    """
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(dim=-1)
    kept = keep_top_p(keep_top_k(logits / temperature, top_k), top_p)
    return (kept + noise).argmax(dim=-1)
