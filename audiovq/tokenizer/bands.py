"""Codes of frequency bands: each code is a piece of the spectrum of one band, and all bands are decoded together.

A residual code must name a whole spectrum, so a chord needs a code for the combination of its notes. A band has few
notes, and the bands' codes multiply (BandTok, arXiv:2605.15831, does so for mel bands). The encoder has no weights: the
latents are square roots of magnitudes, which k-means quantizes without blurring them, as it would blur logarithms. So
decoding without a network already has the notes, and the network learns what is missing.

The spectrum is cut into patches of several frames. The last band has what pitches do not say: wide mel bands of short
windows. A level has the codes of a patch of some bands, one after the other (see `PatchQuantizer`).
"""

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config
from audiovq.tokenizer.fronts import mel_filters, short_time_spectrum
from audiovq.tokenizer.pitch import NoteSpectrogram, pitches

LEAST = 1e-5  # magnitude that is silence


class BandsConfig(Config):
    """Of topology `bands`."""

    low: float = Field(default=28, ge=0, le=127)  # MIDI pitch where the lowest band begins
    semitones: int = Field(default=12, ge=1, le=128)  # of each band
    per_semitone: int = Field(default=5, ge=1, le=20)  # steps of pitch
    frames: int = Field(default=4, ge=1, le=64)  # of a patch
    average: int = Field(default=2, ge=1, le=64)  # frames whose mean is coded

    @property
    def n_steps(self) -> int:
        return self.semitones * self.per_semitone

    @property
    def dim(self) -> int:
        """Numbers in a patch of a band."""
        return self.n_steps * self.frames // self.average


class BandEncoder(nn.Module):
    """Waveform [b, 1, samples] -> patches of each level's bands [b, bands · dim, samples / patch], from low to high."""

    filters: Tensor
    window: Tensor

    def __init__(self, patch: int, config: BandsConfig, n_levels: int, bands_a_level: int, sample_rate: int):
        super().__init__()
        n_bands = n_levels * bands_a_level - 1
        highest = config.low + n_bands * config.semitones
        steps = pitches(config.low, highest, config.per_semitone, sample_rate)
        if len(steps) < n_bands * config.n_steps:
            raise ValueError(
                f"bands: expected pitches below 0.45 of the sample rate of {sample_rate} Hz, found up to {highest:g}; "
                "use fewer levels or fewer semitones"
            )
        self.config, self.n_levels, self.hop_length = config, n_levels, patch // config.frames
        self.notes = NoteSpectrogram(sample_rate, self.hop_length, steps)
        n_fft = max(2 * self.hop_length, 2 ** (sample_rate // 40).bit_length())
        n_mels = config.n_steps // config.average
        self.register_buffer("filters", mel_filters(n_fft, n_mels, sample_rate), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.radius_samples = max(self.notes.radius_samples, n_fft) + patch

    def forward(self, waveform: Tensor) -> list[Tensor]:
        c = self.config
        with torch.autocast(waveform.device.type, enabled=False):
            power = F.avg_pool1d(self.notes(waveform[:, 0])[1].square(), c.average)
            notes = rearrange(
                power**0.25, "b (band step) (t frame) -> b band (step frame) t", step=c.n_steps, frame=c.frames // c.average
            )
            spectrum = short_time_spectrum(waveform[:, 0], self.window, self.hop_length)
            mels = (spectrum.abs() @ self.filters * 2 / self.window.sum() * len(self.window) ** 0.5).sqrt()
            mels = rearrange(mels, "b (t frame) mel -> b 1 (mel frame) t", frame=c.frames)
        bands = torch.cat([notes, mels], dim=1)
        return list(rearrange(bands, "b (level band) d t -> level b (band d) t", level=self.n_levels).unbind())


class BandCombiner(nn.Module):
    """Patches of the first k levels -> features for the decoder [b, dim + steps, time]: mixed ones, and the logarithm of the
    magnitude of each step of pitch as the codes say it."""

    def __init__(self, dim: int, config: BandsConfig, n_levels: int, bands_a_level: int):
        super().__init__()
        self.config, self.n_levels, self.n_bands = config, n_levels, n_levels * bands_a_level
        n_features = (self.n_bands - 1) * config.n_steps + config.n_steps // config.average
        self.mix = nn.Conv1d(n_features, dim, kernel_size=5, padding=2)
        self.radius = 2 + config.frames  # frames

    def forward(self, *levels: Tensor) -> Tensor:
        c = self.config
        missing = [torch.zeros_like(levels[0])] * (self.n_levels - len(levels))
        bands = rearrange(torch.cat([*levels, *missing], dim=1), "b (band d) t -> b band d t", band=self.n_bands)
        notes = rearrange(bands[:, :-1], "b band (s f) t -> b (band s) (t f)", s=c.n_steps).repeat_interleave(c.average, 2)
        mels = rearrange(bands[:, -1], "b (mel frame) t -> b mel (t frame)", frame=c.frames)
        loudness = (torch.cat([notes, mels], dim=1).clamp(min=0).square() + LEAST).log()
        return torch.cat([self.mix(loudness / 4 + 1.5), loudness[:, : notes.shape[1]]], dim=1)
