"""The encoder: a front from the waveform to features at the finest hop, then 1-D convolutions on to the coarser ones.

A new front is one class and one line in `FRONTS`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torchaudio
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config as BaseConfig
from audiovq.config import one_of
from audiovq.distributed import collectives
from audiovq.tokenizer.blocks import BlockKind, Downsample, Stack, factor_strides

LEAST_POWER = 1e-9  # added to that of every bin, before the logarithm
LEAST_MEL = 1e-6  # magnitude of a band between two bins, which very high sample rates have


class ConvFront(nn.Module):
    """Waveform -> features at the finest hop by learned strided convolutions, with residual blocks between them."""

    class Config(BaseConfig):
        kind: Literal["conv"] = "conv"
        block: BlockKind = "convnext"
        base_dim: int = Field(default=64, ge=4)  # width after the first stride; doubles with each further one
        max_stride: int = Field(default=8, ge=2)  # the hop is split into strides of at most this
        n_blocks: int = Field(default=1, ge=0)  # residual blocks after each stride

    def __init__(self, channels: int, hop_length: int, dim: int, config: Config, sample_rate: int):
        super().__init__()
        layers: list[nn.Module] = []
        width, rate, self.radius_samples = channels, 1, 0
        for i, stride in enumerate(factor_strides(hop_length, config.max_stride)):
            wider = min(dim, config.base_dim * 2**i)
            down, stack = Downsample(width, wider, stride), Stack(config.block, wider, config.n_blocks)
            layers += [down, stack]
            self.radius_samples += down.radius * rate + stack.radius * rate * stride
            width, rate = wider, rate * stride
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, dim, kernel_size=1, bias=False))

    def initialise(self, waveform: Tensor) -> None:
        """Nothing to take from the music."""

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        return self.layers(waveform)


def set_statistics(front: Any, mean: Tensor, square: Tensor, n: int) -> None:
    """The front's mean and scale, by each feature's mean and mean square [features] over this rank's n items."""
    mean, square = collectives.mean_(torch.stack([mean, square]), n)
    front.mean.copy_(mean[:, None])
    front.scale.copy_(1 / ((square - mean.square()).clamp(min=0).sqrt()[:, None] + 0.01))


