"""Rotary position embedding: attention scores depend on the distance of two positions alone."""

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]  # cosine and sine of each position, [t, head_dim / 2]


def rotary(positions: Tensor, head_dim: int, n_fixed: int = 0) -> Angles:
    """Angles of rotary position embedding.

    Args:
        n_fixed: how many of the slowest pairs of dimensions do not rotate.
    Source: RoFormer, arXiv:2104.09864, section 3.2; fixed pairs: p-RoPE, arXiv:2410.06205.
    """
    frequencies = 10000 ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    frequencies[head_dim // 2 - n_fixed :] = 0
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head [b, h, t, head_dim] against each other by the position's angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
