"""The encoder and decoder networks: 1-D convolutions between the waveform and the rate of the codes.

Every module tells its `radius`: how many of its own input frames to either side an output frame depends on.
`VQVAE` adds them up, so that chunked encoding and decoding can keep exactly the context that whole needs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config

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


class EncoderConfig(Config):
    """From the waveform to one feature sequence a level."""

    block: BlockKind = "convnext"
    base_dim: int = Field(64, ge=4)  # width after the first stride; doubles with each further one up to `dim`
    max_stride: int = Field(8, ge=2)  # the hop is split into strides of at most this
    n_stride_blocks: int = Field(1, ge=0)  # residual blocks after each stride before the finest hop
    n_blocks: int = Field(4, ge=0)  # residual blocks at each level's own rate


class Encoder(nn.Module):
    """Waveform -> features at every hop, [b, channels, samples] -> list of [b, dim, samples / hop], coarse to fine.

    One trunk goes down to the finest hop and on to the coarser ones; each level taps it at its own rate.
    """

    def __init__(self, channels: int, hop_lengths: list[int], dim: int, config: EncoderConfig):
        super().__init__()
        stem: list[nn.Module] = []
        width, rate, self.radius_samples = channels, 1, 0
        for i, stride in enumerate(factor_strides(hop_lengths[-1], config.max_stride)):
            wider = min(dim, config.base_dim * 2**i)
            stack = Stack(config.block, wider, config.n_stride_blocks)
            stem += [Downsample(width, wider, stride), stack]
            self.radius_samples += stem[-2].radius * rate + stack.radius * rate * stride  # type: ignore[operator]
            width, rate = wider, rate * stride
        stem.append(nn.Conv1d(width, dim, kernel_size=1))
        self.stem = nn.Sequential(*stem)
        self.downs, self.stacks = nn.ModuleList(), nn.ModuleList()  # fine to coarse
        for hop in reversed(hop_lengths):
            down = Downsample(dim, dim, hop // rate) if hop > rate else nn.Identity()
            stack = Stack(config.block, dim, config.n_blocks)
            self.radius_samples += getattr(down, "radius", 0) * rate + stack.radius * hop
            self.downs.append(down)
            self.stacks.append(stack)
            rate = hop

    def forward(self, waveform: Tensor) -> list[Tensor]:
        x = self.stem(waveform)
        features = []
        for down, stack in zip(self.downs, self.stacks, strict=True):
            x = stack(down(x))
            features.append(x)
        return features[::-1]


class IstftDecoder(nn.Module):
    """ConvNeXt blocks at the rate of the codes and an inverse STFT as the only upsampling (Vocos, arXiv:2306.00814).

    [b, dim, frames] -> [b, channels, frames * hop]. The head and the transform stay in float32: complex numbers
    have no bfloat16.
    """

    class Config(Config):
        kind: Literal["istft"] = "istft"
        dim: int = Field(256, ge=8)
        n_blocks: int = Field(5, ge=0)
        overlap: int = Field(4, ge=2)  # n_fft / finest hop; even, so that frames centre on their hop

    def __init__(self, dim: int, channels: int, hop_length: int, config: Config):
        super().__init__()
        if config.overlap % 2 or hop_length % 2:
            raise ValueError(
                f"istft decoder: expected an even overlap and finest hop, found {config.overlap} and {hop_length}; "
                "use the conv decoder for odd hops"
            )
        self.channels, self.hop_length, self.overlap = channels, hop_length, config.overlap
        self.n_fft = hop_length * config.overlap
        self.enter = nn.Conv1d(dim, config.dim, kernel_size=7, padding=3)
        self.stack = Stack("convnext", config.dim, config.n_blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, channels * (self.n_fft + 2))
        self.radius = 3 + self.stack.radius + config.overlap
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        with torch.no_grad():  # begin near silence, where the log-spectral losses are well behaved
            self.head.bias.view(channels, 2, -1)[:, 0] = -1.0

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.stack(self.enter(x)), "b c t -> b t c")
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = rearrange(
                self.head(self.norm(x.float())), "b t (c part f) -> part b c t f", c=self.channels, part=2
            )
            magnitude = torch.exp(log_magnitude.clamp(max=math.log(1e3)))
            frames = torch.fft.irfft(torch.polar(magnitude, phase), n=self.n_fft)  # [b, c, t, n_fft]
            envelope = self._overlap_add(self.window.square().expand(1, 1, frames.shape[2], -1))  # type: ignore[operator]
            return self._overlap_add(frames * self.window) / envelope  # type: ignore[operator]

    def _overlap_add(self, frames: Tensor) -> Tensor:  # [b, c, t, n_fft] -> [b, c, t * hop]
        n_frames = frames.shape[2]
        pieces = rearrange(frames, "b c t (r hop) -> r b c t hop", r=self.overlap)
        total = frames.new_zeros(*pieces.shape[1:3], n_frames + self.overlap - 1, self.hop_length)
        for r, piece in enumerate(pieces):
            total[:, :, r : r + n_frames] += piece
        start = (self.n_fft - self.hop_length) // 2
        return rearrange(total, "b c t hop -> b c (t hop)")[..., start : start + n_frames * self.hop_length]


class ConvDecoder(nn.Module):
    """The mirror of the encoder: transposed convolutions back to the sample rate (Jukebox, EnCodec).

    [b, dim, frames] -> [b, channels, frames * hop].
    """

    class Config(Config):
        kind: Literal["conv"] = "conv"
        block: BlockKind = "dilated"
        base_dim: int = Field(64, ge=4)  # width before the last stride; doubles towards the codes up to the latents'
        max_stride: int = Field(8, ge=2)
        n_stride_blocks: int = Field(2, ge=0)  # residual blocks after each stride
        n_blocks: int = Field(4, ge=0)  # residual blocks at the rate of the codes

    def __init__(self, dim: int, channels: int, hop_length: int, config: Config):
        super().__init__()
        strides = factor_strides(hop_length, config.max_stride)
        stack = Stack(config.block, dim, config.n_blocks)
        layers: list[nn.Module] = [nn.Conv1d(dim, dim, kernel_size=7, padding=3), stack]
        radius, width, rate = 3.0 + stack.radius, dim, 1
        for i, stride in enumerate(reversed(strides)):  # the encoder's order, backwards
            narrower = min(dim, config.base_dim * 2 ** (len(strides) - 1 - i))
            stack = Stack(config.block, narrower, config.n_stride_blocks)
            layers += [Upsample(width, narrower, stride), stack]
            radius, width, rate = radius + 1 / rate + stack.radius / (rate * stride), narrower, rate * stride
        layers += [nn.GELU(), nn.Conv1d(width, channels, kernel_size=7, padding=3)]
        self.layers = nn.Sequential(*layers)
        self.radius = math.ceil(radius + 3 / rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


DECODERS = {"istft": IstftDecoder, "conv": ConvDecoder}
