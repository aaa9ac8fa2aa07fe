"""Decoders: from features at the finest hop to the waveform. A new one is a class and a line in `DECODERS`."""

import math
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from audiovq.config import Config as BaseConfig
from audiovq.distributed import collectives
from audiovq.tokenizer.blocks import BlockKind, Conv1d, Stack, Upsample, factor_strides, overlap_add
from audiovq.tokenizer.pitch import pitches
from audiovq.tokenizer.tones import Oscillators


class IstftDecoder(nn.Module):
    """ConvNeXt blocks at the rate of the codes, and an inverse STFT as the upsampling (Vocos, arXiv:2306.00814).

    Differs from Vocos: phases are relative to a steady sine at the frequency of each bin, so that constant codes hold a
    note, and other pitches need no codes for their phase. Each bin starts with a random phase, as equal ones would add
    up to clicks. The reference repeats every `overlap` frames (`period`), and `first` is the chunk's first of these.

    With `spectrum: complex` the network gives real and imaginary parts, without the reference. The waveform
    is then linear in the last layer's output, and learned much sooner. For codecs, not for generation.
    """

    class Config(BaseConfig):
        kind: Literal["istft"] = "istft"
        dim: int = Field(default=256, ge=8, le=1 << 16)
        n_blocks: int = Field(default=5, ge=0, le=256)
        overlap: int = Field(default=4, ge=2, le=256)  # n_fft / finest hop; even, so that frames centre on their hop
        spectrum: Literal["polar", "complex"] = "polar"  # each bin as magnitude and phase, or both parts

    def __init__(self, dim: int, channels: int, hop_length: int, config: Config, sample_rate: int, causal: bool):
        super().__init__()
        if config.overlap % 2 or hop_length % 2:
            found = f"found {config.overlap} and {hop_length}; use the conv decoder for odd hops"
            raise ValueError(f"istft decoder: expected an even overlap and finest hop, {found}")
        self.channels, self.hop_length, self.overlap = channels, hop_length, config.overlap
        self.n_fft, self.polar = hop_length * config.overlap, config.spectrum == "polar"
        self.enter = Conv1d(dim, config.dim, kernel_size=7, causal=causal)
        self.stack = Stack("convnext", config.dim, config.n_blocks, causal)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, channels * (self.n_fft + 2))
        self.radius = 3 + self.stack.radius + config.overlap
        self.ahead = config.overlap // 2  # frames that overlap a hop from later on
        self.period = config.overlap  # frames
        self.window = nn.Buffer(torch.hann_window(self.n_fft), persistent=False)
        with torch.no_grad():
            if self.polar:
                self._biases()[1].uniform_(0, 2 * math.pi)
            else:
                self.head.weight.mul_(0.1)
                self.head.bias.zero_()

    def _biases(self) -> Tensor:
        """The head's bias as [2, channels, bins]: log magnitudes and phases, or real and imaginary parts."""
        return rearrange(self.head.bias, "(c part f) -> part c f", c=self.channels, part=2)

    @torch.no_grad()
    def initialise(self, waveform: Tensor) -> None:
        """Start at the mean log spectrum of the music [b, channels, samples], pooled over ranks, which a bias
        would take many steps to learn. (Real and imaginary parts have no mean.)"""
        if self.polar:
            frames = waveform.float().unfold(-1, self.n_fft, self.hop_length) * self.window
            magnitude = torch.fft.rfft(frames).abs().clamp(min=1e-4)  # [b, channels, time, bins]
            mean = collectives.mean_(magnitude.log().mean(dim=(0, 2)), len(waveform))  # [channels, bins]
            self._biases()[0].copy_(mean)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:  # [b, dim, time] -> [b, channels, time * hop]
        return self.waveform(self.trunk(x), first)

    def trunk(self, x: Tensor) -> Tensor:  # [b, dim, time] -> [b, time, config.dim]
        return rearrange(self.stack(self.enter(x)), "b c t -> b t c")

    def waveform(self, x: Tensor, first: int = 0) -> Tensor:
        """Features after the blocks, [b, time, dim] -> [b, channels, time * hop]."""
        with torch.autocast(x.device.type, enabled=False):
            real, imaginary = self.spectrum(x, first)
            frames = torch.fft.irfft(torch.complex(real, imaginary), n=self.n_fft)  # [b, c, time, n_fft]
            envelope = overlap_add(self.window.square().expand(1, 1, frames.shape[2], -1), self.hop_length)
            return overlap_add(frames * self.window, self.hop_length) / envelope

    def spectrum(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """[b, time, dim] -> real and imaginary parts of the frames' spectra, each [b, channels, time, bins].
        The head and the spectra are in float32, because complex numbers have no bfloat16."""
        x = self.head(self.norm(x.float()))
        a, b = rearrange(x, "b t (c part f) -> part b c t f", c=self.channels, part=2)
        if not self.polar:
            return a * self.n_fft**0.5, b * self.n_fft**0.5
        magnitude = torch.exp(a.clamp(max=math.log(1e3)))
        phase = b + self._steady_phase(b.shape[2], b.device, first)
        return magnitude * phase.cos(), magnitude * phase.sin()  # torch.polar takes three times as long

    def _steady_phase(self, n_frames: int, device: torch.device, first: int) -> Tensor:
        """Phase [time, bins] at the start of each frame, of sines at the bins' frequencies from frame -first on."""
        turns = torch.arange(self.overlap, device=device)
        period = ((turns + first)[:, None] * turns % self.overlap) * (2 * math.pi / self.overlap)  # [overlap, overlap]
        n_bins = self.n_fft // 2 + 1
        over = self.overlap - 1  # rounds up without negative numbers, which ONNX divides differently
        return period.repeat((n_frames + over) // self.overlap, (n_bins + over) // self.overlap)[:n_frames, :n_bins]


class ToneDecoder(IstftDecoder):
    """Oscillators for tones (see `tones.py`), and an inverse STFT for all else. The network gives the loudness of each
    step of pitch, which is trained to be that of the music (`LossConfig.tones`)."""

    class Config(IstftDecoder.Config):
        kind: Literal["tones"] = "tones"  # type: ignore[assignment]
        low: float = Field(default=28, ge=0, le=127)  # MIDI pitches of the oscillators
        high: float = Field(default=112, ge=1, le=136)
        per_semitone: int = Field(default=5, ge=1, le=20)

    def __init__(self, dim: int, channels: int, hop_length: int, config: Config, sample_rate: int, causal: bool):
        super().__init__(dim, channels, hop_length, config, sample_rate, causal)
        self.pitches = pitches(config.low, config.high, config.per_semitone, sample_rate)
        self.tone_head, self.n_mixed = nn.Linear(config.dim, channels * len(self.pitches)), dim
        nn.init.zeros_(self.tone_head.weight)
        nn.init.zeros_(self.tone_head.bias)
        self.oscillators = Oscillators(self.pitches, hop_length, sample_rate)
        self.period = math.lcm(self.period, self.oscillators.period)
        self.radius = max(self.radius, 3 + self.stack.radius + self.oscillators.overlap)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:  # [b, dim, time] -> [b, channels, time * hop]
        return self.render(x, first)[0]

    def render(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """[b, dim + steps, time], the last with the log loudness that codes say -> waveform [b, channels, time * hop] and
        log loudness [b, channels, steps, time]."""
        x, loudness = self.features(x)
        with torch.autocast(x.device.type, enabled=False):
            sound = self.waveform(x, first) + self.oscillators(loudness.exp(), first)
            return sound, rearrange(loudness, "b c t n -> b c n t")

    def tones(self, x: Tensor) -> Tensor:
        """The second result of `render` alone, without making sound."""
        # All weights take part, as DDP expects; those that only sound needs get gradients of 0.
        unused = 0 * (self.head.weight.sum() + self.head.bias.sum())
        return rearrange(self.features(x)[1], "b c t n -> b c n t") + unused

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `render`, up to the features after the blocks [b, time, dim], and log loudness [b, channels, time, steps]."""
        x, base = self.trunk(x[:, : self.n_mixed]), x[:, self.n_mixed :]
        with torch.autocast(x.device.type, enabled=False):
            change = rearrange(self.tone_head(self.norm(x.float())), "b t (c n) -> b c t n", c=self.channels)
            return x, (change + rearrange(base, "b n t -> b 1 t n")).clamp(max=2.0)


class ConvDecoder(nn.Module):
    """Transposed convolutions back to the sample rate, the mirror of `ConvFront` (Jukebox, EnCodec)."""

    class Config(BaseConfig):
        kind: Literal["conv"] = "conv"
        block: BlockKind = "dilated"
        base_dim: int = Field(default=64, ge=4, le=1 << 16)  # width before the last stride; doubles towards the codes
        max_stride: int = Field(default=8, ge=2, le=1 << 16)
        n_stride_blocks: int = Field(default=2, ge=0, le=256)  # residual blocks after each stride
        n_blocks: int = Field(default=4, ge=0, le=256)  # residual blocks at the rate of the codes

    def __init__(self, dim: int, channels: int, hop_length: int, config: Config, sample_rate: int, causal: bool):
        super().__init__()
        strides = factor_strides(hop_length, config.max_stride)
        stack = Stack(config.block, dim, config.n_blocks, causal)
        layers: list[nn.Module] = [Conv1d(dim, dim, kernel_size=7, causal=causal), stack]
        radius, width, rate = 3.0 + stack.radius, dim, 1
        for i, stride in enumerate(reversed(strides)):
            narrower = min(dim, config.base_dim * 2 ** (len(strides) - 1 - i))
            stack = Stack(config.block, narrower, config.n_stride_blocks, causal)
            layers += [Upsample(width, narrower, stride, causal), stack]
            radius, width, rate = radius + 1 / rate + stack.radius / (rate * stride), narrower, rate * stride
        layers += [nn.GELU(), Conv1d(width, channels, kernel_size=7, causal=causal)]
        self.layers = nn.Sequential(*layers)
        self.ahead, self.period = 0, 1
        self.radius = math.ceil(radius + 3 / rate)

    def initialise(self, waveform: Tensor) -> None:
        """Nothing is taken from the music."""

    def forward(self, x: Tensor, first: int = 0) -> Tensor:  # [b, dim, time] -> [b, channels, time * hop]
        return self.layers(x)


DECODERS = {"istft": IstftDecoder, "tones": ToneDecoder, "conv": ConvDecoder}
