"""Codes of frequency bands: each level has the codes of one band, from low to high; all are decoded together.

A residual level must name a whole spectrum, so a chord needs a code for the combination of its notes. A band has few
notes, and the bands' codes multiply (BandTok, arXiv:2605.15831, does so for mel bands). All bands but the last have the
same range of pitch and the same weights, so that a note is coded alike in every octave. The last level has what
pitches do not say: the loudness of mel bands in short windows.
"""

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config
from audiovq.tokenizer.blocks import Downsample, Stack, Upsample
from audiovq.tokenizer.fronts import LEAST_MEL, SpectralFront, mel_filters, short_time_spectrum
from audiovq.tokenizer.pitch import NoteSpectrogram, pitches


class BandsConfig(Config):
    """Of topology `bands`."""

    low: float = Field(default=28, ge=0, le=127)  # MIDI pitch where the lowest band begins
    semitones: int = Field(default=12, ge=1, le=256)  # of each band
    per_semitone: int = Field(default=5, ge=1, le=20)  # steps of pitch
    margin: int = Field(default=10, ge=0, le=1024)  # steps to either side that are also inputs of a band
    n_mels: int = Field(default=80, ge=8, le=4096)  # mel bands of short windows, which the last level codes
    frames_per_code: int = Field(default=2, ge=1, le=256)  # of the spectrograms and of the decoder
    decoder_dim: int = Field(default=64, ge=8, le=1 << 16)  # features of each band for the decoder


class BandFront(SpectralFront):
    """From the waveform to the inputs of all bands: two note spectrograms, and mel bands of short windows."""

    least = 0.05
    filters: Tensor
    window: Tensor

    def __init__(self, hop_length: int, config: BandsConfig, n_bands: int, sample_rate: int):
        highest = config.low + n_bands * config.semitones
        steps = pitches(config.low, highest, config.per_semitone, sample_rate)
        if len(steps) < n_bands * config.semitones * config.per_semitone:
            raise ValueError(
                f"bands: expected pitches below 0.45 of the sample rate of {sample_rate} Hz, found up to {highest:g}; "
                "use fewer levels or fewer semitones"
            )
        super().__init__(2 * len(steps) + config.n_mels, 0)
        self.hop_length, self.notes = hop_length, NoteSpectrogram(sample_rate, hop_length, steps)
        n_fft = max(2 * hop_length, 2 ** (sample_rate // 40).bit_length())
        self.register_buffer("filters", mel_filters(n_fft, config.n_mels, sample_rate), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.radius_samples = max(self.notes.radius_samples, n_fft)

    def features(self, waveform: Tensor) -> Tensor:
        """[b, 1, samples] -> float32 [b, 2 · steps + mels, time]: logarithms of magnitudes."""
        with torch.autocast(waveform.device.type, enabled=False):
            long, notes = self.notes(waveform[:, 0])
            spectrum = short_time_spectrum(waveform[:, 0], self.window, self.hop_length)
            mels = spectrum.abs() @ self.filters * 2 / self.window.sum() * len(self.window) ** 0.5
            features = torch.cat([long, notes, rearrange(mels, "b t m -> b m t")], dim=1)
            return features.clamp(min=LEAST_MEL).log10()

    def forward(self, waveform: Tensor) -> Tensor:
        return (self.features(waveform) - self.mean) * self.scale


class BandEncoder(nn.Module):
    """Waveform [b, 1, samples] -> features [b, dim, samples / hop] of each level, from low to high. The bands are
    items of one batch, so all weights but the embeddings of the bands are shared. The mel bands are inputs of every
    level, and the only ones of the last."""

    def __init__(self, hop_length: int, dim: int, config: BandsConfig, n_levels: int, n_blocks: int, sample_rate: int):
        super().__init__()
        c, n_bands = config, n_levels - 1
        self.steps, self.margin, self.n_levels = c.semitones * c.per_semitone, c.margin, n_levels
        frame, inner = hop_length // c.frames_per_code, max(8, dim // 2)
        self.front = BandFront(frame, c, n_bands, sample_rate)
        self.enter = nn.Conv1d(2 * (self.steps + 2 * c.margin), inner, kernel_size=3, padding=1)
        self.enter_mels = nn.Conv1d(c.n_mels, inner, kernel_size=3, padding=1)
        self.band = nn.Parameter(torch.zeros(n_levels, inner, 1))
        self.stack = Stack("convnext", inner, n_blocks)
        self.down = Downsample(inner, dim, c.frames_per_code) if c.frames_per_code > 1 else nn.Conv1d(inner, dim, 1)
        self.band_later = nn.Parameter(torch.zeros(n_levels, dim, 1))
        self.stack_later = Stack("convnext", dim, n_blocks)
        inner_radius = 1 + self.stack.radius + getattr(self.down, "radius", 0)
        self.radius_samples = self.front.radius_samples + inner_radius * frame + self.stack_later.radius * hop_length

    def forward(self, waveform: Tensor) -> list[Tensor]:
        features = self.front(waveform)  # [b, 2 · steps of all bands + mels, time]
        n_notes = 2 * self.steps * (self.n_levels - 1)
        notes = rearrange(features[:, :n_notes], "b (two k) t -> b two k t", two=2)
        notes = F.pad(notes, (0, 0, self.margin, self.margin))
        inputs = notes.unfold(2, self.steps + 2 * self.margin, self.steps)  # [b, two, band, t, k]
        inputs = rearrange(inputs, "b two band t k -> b band (two k) t")
        inputs = torch.cat([inputs, torch.zeros_like(inputs[:, :1])], dim=1)  # no pitches for the last level
        batch = len(waveform)
        x = rearrange(self.enter(inputs.flatten(0, 1)), "(b band) d t -> b band d t", b=batch)
        x = x + self.enter_mels(features[:, n_notes:])[:, None] + self.band
        x = rearrange(self.down(self.stack(x.flatten(0, 1))), "(b band) d t -> b band d t", b=batch)
        x = self.stack_later((x + self.band_later).flatten(0, 1))
        return list(rearrange(x, "(b band) d t -> band b d t", b=batch).unbind())


class BandCombiner(nn.Module):
    """What the first k levels say, [b, decoder_dim, time] each -> features for the decoder [b, dim, time · frames]."""

    def __init__(self, dim: int, config: BandsConfig, n_levels: int):
        super().__init__()
        self.n_levels, n_frames = n_levels, config.frames_per_code
        self.mix = nn.Conv1d(config.decoder_dim * n_levels, dim, kernel_size=5, padding=2)
        self.up = Upsample(dim, dim, n_frames) if n_frames > 1 else nn.Identity()
        self.radius = 2 + (1 if n_frames > 1 else 0)  # codes

    def forward(self, *bands: Tensor) -> Tensor:
        missing = [torch.zeros_like(bands[0])] * (self.n_levels - len(bands))
        return self.up(self.mix(torch.cat([*bands, *missing], dim=1)))