class StftFront(nn.Module):
    """Waveform -> features at the finest hop by one strided convolution with fixed kernels: a Fourier transform.

    What it gives are logarithmic magnitudes, which the spectral losses compare, and the complex spectrum with its
    magnitudes to the power 0.3, which tells the phase; a learned 1×1 convolution mixes both. Each feature is brought to
    zero mean and unit variance by what the first batch of music has: else the mean spectrum drowns what changes.
    """

    mean: Tensor
    scale: Tensor

    class Config(BaseConfig):
        kind: Literal["stft"] = "stft"
        overlap: int = Field(default=4, ge=2)  # n_fft / finest hop

    def __init__(self, channels: int, hop_length: int, dim: int, config: Config, sample_rate: int):
        super().__init__()
        self.hop_length, self.n_fft = hop_length, hop_length * config.overlap
        self.radius_samples = self.n_fft
        n_features = channels * 3 * (self.n_fft // 2 + 1)
        self.mix = nn.Conv1d(n_features, dim, kernel_size=1)
        self.register_buffer("mean", torch.zeros(n_features, 1))
        self.register_buffer("scale", torch.ones(n_features, 1))
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    @torch.no_grad()
    def initialise(self, waveform: Tensor) -> None:
        """Mean and scale of each feature over a batch [b, channels, samples] of all ranks."""
        features = torch.stack(self.features(waveform), dim=2)  # [b, c, part, t, f]
        mean, square = features.mean(dim=(0, 3)).flatten(), features.square().mean(dim=(0, 3)).flatten()
        set_statistics(self, mean, square, len(waveform))

    def forward(self, waveform: Tensor) -> Tensor:
        """The mix of (features - mean) * scale, with mean and scale drawn into its weights: the features are many."""
        with torch.autocast(waveform.device.type, enabled=False):
            weight = self.mix.weight[:, :, 0] * self.scale[:, 0]  # [dim, features]
            assert self.mix.bias is not None, "a convolution has one by default"
            bias = self.mix.bias - weight @ self.mean[:, 0]
            parts = rearrange(weight, "d (c part f) -> part d (c f)", c=waveform.shape[1], part=3)
            features = [rearrange(feature, "b c t f -> b t (c f)") for feature in self.features(waveform)]
            mixed = bias + sum(F.linear(feature, part) for feature, part in zip(features, parts, strict=True))
            return rearrange(mixed, "b t d -> b d t")

    def features(self, waveform: Tensor) -> list[Tensor]:
        """[b, channels, samples] -> logarithmic magnitude, real and imaginary part, float32 [b, channels, t, bins] each."""
        side = self.n_fft - self.hop_length  # frame t is centred on the middle of hop t
        with torch.autocast(waveform.device.type, enabled=False):
            padded = F.pad(waveform.float(), (side // 2, side - side // 2))
            frames = padded.unfold(-1, self.n_fft, self.hop_length)  # [b, c, t, n_fft]
            spectrum = torch.fft.rfft(frames * self.window, norm="ortho")  # type: ignore[operator]
            log_power = (spectrum.real.square() + spectrum.imag.square() + LEAST_POWER).log()
            compression = torch.exp(-0.35 * log_power)  # magnitude ** -0.7
            # -40 dB is 0, full scale about 1
            log_magnitude = log_power / (4 * math.log(10)) + 1
            return [log_magnitude, spectrum.real * compression, spectrum.imag * compression]


class MelFront(nn.Module):
    """Waveform -> features at the finest hop: logarithmic mel magnitudes by windows of several sizes, and a learned 1×1
    convolution that mixes them.

    A few hundred features, spaced as pitch is, where `StftFront` has thousands: a partial of any instrument is one of few
    numbers, so that less music shows what it means. Long windows tell low notes apart, short ones tell when. Nothing of
    the phase: for tokenizers whose decoder makes it up. Standardised by the first batch, as in `StftFront`.
    """

    mean: Tensor
    scale: Tensor

    class Config(BaseConfig):
        kind: Literal["mel"] = "mel"
        overlaps: tuple[int, ...] = Field(default=(2, 8), min_length=1)  # n_fft / finest hop, one a window
        n_mels: int = Field(default=512, ge=8)  # bands; a short window has at most a 12th of its samples

    def __init__(self, channels: int, hop_length: int, dim: int, config: Config, sample_rate: int):
        super().__init__()
        if min(config.overlaps) < 1:
            raise ValueError(f"mel front: expected overlaps of at least 1, found {list(config.overlaps)}")
        self.hop_length, self.n_ffts = hop_length, [hop_length * overlap for overlap in config.overlaps]
        self.radius_samples = max(self.n_ffts)
        self.n_mels = [max(2, min(config.n_mels, n // 12)) for n in self.n_ffts]
        for i, (n, n_mels) in enumerate(zip(self.n_ffts, self.n_mels, strict=True)):
            filters = torchaudio.functional.melscale_fbanks(
                n // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate, norm=None, mel_scale="slaney"
            )
            self.register_buffer(f"filters_{i}", filters, persistent=False)  # [bins, mels]
            self.register_buffer(f"window_{i}", torch.hann_window(n), persistent=False)
        n_features = channels * sum(self.n_mels)
        self.mix = nn.Conv1d(n_features, dim, kernel_size=1)
        self.register_buffer("mean", torch.zeros(n_features, 1))
        self.register_buffer("scale", torch.ones(n_features, 1))

    @torch.no_grad()
    def initialise(self, waveform: Tensor) -> None:
        """Mean and scale of each feature over a batch [b, channels, samples] of all ranks."""
        features = self.features(waveform)
        set_statistics(self, features.mean(dim=(0, 2)), features.square().mean(dim=(0, 2)), len(waveform))

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            return self.mix((self.features(waveform) - self.mean) * self.scale)

    def features(self, waveform: Tensor) -> Tensor:
        """[b, channels, samples] -> logarithmic mel magnitudes, float32 [b, channels · mels of all windows, t]."""
        found = []
        with torch.autocast(waveform.device.type, enabled=False):
            for i in range(len(self.n_ffts)):
                magnitude = (self.power(waveform.float(), i) + LEAST_POWER).sqrt()  # [b, c, t, bins]
                mel = (magnitude @ self.get_buffer(f"filters_{i}")).clamp(min=LEAST_MEL)
                found.append(rearrange(mel.log10() / 2 + 1, "b c t m -> b (c m) t"))
        return torch.cat(found, dim=1)

    def power(self, waveform: Tensor, i: int) -> Tensor:
        """By window i, float32 [b, channels, t, bins]."""
        n, side = self.n_ffts[i], self.n_ffts[i] - self.hop_length  # frame t is centred on the middle of hop t
        frames = F.pad(waveform, (side // 2, side - side // 2)).unfold(-1, n, self.hop_length)
        spectrum = torch.fft.rfft(frames * self.get_buffer(f"window_{i}"), norm="ortho")
        return spectrum.real.square() + spectrum.imag.square()


FRONTS = {"stft": StftFront, "mel": MelFront, "conv": ConvFront}


class EncoderConfig(BaseConfig):
    """From the waveform to one feature sequence a level."""

    front: one_of(FRONTS) = StftFront.Config()  # type: ignore[valid-type]
    block: BlockKind = "convnext"
    n_blocks: int = Field(default=4, ge=0)  # residual blocks at each level's own rate


class Encoder(nn.Module):
    """Waveform -> features at every hop, [b, channels, samples] -> list of [b, dim, samples / hop], coarse to fine.

    The front goes down to the finest hop, the trunk on to the coarser ones; each level taps it at its own rate. Levels
    of the same hop share their features.
    """

    def __init__(self, channels: int, hop_lengths: list[int], dim: int, config: EncoderConfig, sample_rate: int):
        super().__init__()
        rate = hop_lengths[-1]
        self.front = FRONTS[config.front.kind](channels, rate, dim, config.front, sample_rate)
        self.radius_samples = self.front.radius_samples
        self.downs, self.stacks = nn.ModuleList(), nn.ModuleList()  # fine to coarse
        hops = sorted(set(hop_lengths))
        self.n_levels = [hop_lengths.count(hop) for hop in hops]  # of each hop
        for hop in hops:
            down = Downsample(dim, dim, hop // rate) if hop > rate else nn.Identity()
            stack = Stack(config.block, dim, config.n_blocks)
            self.radius_samples += getattr(down, "radius", 0) * rate + stack.radius * hop
            self.downs.append(down)
            self.stacks.append(stack)
            rate = hop

    def forward(self, waveform: Tensor) -> list[Tensor]:
        x = self.front(waveform)
        features = []
        for down, stack, n_levels in zip(self.downs, self.stacks, self.n_levels, strict=True):
            x = stack(down(x))
            features += [x] * n_levels
        return features[::-1]
