"""Blocks of 1-D convolutions, and the decoders: from features at the rate of the codes to the waveform.

Every module here and in `encoder.py` tells its `radius`: how many of its own input frames to either side an output frame depends on.
`VQVAE` adds them up, so that chunked encoding and decoding can keep exactly the context that whole needs.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

BlockKind = Literal["convnext", "dilated"]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a two-layer perceptron on each frame (ConvNeXt, arXiv:2201.03545, fig. 4)."""

    def __init__(self, dim: int, index: int, n_blocks: int):
        super().__init__()
        self.radius = 3
        self.depthwise = nn.Conv1d(dim, dim, kernel_size=7, padding=self.radius, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 3 * dim)
        self.contract = nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 1 / max(n_blocks, 1)))

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, t] -> [b, dim, t]
        h = rearrange(self.depthwise(x), "b c t -> b t c")
        h = self.contract(F.gelu(self.expand(self.norm(h)))) * self.scale
        return x + rearrange(h, "b t c -> b c t")


class DilatedBlock(nn.Module):
    """ReLU, dilated convolution, ReLU, 1×1 convolution; dilation 3^index (Jukebox, arXiv:2005.00341, appendix B)."""

    def __init__(self, dim: int, index: int, n_blocks: int):
        super().__init__()
        self.radius = 3**index
        self.dilated = nn.Conv1d(dim, dim, kernel_size=3, padding=self.radius, dilation=self.radius)
        self.pointwise = nn.Conv1d(dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, t] -> [b, dim, t]
        return x + self.pointwise(F.relu(self.dilated(F.relu(x))))


BLOCKS = {"convnext": ConvNeXtBlock, "dilated": DilatedBlock}


class Stack(nn.Sequential):
    """`n_blocks` residual blocks of one kind."""

    def __init__(self, kind: BlockKind, dim: int, n_blocks: int):
        super().__init__(*(BLOCKS[kind](dim, i, n_blocks) for i in range(n_blocks)))
        self.radius = sum(block.radius for block in self)  # type: ignore[misc]


class Downsample(nn.Conv1d):
    """Strided convolution: `stride` frames become one, with half a stride of overlap to each side."""

    def __init__(self, dim_in: int, dim_out: int, stride: int):
        self.radius = stride // 2 + stride
        super().__init__(dim_in, dim_out, stride + 2 * (stride // 2), stride=stride, padding=stride // 2)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # quiet music must not drown in it at the start


class Upsample(nn.ConvTranspose1d):
    """The transpose of `Downsample`: one frame becomes `stride`."""

    def __init__(self, dim_in: int, dim_out: int, stride: int):
        self.radius = 1
        super().__init__(dim_in, dim_out, stride + 2 * (stride // 2), stride=stride, padding=stride // 2)


def factor_strides(hop_length: int, max_stride: int) -> list[int]:
    """Split a hop into strides of at most `max_stride` (a larger prime factor stays whole): 256, 8 -> [8, 8, 4]."""
    primes, rest, p = [], hop_length, 2
    while rest > 1:
        while rest % p == 0:
            primes.append(p)
            rest //= p
        p += 1
    strides: list[int] = []
    for prime in sorted(primes, reverse=True):
        if strides and strides[-1] * prime <= max_stride:
            strides[-1] *= prime
        else:
            strides.append(prime)
    return sorted(strides, reverse=True)
