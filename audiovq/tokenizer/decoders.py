"""Decoders: from features at the rate of the codes to the waveform. A new one is one class and one line in `DECODERS`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from audiovq.config import Config as BaseConfig
from audiovq.distributed import collectives
from audiovq.tokenizer.blocks import BlockKind, Stack, Upsample, factor_strides


class IstftDecoder(nn.Module):
    """ConvNeXt blocks at the rate of the codes and an inverse STFT as the only upsampling (Vocos, arXiv:2306.00814).

    [b, dim, frames] -> [b, channels, frames * hop]. The head and the transform stay in float32: complex numbers
    have no bfloat16.

    Differs from Vocos: phases are told relative to a steady sine of each bin's own frequency, which goes on from frame
    to frame. Codes that stay the same then hold a note. A convolutional decoder without such a reference answers
    constant codes with a waveform that repeats every hop, that is with multiples of sample_rate / hop alone, and must
    spend its codes on phase to sound any other pitch.
    Each bin begins with a random phase of its own, so that notes are not clicks.
    The reference repeats every `overlap` frames, so the first frame must be a multiple of it (`period`).

    `spectrum: complex` tells real and imaginary parts instead: the waveform is then linear in what the last layer gives,
    which learns to follow a waveform far sooner, and knows no steady sine. For codecs, not for generation.
    """

    class Config(BaseConfig):
        kind: Literal["istft"] = "istft"
        dim: int = Field(default=256, ge=8)
        n_blocks: int = Field(default=5, ge=0)
        overlap: int = Field(default=4, ge=2)  # n_fft / finest hop; even, so that frames centre on their hop
        spectrum: Literal["polar", "complex"] = "polar"  # what is told of each bin: magnitude and phase, or both parts

    def __init__(self, dim: int, channels: int, hop_length: int, config: Config):
        super().__init__()
        if config.overlap % 2 or hop_length % 2:
            raise ValueError(
                f"istft decoder: expected an even overlap and finest hop, found {config.overlap} and {hop_length}; "
                "use the conv decoder for odd hops"
            )
        self.channels, self.hop_length, self.overlap = channels, hop_length, config.overlap
        self.n_fft, self.polar = hop_length * config.overlap, config.spectrum == "polar"
        self.enter = nn.Conv1d(dim, config.dim, kernel_size=7, padding=3)
        self.stack = Stack("convnext", config.dim, config.n_blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, channels * (self.n_fft + 2))
        self.radius = 3 + self.stack.radius + config.overlap
        self.period = config.overlap  # frames
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        with torch.no_grad():
            if self.polar:  # equal phases would add up to a click a frame
                rearrange(self.head.bias, "(c part f) -> part c f", c=channels, part=2)[1].uniform_(0, 2 * math.pi)
            else:
                self.head.weight.mul_(0.1)
                self.head.bias.zero_()

    @torch.no_grad()
    def initialise(self, waveform: Tensor) -> None:
        """Begin with the mean log spectrum of the music, [b, channels, samples]: the spectral losses span five decades,
        a long way for a bias to learn step by step. Parts of a spectrum have no mean."""
        if not self.polar:
            return
        frames = waveform.float().unfold(-1, self.n_fft, self.hop_length) * self.window  # type: ignore[operator]
        magnitude = torch.fft.rfft(frames).abs().clamp(min=1e-4)
        mean = collectives.mean_(magnitude.log().mean(dim=(0, 2)), len(waveform))  # [channels, bins]
        rearrange(self.head.bias, "(c part f) -> part c f", c=self.channels, part=2)[0].copy_(mean)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = self.spectrum(x)
        with torch.autocast(x.device.type, enabled=False):
            frames = torch.fft.irfft(torch.complex(real, imaginary), n=self.n_fft)  # [b, c, t, n_fft]
            envelope = self._overlap_add(self.window.square().expand(1, 1, frames.shape[2], -1))  # type: ignore[operator]
            return self._overlap_add(frames * self.window) / envelope  # type: ignore[operator]

    def spectrum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[b, dim, t] -> real and imaginary part of each frame's spectrum, float32 [b, channels, t, bins]."""
        x = rearrange(self.stack(self.enter(x)), "b c t -> b t c")
        with torch.autocast(x.device.type, enabled=False):
            first, second = rearrange(
                self.head(self.norm(x.float())), "b t (c part f) -> part b c t f", c=self.channels, part=2
            )
            if not self.polar:
                return first * self.n_fft**0.5, second * self.n_fft**0.5
            magnitude = torch.exp(first.clamp(max=math.log(1e3)))
            phase = second + self._steady_phase(second.shape[2], second.device)
            return magnitude * phase.cos(), magnitude * phase.sin()  # torch.polar takes three times as long

    def _steady_phase(self, n_frames: int, device: torch.device) -> Tensor:
        """Phase [t, bins] at the start of frame t of a sine at each bin's frequency that began at frame 0.

        It repeats every `overlap` frames and every `overlap` bins.
        """
        turns = torch.arange(self.overlap, device=device)
        period = (turns[:, None] * turns % self.overlap) * (2 * math.pi / self.overlap)  # [overlap, overlap]
        n_bins = self.n_fft // 2 + 1
        over = self.overlap - 1  # rounded up without negative numbers, which ONNX divides differently
        repeats = (n_frames + over) // self.overlap, (n_bins + over) // self.overlap
        return period.repeat(*repeats)[:n_frames, :n_bins]

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

    class Config(BaseConfig):
        kind: Literal["conv"] = "conv"
        block: BlockKind = "dilated"
        base_dim: int = Field(
            default=64, ge=4
        )  # width before the last stride; doubles towards the codes up to the latents'
        max_stride: int = Field(default=8, ge=2)
        n_stride_blocks: int = Field(default=2, ge=0)  # residual blocks after each stride
        n_blocks: int = Field(default=4, ge=0)  # residual blocks at the rate of the codes

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
        self.period = 1
        self.radius = math.ceil(radius + 3 / rate)

    def initialise(self, waveform: Tensor) -> None:
        """Nothing to take from the music."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


DECODERS = {"istft": IstftDecoder, "conv": ConvDecoder}
