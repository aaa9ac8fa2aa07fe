"""Fronts: from the waveform to features at the finest hop. A new one is a class and a line in `FRONTS`."""

import math
from typing import Annotated, Literal

import torch
import torchaudio
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config as BaseConfig
from audiovq.distributed import collectives
from audiovq.tokenizer.blocks import BlockKind, Downsample, Stack, factor_strides

LEAST_POWER = 1e-9  # added to the power of every bin, before the logarithm
LEAST_MEL = 1e-6  # magnitude of a band that lies between two bins, at very high sample rates


class ConvFront(nn.Module):
    """Learned strided convolutions with residual blocks between them."""

    class Config(BaseConfig):
        kind: Literal["conv"] = "conv"
        block: BlockKind = "convnext"
        base_dim: int = Field(default=64, ge=4, le=1 << 16)  # width after the first stride; doubles with each one
        max_stride: int = Field(default=8, ge=2, le=1 << 16)  # the hop is split into strides of at most this
        n_blocks: int = Field(default=1, ge=0, le=256)  # residual blocks after each stride

    def __init__(self, channels: int, hop_length: int, dim: int, config: Config, sample_rate: int, causal: bool):
        super().__init__()
        layers: list[nn.Module] = []
        width, rate, self.radius_samples, self.ahead_samples = channels, 1, 0, 0
        for i, stride in enumerate(factor_strides(hop_length, config.max_stride)):
            wider = min(dim, config.base_dim * 2**i)
            down = Downsample(width, wider, stride, causal)
            stack = Stack(config.block, wider, config.n_blocks, causal)
            layers += [down, stack]
            self.radius_samples += down.radius * rate + stack.radius * rate * stride
            width, rate = wider, rate * stride
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, dim, kernel_size=1, bias=False))

    def initialise(self, waveform: Tensor) -> None:
        """Nothing is taken from the music."""

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        return self.layers(waveform)


class SpectralFront(nn.Module):
    """Base of the fronts with fixed features, standardised on the first batch, mixed by a 1×1 convolution."""

    def __init__(self, n_features: int, dim: int):
        super().__init__()
        self.mix = nn.Conv1d(n_features, dim, kernel_size=1)
        self.mean = nn.Buffer(torch.zeros(n_features, 1))
        self.scale = nn.Buffer(torch.ones(n_features, 1))

    def features(self, waveform: Tensor) -> Tensor:
        """[b, channels, samples] -> float32 [b, n_features, time]."""
        raise NotImplementedError

    @torch.no_grad()
    def initialise(self, waveform: Tensor) -> None:
        """Set mean and scale from the items of all ranks."""
        features = self.features(waveform)
        mean, square = features.mean(dim=(0, 2)), features.square().mean(dim=(0, 2))
        mean, square = collectives.mean_(torch.stack([mean, square]), len(waveform))
        self.mean.copy_(mean[:, None])
        self.scale.copy_(1 / ((square - mean.square()).clamp(min=0).sqrt()[:, None] + 0.01))


def mel_filters(n_fft: int, n_mels: int, sample_rate: int) -> Tensor:
    """[n_fft / 2 + 1, n_mels]: the weight of each bin of a spectrum in each mel band."""
    highest, options = sample_rate / 2, {"norm": None, "mel_scale": "slaney"}
    return torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, highest, n_mels, sample_rate, **options)


