"""Magnitudes at equal steps of pitch: what notes are made of."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

# Window lengths in seconds, each up to a MIDI pitch: low notes lie close together, so they need long windows.
WINDOWS = ((60, 0.37), (84, 0.19), (128, 0.093))
SHORT_WINDOWS = ((60, 0.093), (128, 0.046))
SMOOTHING_FRAMES = 9  # over which a short window's magnitude is compared with its mean
NEIGHBOURS = 11  # steps of pitch whose maximum is a short window's magnitude
LEAST_POWER = 1e-12


def frequency(pitch: Tensor) -> Tensor:
    """Hz of MIDI pitches; 69 is 440 Hz."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


def pitches(low: float, high: float, per_semitone: int, sample_rate: int) -> Tensor:
    """MIDI pitches [n] from low to high in equal steps, as far as the sample rate has them; float64."""
    found = low + torch.arange(round((high - low) * per_semitone), dtype=torch.float64) / per_semitone
    return found[frequency(found) < 0.45 * sample_rate]


class PitchSpectrogram(nn.Module):
    """Magnitudes at equal steps of pitch, by Fourier transforms whose windows are longer for lower notes.

    A step is the root of the power of the transform's bins around it, weighted by a triangle as wide as a step or a bin
    to either side. A sine of amplitude a has about a.

    Args:
        pitches: MIDI pitches [n], rising.
        hop_length: samples per frame; frame t is centred on samples [t · hop, (t + 1) · hop).
        windows: pairs of the pitch up to which a window is used and its length in seconds.
    """

    def __init__(
        self, sample_rate: int, hop_length: int, pitches: Tensor, windows: tuple[tuple[float, float], ...] = WINDOWS
    ):
        super().__init__()
        self.hop_length, self.n_ffts = hop_length, []
        step = float(pitches[1] - pitches[0])
        start = 0
        for top, seconds in windows:
            n_fft = max(hop_length, 2 ** round(math.log2(seconds * sample_rate)))
            mine = pitches[start:][pitches[start:] < top]
            if not len(mine):
                continue
            start += len(mine)
            centres, bin_width = frequency(mine), sample_rate / n_fft
            widths = (centres * (2 ** (step / 12) - 1)).clamp(min=bin_width)
            bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * bin_width
            weights = (1 - (bins[:, None] - centres).abs() / widths).clamp(min=0)  # [bins, steps]
            n_bins = int(weights.any(dim=1).nonzero().max()) + 1
            # The power of a sine of amplitude 1 at the centre is 1: a Hann window spreads it over three bins or more.
            window = torch.hann_window(n_fft, dtype=torch.float64)
            time = torch.arange(n_fft, dtype=torch.float64)[:, None] / sample_rate
            sines = torch.fft.rfft(window[:, None] * (2 * math.pi * centres * time).sin(), dim=0).abs().square()
            power = (weights[:n_bins] * sines[:n_bins]).sum(dim=0)
            i = len(self.n_ffts)
            self.n_ffts.append(n_fft)
            self.register_buffer(f"weights_{i}", (weights[:n_bins] / power).float(), persistent=False)
            self.register_buffer(f"window_{i}", window.float(), persistent=False)
        self.radius_samples = max(self.n_ffts)

    def forward(self, waveform: Tensor) -> Tensor:  # [..., samples] -> float32 [..., steps, samples / hop]
        magnitudes = []
        with torch.autocast(waveform.device.type, enabled=False):
            for i, n_fft in enumerate(self.n_ffts):
                window, weights = self.get_buffer(f"window_{i}"), self.get_buffer(f"weights_{i}")
                side = n_fft - self.hop_length
                frames = F.pad(waveform.float(), (side // 2, side - side // 2)).unfold(-1, n_fft, self.hop_length)
                spectrum = torch.fft.rfft(frames * window)[..., : len(weights)]
                power = (spectrum.real.square() + spectrum.imag.square()) @ weights
                magnitudes.append((power + LEAST_POWER).sqrt())
        return rearrange(torch.cat(magnitudes, dim=-1), "... t k -> ... k t")


class NoteSpectrogram(nn.Module):
    """`PitchSpectrogram` with sharp onsets: long windows say which pitches sound, short ones when.

    The magnitude of long windows is multiplied by that of short windows over its mean of some frames.

    Args:
        pitches: MIDI pitches [n], rising.
    """

    def __init__(self, sample_rate: int, hop_length: int, pitches: Tensor):
        super().__init__()
        self.long = PitchSpectrogram(sample_rate, hop_length, pitches)
        self.short = PitchSpectrogram(sample_rate, hop_length, pitches, SHORT_WINDOWS)
        self.radius_samples = self.long.radius_samples + SMOOTHING_FRAMES // 2 * hop_length

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[b, samples] -> float32 [b, steps, samples / hop] each: of long windows alone, and with onsets."""
        long, short = self.long(waveform), self.short(waveform)
        short = F.max_pool2d(short[:, None], (NEIGHBOURS, 1), 1, (NEIGHBOURS // 2, 0))[:, 0]
        mean = F.avg_pool1d(short, SMOOTHING_FRAMES, 1, SMOOTHING_FRAMES // 2, count_include_pad=False)
        return long, long * (short / (mean + 1e-9)).clamp(0.03, 3.0)
