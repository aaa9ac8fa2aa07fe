"""The tokenizer in the operations that every runtime has: Fourier transforms as convolutions, no complex numbers.

`EncodeGraph` and `DecodeGraph` compute what `VQVAE.encode` and `VQVAE.decode` do, without a branch that depends on data or
lengths, so that they can be exported (to ONNX) with free lengths. They share the network's weights.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.tokenizer.decoders import IstftDecoder
from audiovq.tokenizer.fronts import LEAST_MEL, LEAST_POWER, MelFront, StftFront
from audiovq.tokenizer.vqvae import VQVAE


def fourier_basis(n_fft: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π k n / n_fft for bin k and sample n, float64 [n_fft / 2 + 1, n_fft], exact in their arguments."""
    turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) % n_fft
    angles = turns * (2 * math.pi / n_fft)
    return angles.double().cos(), angles.double().sin()


def stft_kernels(window: Any) -> Tensor:
    """float32 [2 bins, 1, n_fft] of a window, in units in which the least power of `LEAST_POWER` is 1."""
    cos, sin = fourier_basis(len(window))
    return (torch.cat([cos, -sin]) * window.cpu().double() * (len(window) * LEAST_POWER) ** -0.5)[:, None].float()


def transform(waveform: Tensor, kernels: Tensor, hop_length: int) -> Tensor:
    """[b, channels, samples] -> real and imaginary parts [2, b, channels, bins, samples / hop]."""
    side = kernels.shape[-1] - hop_length
    padded = rearrange(F.pad(waveform, (side // 2, side - side // 2)), "b c n -> (b c) 1 n")
    parts = F.conv1d(padded, kernels, stride=hop_length)
    return rearrange(parts, "(b c) (part f) t -> part b c f t", c=waveform.shape[1], part=2)


class ConvStftFront(nn.Module):
    """`StftFront` with a strided convolution as its Fourier transform.

    Everything is counted in units in which the least power, 1e-9, is 1: onnxscript 0.7 takes the addition of so small a
    number for one of nothing, leaves it out, and half of the codes become others wherever the music is quiet.
    """

    def __init__(self, front: StftFront):
        super().__init__()
        self.mix, self.mean, self.scale = front.mix, front.mean, front.scale
        self.hop_length = front.hop_length
        self.register_buffer("kernels", stft_kernels(front.window))

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        parts = transform(waveform, self.kernels, self.hop_length)  # type: ignore[arg-type]
        power = parts.square().sum(dim=0) + 1
        log_magnitude = power.log() / (4 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
        compressed = parts * power**-0.35 * LEAST_POWER**0.15
        features = torch.stack([log_magnitude, compressed[0], compressed[1]], dim=2)
        return self.mix((rearrange(features, "b c part f t -> b (c part f) t") - self.mean) * self.scale)


class ConvMelFront(nn.Module):
    """`MelFront` with strided convolutions as its Fourier transforms, in the units of `ConvStftFront`."""

    def __init__(self, front: MelFront):
        super().__init__()
        self.mix, self.mean, self.scale, self.hop_length = front.mix, front.mean, front.scale, front.hop_length
        self.n_windows = len(front.n_ffts)
        for i in range(self.n_windows):
            self.register_buffer(f"kernels_{i}", stft_kernels(front.get_buffer(f"window_{i}")))
            self.register_buffer(f"filters_{i}", front.get_buffer(f"filters_{i}"))

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        found = []
        for i in range(self.n_windows):
            parts = transform(waveform, self.get_buffer(f"kernels_{i}"), self.hop_length)
            magnitude = rearrange((parts.square().sum(dim=0) + 1).sqrt(), "b c f t -> b c t f")
            mel = (magnitude @ self.get_buffer(f"filters_{i}")).clamp(min=LEAST_MEL * LEAST_POWER**-0.5).log()
            scaled = mel / (2 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
            found.append(rearrange(scaled, "b c t m -> b (c m) t"))
        return self.mix((torch.cat(found, dim=1) - self.mean) * self.scale)


class ConvIstftDecoder(nn.Module):
    """`IstftDecoder` with a transposed convolution as its inverse Fourier transform, window and overlap-add."""

    def __init__(self, decoder: IstftDecoder):
        super().__init__()
        self.decoder = decoder
        window: Any = decoder.window
        window = window.cpu().double()
        cos, sin = fourier_basis(decoder.n_fft)
        weights = torch.full((decoder.n_fft // 2 + 1, 1), 2.0, dtype=torch.float64)
        weights[0] = weights[-1] = 1  # the others stand for their conjugates, too
        kernels = torch.cat([cos * weights, -sin * weights]) * window / decoder.n_fft
        self.register_buffer("kernels", kernels[:, None].float())  # [2 bins, 1, n_fft]
        self.register_buffer("squares", window.square()[None, None].float())

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, t] -> [b, channels, t * hop]
        d = self.decoder
        parts = [rearrange(part, "b c t f -> (b c) f t") for part in d.spectrum(x)]
        spectrum = torch.cat(parts, dim=1)
        summed = self._overlap_add(spectrum, self.kernels)  # type: ignore[arg-type]
        envelope = self._overlap_add(torch.ones_like(x[:1, :1]), self.squares)  # type: ignore[arg-type]
        return rearrange(summed / envelope, "(b c) 1 n -> b c n", c=d.channels)

    def _overlap_add(self, frames: Tensor, kernels: Tensor) -> Tensor:  # [b, n, t] -> [b, 1, t * hop]
        hop, n_fft = self.decoder.hop_length, self.decoder.n_fft
        start = (n_fft - hop) // 2
        total = F.conv_transpose1d(frames, kernels, stride=hop)  # [b, 1, (t - 1) * hop + n_fft]
        return total[..., start : total.shape[-1] - (n_fft - hop - start)]


CONV_FRONTS: dict[type, Any] = {StftFront: ConvStftFront, MelFront: ConvMelFront}


def _exportable(network: VQVAE) -> VQVAE:
    network = copy.copy(network)
    network._modules = {**network._modules, "groups": nn.ModuleList(copy.copy(group) for group in network.groups)}
    for group in network.groups:
        parts: Any = group
        parts._modules = dict(parts._modules)
        kind = CONV_FRONTS.get(type(parts.encoder.front))
        if kind:
            parts.encoder = copy.copy(parts.encoder)
            parts.encoder._modules = {**parts.encoder._modules, "front": kind(parts.encoder.front)}
        if isinstance(parts.decoder, IstftDecoder):
            parts.decoder = ConvIstftDecoder(parts.decoder)
    return network.eval()


class EncodeGraph(nn.Module):
    """Waveform [b, channels, samples], samples a multiple of the top hop -> int64 [b, samples / hop] a level."""

    def __init__(self, network: VQVAE):
        super().__init__()
        self.network = _exportable(network)

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        results = self.network.quantize(waveform, self.network.quantizers())
        return tuple(level.codes for _, levels, _ in results for level in levels)


class DecodeGraph(nn.Module):
    """Codes of all levels, int64 [b, t · hops[0] / hops[i]], -1 where there is none -> waveform [b, channels, t · hops[0]].

    A code of -1 adds nothing: past a track's end, and in finer levels that are left out. (With independent levels the finest
    level alone is decoded.)
    """

    def __init__(self, network: VQVAE):
        super().__init__()
        self.network = _exportable(network)

    def forward(self, *codes: Tensor) -> Tensor:
        quantizers = self.network.quantizers()
        autoencoder, levels = self.network.level_groups()[-1]  # the only one, or that of the finest level
        residuals = []
        for i in levels:
            residual = autoencoder.residual(quantizers[i].embed(codes[i].clamp(min=0)), i - levels[0])
            residuals.append(residual * (codes[i] >= 0).to(residual.dtype)[:, None])
        return autoencoder.decode(*residuals)
