"""Codes of frequency bands: each code is a piece of the spectrum of one band, and all bands are decoded together.

A residual code must name a whole spectrum, so a chord needs a code for the combination of its notes. A band has few
notes, and the bands' codes multiply (BandTok, arXiv:2605.15831, does so for mel bands). The encoder has no weights: the
latents are magnitudes to a power, which k-means quantizes without the blur that it makes of logarithms. So the codes alone
already have the notes (see `tones.py`), and the decoder learns what is missing.

The spectrum is cut into patches of some frames. The last band has what pitches do not say: wide mel bands of short
windows. A level has the codes of some bands, patch by patch (see `patches.py`).
"""

from typing import Any

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from audiovq.config import Config
from audiovq.tokenizer.fronts import mel_filters, short_time_spectrum
from audiovq.tokenizer.pitch import POWER, NoteSpectrogram, peak_weights, pitches

LEAST = 1e-5  # magnitude that is silence


class BandsConfig(Config):
    """Of topology `bands`."""

    low: float = Field(default=28, ge=0, le=127)  # MIDI pitch where the lowest band begins
    semitones: int = Field(default=12, ge=1, le=128)  # of each band
    per_semitone: int = Field(default=5, ge=1, le=20)  # steps of pitch
    frames: int = Field(default=4, ge=1, le=64)  # of a patch

    @property
    def n_steps(self) -> int:
        """Steps of pitch of a band, and mel bands of the last one."""
        return self.semitones * self.per_semitone


def check_bands(model: Any) -> None:
    """Raises ValueError if a `VQVAEConfig` has some parts of topology `bands`, and others that do not fit."""
    found = model.topology, model.quantizer.kind, model.decoder.kind
    if not {"bands", "patches", "tones"} & set(found):
        return
    if found != ("bands", "patches", "tones") or model.channels > 1 or len(set(model.hop_lengths)) > 1:
        expected = "expected all three, 1 channel, and equal hop_lengths"
        parts = f"topology {', '.join(found)}, {model.channels} and {list(model.hop_lengths)}"
        raise ValueError(f"topology bands, quantizer patches and decoder tones: {expected}; found {parts}")
    c = model.bands
    highest = c.low + (model.n_levels * model.quantizer.bands - 1) * c.semitones
    expected = {"low": c.low, "high": highest, "per_semitone": c.per_semitone, "dim": c.n_steps * c.frames}
    for key, value in expected.items():
        part = "quantizer" if key == "dim" else "decoder"
        if (given := getattr(getattr(model, part), key)) != value:
            raise ValueError(f"{part}.{key}: expected {value:g}, as in bands, found {given:g}")
    if model.multiple % c.frames:
        raise ValueError(f"bands.frames: expected a divisor of a patch of {model.multiple} samples, found {c.frames}")


class BandEncoder(nn.Module):
    """Waveform [b, 1, samples] -> patches of each level's bands [b, bands · dim, samples / patch], from low to high."""

    def __init__(self, patch: int, config: BandsConfig, n_levels: int, bands_a_level: int, sample_rate: int):
        super().__init__()
        n_bands = n_levels * bands_a_level - 1
        highest = config.low + n_bands * config.semitones
        steps = pitches(config.low, highest, config.per_semitone, sample_rate)
        if len(steps) < n_bands * config.n_steps:
            expected = f"pitches below 0.45 of the sample rate of {sample_rate} Hz"
            advice = "use fewer levels or fewer semitones"
            raise ValueError(f"bands: expected {expected}, found up to {highest:g}; {advice}")
        self.n_steps, self.frames, self.n_levels = config.n_steps, config.frames, n_levels
        self.hop_length = patch // config.frames
        self.notes = NoteSpectrogram(sample_rate, self.hop_length, steps)
        n_fft = max(2 * self.hop_length, 2 ** (sample_rate // 40).bit_length())
        self.filters = nn.Buffer(mel_filters(n_fft, config.n_steps, sample_rate), persistent=False)
        self.window = nn.Buffer(torch.hann_window(n_fft), persistent=False)
        self.radius_samples = max(self.notes.radius_samples, n_fft) + patch

    def forward(self, waveform: Tensor) -> list[Tensor]:
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = short_time_spectrum(waveform[:, 0], self.window, self.hop_length)
            return self.patches(self.notes(waveform[:, 0])[1], spectrum.abs())

    def patches(self, notes: Tensor, magnitudes: Tensor) -> list[Tensor]:
        """Magnitudes of notes [b, steps, time] and of bins [b, time, bins] -> as `forward`."""
        notes = notes**POWER
        mels = (magnitudes @ self.filters * 2 / self.window.sum() * len(self.window) ** 0.5) ** POWER
        features = torch.cat([notes * peak_weights(notes), rearrange(mels, "b t mel -> b mel t")], dim=1)
        # The frames of a patch become features.
        shape = {"level": self.n_levels, "step": self.n_steps, "frame": self.frames}
        pattern = "b (level band step) (t frame) -> level b (band step frame) t"
        return list(rearrange(features, pattern, **shape).unbind())


class BandCombiner(nn.Module):
    """Patches of the first k levels -> features for the decoder [b, dim + steps, time]: mixed ones, and the logarithm of
    the magnitude of each step of pitch as the codes say it."""

    def __init__(self, dim: int, config: BandsConfig, n_levels: int, bands_a_level: int):
        super().__init__()
        self.frames, self.n_levels, self.n_mels = config.frames, n_levels, config.n_steps
        self.mix = nn.Conv1d(n_levels * bands_a_level * config.n_steps, dim, kernel_size=5, padding=2)
        self.radius = 2 + config.frames  # frames

    def forward(self, *levels: Tensor) -> Tensor:
        missing = [torch.zeros_like(levels[0])] * (self.n_levels - len(levels))
        patches = torch.cat([*levels, *missing], dim=1)
        powers = rearrange(patches, "b (step frame) t -> b step (t frame)", frame=self.frames)
        loudness = (powers.clamp(min=0) ** (1 / POWER) + LEAST).log()
        return torch.cat([self.mix(loudness / 4 + 1.5), loudness[:, : -self.n_mels]], dim=1)
