"""Blocks of 1-D convolutions, which encoders and decoders are made of.

Modules here, in `encoder.py`, `fronts.py` and `decoders.py` have a `radius`: the receptive field to one side,
in frames of their input (`radius_samples`: in samples). `VQVAE` adds them up for the context of chunks.
Causal convolutions look twice as far back, and not ahead.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

BlockKind = Literal["convnext", "dilated"]


class Conv1d(nn.Conv1d):
    """Zeros at both sides keep the length, or all of them on the left (`causal`): no frame depends on later ones."""

    def __init__(
        self, dim_in: int, dim_out: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1,
        causal: bool = False,
    ):  # fmt: skip
        zeros = dilation * (kernel_size - 1) - (stride - 1)
        self.left = zeros if causal else 0
        super().__init__(dim_in, dim_out, kernel_size, stride, 0 if causal else zeros // 2, dilation, groups)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.left, 0)) if self.left else x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a two-layer MLP on each frame (ConvNeXt, arXiv:2201.03545, fig. 4)."""

    def __init__(self, dim: int, index: int, n_blocks: int, causal: bool = False):
        super().__init__()
        self.radius = 3
        self.depthwise = Conv1d(dim, dim, kernel_size=7, groups=dim, causal=causal)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 3 * dim)
        self.contract = nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 1 / max(n_blocks, 1)))

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, time] -> [b, dim, time]
        h = rearrange(self.depthwise(x), "b c t -> b t c")
        h = self.contract(F.gelu(self.expand(self.norm(h)))) * self.scale
        return x + rearrange(h, "b t c -> b c t")


class DilatedBlock(nn.Module):
    """Dilated and 1×1 convolution with ReLU; dilation 3^index (Jukebox, arXiv:2005.00341, appendix B)."""

    def __init__(self, dim: int, index: int, n_blocks: int, causal: bool = False):
        super().__init__()
        self.radius = 3**index
        self.dilated = Conv1d(dim, dim, kernel_size=3, dilation=self.radius, causal=causal)
        self.pointwise = nn.Conv1d(dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, time] -> [b, dim, time]
        return x + self.pointwise(F.relu(self.dilated(F.relu(x))))


BLOCKS = {"convnext": ConvNeXtBlock, "dilated": DilatedBlock}


class Stack(nn.Sequential):
    def __init__(self, kind: BlockKind, dim: int, n_blocks: int, causal: bool = False):
        blocks = [BLOCKS[kind](dim, i, n_blocks, causal) for i in range(n_blocks)]
        super().__init__(*blocks)
        self.radius = sum(block.radius for block in blocks)


class Downsample(Conv1d):
    """Strided convolution: `stride` frames become one, with half a stride of overlap to each side."""

    def __init__(self, dim_in: int, dim_out: int, stride: int, causal: bool = False):
        self.radius = stride // 2 + stride
        super().__init__(dim_in, dim_out, stride + 2 * (stride // 2), stride=stride, causal=causal)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # a random bias would be louder than quiet music


class Upsample(nn.ConvTranspose1d):
    """The transpose of `Downsample`: one frame becomes `stride`."""

    def __init__(self, dim_in: int, dim_out: int, stride: int, causal: bool = False):
        self.radius, self.causal = 1, causal
        padding = 0 if causal else stride // 2
        super().__init__(dim_in, dim_out, stride + 2 * (stride // 2), stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:  # [b, dim_in, time] -> [b, dim_out, time * stride]
        y = super().forward(x)
        return y[..., : x.shape[-1] * self.stride[0]] if self.causal else y


def factor_strides(hop_length: int, max_stride: int) -> list[int]:
    """Split a hop into strides of at most `max_stride`, if its prime factors allow it: 256, 8 -> [8, 8, 4]."""
    primes, rest = [], hop_length
    while rest > 1:
        primes.append(next(p for p in range(2, rest + 1) if rest % p == 0))
        rest //= primes[-1]
    strides: list[int] = []
    for prime in sorted(primes, reverse=True):
        if strides and strides[-1] * prime <= max_stride:
            strides[-1] *= prime
        else:
            strides.append(prime)
    return sorted(strides, reverse=True)


def overlap_add(frames: Tensor, hop_length: int) -> Tensor:
    """Sum overlapping frames, from the first one's middle hop on: [b, c, time, n_fft] -> [b, c, time * hop]."""
    n_frames, n_fft = frames.shape[2:]
    pieces = rearrange(frames, "b c t (r hop) -> r b c t hop", hop=hop_length)
    total = frames.new_zeros(*pieces.shape[1:3], n_frames + len(pieces) - 1, hop_length)
    for r, piece in enumerate(pieces):
        total[:, :, r : r + n_frames] += piece
    start = (n_fft - hop_length) // 2
    return rearrange(total, "b c t hop -> b c (t hop)")[..., start : start + n_frames * hop_length]