def samples_ahead(n_fft: int, hop_length: int, causal: bool) -> int:
    """How far a window reaches beyond its hop: centred on it, or by half a hop at most, so that long windows look back."""
    side = n_fft - hop_length
    centred = side - side // 2
    return min(centred, hop_length // 2) if causal else centred


def short_time_spectrum(waveform: Tensor, window: Tensor, hop_length: int, ahead: int | None = None) -> Tensor:
    """[b, channels, samples] -> complex [b, channels, time, bins]; frame t is centred on hop t, or ends `ahead` on."""
    side = len(window) - hop_length
    ahead = side - side // 2 if ahead is None else ahead
    frames = F.pad(waveform.float(), (side - ahead, ahead)).unfold(-1, len(window), hop_length)
    return torch.fft.rfft(frames * window, norm="ortho")


class StftFront(SpectralFront):
    """Logarithmic magnitudes and, for the phase, the complex spectrum with its magnitudes to the power 0.3."""

    class Config(BaseConfig):
        kind: Literal["stft"] = "stft"
        overlap: int = Field(default=4, ge=2, le=256)  # n_fft / finest hop

    def __init__(self, channels: int, hop_length: int, dim: int, config: Config, sample_rate: int, causal: bool):
        n_fft = hop_length * config.overlap
        super().__init__(channels * 3 * (n_fft // 2 + 1), dim)
        self.hop_length, self.radius_samples = hop_length, n_fft
        self.ahead_samples = samples_ahead(n_fft, hop_length, causal)
        self.window = nn.Buffer(torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        """Mix (features - mean) * scale; the weights get mean and scale, because features are many more."""
        with torch.autocast(waveform.device.type, enabled=False):
            weight = self.mix.weight[:, :, 0] * self.scale[:, 0]  # [dim, n_features]
            assert self.mix.bias is not None, "a convolution has one by default"
            bias = self.mix.bias - weight @ self.mean[:, 0]
            parts = rearrange(weight, "d (c part f) -> part d (c f)", c=waveform.shape[1], part=3)
            features = [rearrange(feature, "b c t f -> b t (c f)") for feature in self.parts(waveform)]
            mixed = bias + sum(F.linear(feature, part) for feature, part in zip(features, parts, strict=True))
            return rearrange(mixed, "b t d -> b d t")

    def features(self, waveform: Tensor) -> Tensor:
        return rearrange(torch.stack(self.parts(waveform)), "part b c t f -> b (c part f) t")

    def parts(self, waveform: Tensor) -> list[Tensor]:
        """Logarithmic magnitude, real and imaginary part, each float32 [b, channels, time, bins]."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = short_time_spectrum(waveform, self.window, self.hop_length, self.ahead_samples)
            log_power = (spectrum.real.square() + spectrum.imag.square() + LEAST_POWER).log()
            log_magnitude = log_power / (4 * math.log(10)) + 1  # -40 dB is 0, full scale about 1
            compression = torch.exp(-0.35 * log_power)  # magnitude ** -0.7
            return [log_magnitude, spectrum.real * compression, spectrum.imag * compression]


class MelFront(SpectralFront):
    """Logarithmic mel magnitudes by windows of several sizes: long ones separate low notes, short ones locate onsets.
    A few hundred features, spaced like pitch, where `StftFront` has thousands, so that less music suffices to learn
    them. There is no phase: the decoder has to generate it."""

    class Config(BaseConfig):
        kind: Literal["mel"] = "mel"
        # n_fft / finest hop of each window
        overlaps: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(default=(2, 8), min_length=1)
        n_mels: int = Field(default=512, ge=8, le=4096)  # bands; a short window has at most a 12th of its samples

    def __init__(self, channels: int, hop_length: int, dim: int, config: Config, sample_rate: int, causal: bool):
        n_ffts = [hop_length * overlap for overlap in config.overlaps]
        n_mels = [max(2, min(config.n_mels, n // 12)) for n in n_ffts]
        super().__init__(channels * sum(n_mels), dim)
        self.hop_length, self.radius_samples = hop_length, max(n_ffts)
        self.ahead = [samples_ahead(n, hop_length, causal) for n in n_ffts]
        self.ahead_samples = max(self.ahead)
        self.n_ffts, self.n_mels = n_ffts, n_mels
        for i, (n, bands) in enumerate(zip(n_ffts, n_mels, strict=True)):
            self.register_buffer(f"filters_{i}", mel_filters(n, bands, sample_rate), persistent=False)
            self.register_buffer(f"window_{i}", torch.hann_window(n), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        with torch.autocast(waveform.device.type, enabled=False):
            return self.mix((self.features(waveform) - self.mean) * self.scale)

    def features(self, waveform: Tensor) -> Tensor:
        features = []
        with torch.autocast(waveform.device.type, enabled=False):
            for i in range(len(self.n_ffts)):
                spectrum = short_time_spectrum(waveform, self.get_buffer(f"window_{i}"), self.hop_length, self.ahead[i])
                magnitude = (spectrum.real.square() + spectrum.imag.square() + LEAST_POWER).sqrt()
                mel = (magnitude @ self.get_buffer(f"filters_{i}")).clamp(min=LEAST_MEL)
                features.append(rearrange(mel.log10() / 2 + 1, "b c t m -> b (c m) t"))
        return torch.cat(features, dim=1)


FRONTS = {"stft": StftFront, "mel": MelFront, "conv": ConvFront}
