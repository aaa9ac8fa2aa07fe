"""The tokenizer in operations that every runtime has: Fourier transforms are convolutions without complex numbers.

`EncodeGraph` and `DecodeGraph` compute what `VQVAE.encode` and `VQVAE.decode` do. No branch depends on data or
lengths, so that they can be exported to ONNX with free lengths.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.tokenizer.decoders import IstftDecoder, ToneDecoder
from audiovq.tokenizer.fronts import LEAST_MEL, LEAST_POWER, MelFront, StftFront

if TYPE_CHECKING:
    from audiovq.tokenizer.vqvae import VQVAE


def fourier_basis(n_fft: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π k n / n_fft for bin k and sample n, float64 [n_fft / 2 + 1, n_fft]."""
    turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) % n_fft  # exact in integers
    angles = turns * (2 * math.pi / n_fft)
    return angles.double().cos(), angles.double().sin()


def stft_kernels(window: Tensor) -> Tensor:
    """Kernels of a Fourier transform, float32 [2 · bins, 1, n_fft], in units in which `LEAST_POWER` is 1.

    onnxscript 0.7 leaves out the addition of a number as small as 1e-9, which changes half of the codes of quiet music.
    """
    cos, sin = fourier_basis(len(window))
    scale = window.cpu().double() * (len(window) * LEAST_POWER) ** -0.5
    return (torch.cat([cos, -sin]) * scale)[:, None].float()


def transform(waveform: Tensor, kernels: Tensor, hop_length: int) -> Tensor:
    """[b, channels, samples] -> real and imaginary parts [2, b, channels, bins, samples / hop]."""
    side = kernels.shape[-1] - hop_length
    padded = rearrange(F.pad(waveform, (side // 2, side - side // 2)), "b c n -> (b c) 1 n")
    parts = F.conv1d(padded, kernels, stride=hop_length)
    return rearrange(parts, "(b c) (part f) t -> part b c f t", c=waveform.shape[1], part=2)


class ConvStftFront(nn.Module):
    """`StftFront` with a strided convolution as its Fourier transform."""

    def __init__(self, front: StftFront):
        super().__init__()
        self.mix, self.mean, self.scale = front.mix, front.mean, front.scale
        self.hop_length = front.hop_length
        self.kernels = nn.Buffer(stft_kernels(front.window))

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        parts = transform(waveform, self.kernels, self.hop_length)
        power = parts.square().sum(dim=0) + 1
        log_magnitude = power.log() / (4 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
        compressed = parts * power**-0.35 * LEAST_POWER**0.15
        features = torch.stack([log_magnitude, compressed[0], compressed[1]], dim=2)
        return self.mix((rearrange(features, "b c part f t -> b (c part f) t") - self.mean) * self.scale)


class ConvMelFront(nn.Module):
    """`MelFront` with strided convolutions as its Fourier transforms."""

    def __init__(self, front: MelFront):
        super().__init__()
        self.mix, self.mean, self.scale = front.mix, front.mean, front.scale
        self.hop_length, self.n_windows = front.hop_length, len(front.n_ffts)
        for i in range(self.n_windows):
            self.register_buffer(f"kernels_{i}", stft_kernels(front.get_buffer(f"window_{i}")))
            self.register_buffer(f"filters_{i}", front.get_buffer(f"filters_{i}"))

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        features = []
        for i in range(self.n_windows):
            parts = transform(waveform, self.get_buffer(f"kernels_{i}"), self.hop_length)
            magnitude = rearrange((parts.square().sum(dim=0) + 1).sqrt(), "b c f t -> b c t f")
            mel = (magnitude @ self.get_buffer(f"filters_{i}")).clamp(min=LEAST_MEL * LEAST_POWER**-0.5).log()
            scaled = mel / (2 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
            features.append(rearrange(scaled, "b c t m -> b (c m) t"))
        return self.mix((torch.cat(features, dim=1) - self.mean) * self.scale)


class ConvIstftDecoder(nn.Module):
    """`IstftDecoder` with a transposed convolution as inverse Fourier transform, window and overlap-add."""

    def __init__(self, decoder: IstftDecoder):
        super().__init__()
        self.decoder = decoder
        window = decoder.window.cpu().double()
        cos, sin = fourier_basis(decoder.n_fft)
        weights = torch.full((decoder.n_fft // 2 + 1, 1), 2.0, dtype=torch.float64)
        weights[0] = weights[-1] = 1  # the others count for their conjugates, too
        kernels = torch.cat([cos * weights, -sin * weights]) * window / decoder.n_fft
        self.kernels = nn.Buffer(kernels[:, None].float())  # [2 bins, 1, n_fft]
        self.squares = nn.Buffer(window.square()[None, None].float())

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, t] -> [b, channels, t * hop]
        parts = [rearrange(part, "b c t f -> (b c) f t") for part in self.decoder.spectrum(self.decoder.trunk(x))]
        summed = self._overlap_add(torch.cat(parts, dim=1), self.kernels)
        envelope = self._overlap_add(torch.ones_like(x[:1, :1]), self.squares)
        return rearrange(summed / envelope, "(b c) 1 n -> b c n", c=self.decoder.channels)

    def _overlap_add(self, frames: Tensor, kernels: Tensor) -> Tensor:  # [b, n, t] -> [b, 1, t * hop]
        hop, n_fft = self.decoder.hop_length, self.decoder.n_fft
        start = (n_fft - hop) // 2
        total = F.conv_transpose1d(frames, kernels, stride=hop)  # [b, 1, (t - 1) * hop + n_fft]
        return total[..., start : total.shape[-1] - (n_fft - hop - start)]


CONV_FRONTS: dict[type, Any] = {StftFront: ConvStftFront, MelFront: ConvMelFront}


def _exportable(network: VQVAE) -> VQVAE:
    network = copy.deepcopy(network).eval()
    for autoencoder in network.groups:
        front = autoencoder.encoder.front
        if type(front) in CONV_FRONTS:
            autoencoder.encoder.front = CONV_FRONTS[type(front)](front)
        if isinstance(autoencoder.decoder, ToneDecoder) or autoencoder.combiner is not None:
            raise ValueError(
                "expected a tokenizer without topology bands and decoder tones, which have no ONNX graph yet"
            )
        if isinstance(autoencoder.decoder, IstftDecoder):
            autoencoder.decoder = ConvIstftDecoder(autoencoder.decoder)
    return network


class EncodeGraph(nn.Module):
    """Waveform [b, channels, samples] -> codes, int64 [b, samples / hop] per level.

    Samples are a multiple of the coarsest hop.
    """

    def __init__(self, network: VQVAE):
        super().__init__()
        self.network = _exportable(network)

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        results = self.network.quantize(waveform, self.network.quantizers())
        return tuple(level.codes for _, levels, _ in results for level in levels)


class DecodeGraph(nn.Module):
    """Codes of all levels, int64 [b, t · hops[0] / hops[i]] -> waveform [b, channels, t · hops[0]].

    A code of -1 adds nothing: after the end of a track, and in finer levels that are left out. With independent levels
    only the finest one is decoded.
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
