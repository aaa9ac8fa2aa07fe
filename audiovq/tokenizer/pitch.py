"""Magnitudes at equal steps of pitch: what notes are made of."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.signal.windows import blackman

# Window lengths in seconds, each up to a MIDI pitch: low notes lie close together, so they need long windows.
WINDOWS = ((60, 0.37), (84, 0.19), (128, 0.093))
SHORT_WINDOWS = ((60, 0.093), (128, 0.046))
SMOOTHING_FRAMES = 9  # over which a short window's magnitude is compared with its mean
NEIGHBOURS = 11  # steps of pitch whose maximum is a short window's magnitude
LEAST_POWER = 1e-12
FACTORS = 8, 16, 32  # by which the sample rate may be divided for low notes
HIGHEST_OF_RATE = 0.25  # the highest of these notes, relative to the lower sample rate
FILTER_BLOCKS = 16  # length of the filter in samples of the lower rate

POWER = 0.4  # of the magnitudes that are coded and compared: quiet notes count, too
# Weights of steps of pitch that are no peak, for which oscillators make no sound; and of the neighbours of a peak.
VALLEY_WEIGHT, NEIGHBOUR_WEIGHT = 0.5, 0.7


def frequency(pitch: Tensor) -> Tensor:
    """Hz of MIDI pitches; 69 is 440 Hz."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


def pitches(low: float, high: float, per_semitone: int, sample_rate: int) -> Tensor:
    """MIDI pitches [n] from low to high in equal steps, as far as the sample rate has them; float64."""
    found = low + torch.arange(round((high - low) * per_semitone), dtype=torch.float64) / per_semitone
    return found[frequency(found) < 0.45 * sample_rate]


def low_pass(factor: int) -> Tensor:
    """A filter that keeps what a sample rate lower by this factor can have: float64 [FILTER_BLOCKS · factor + 1]."""
    if factor == 1:
        return torch.ones(1, dtype=torch.float64)
    n = FILTER_BLOCKS * factor + 1
    taps = torch.sinc((torch.arange(n, dtype=torch.float64) - n // 2) / factor)
    taps *= blackman(n, dtype=torch.float64)
    return taps / taps.sum()


def decimate(waveform: Tensor, taps: Tensor, factor: int) -> Tensor:
    """[..., samples] -> [..., samples / factor]: every factor-th sample after a filter [blocks · factor + 1]."""
    if factor == 1:
        return waveform
    # A convolution of blocks of `factor` samples: many channels and few taps, which is fast.
    n_blocks = len(taps) // factor
    kernel = F.pad(taps, (0, factor - 1)).view(1, n_blocks + 1, factor).transpose(1, 2)  # [1, factor, taps]
    flat = F.pad(waveform.reshape(-1, waveform.shape[-1]), (n_blocks // 2 * factor, (n_blocks // 2 + 1) * factor))
    blocks = flat[:, : flat.shape[1] // factor * factor].view(len(flat), -1, factor).transpose(1, 2)
    return F.conv1d(blocks, kernel)[:, 0, : -(-waveform.shape[-1] // factor)].view(*waveform.shape[:-1], -1)


class PitchSpectrogram(nn.Module):
    """Magnitudes at equal steps of pitch, by Fourier transforms whose windows are longer for lower notes.

    A step is the root of the power of the transform's bins around it, weighted by a triangle as wide as a step or a bin
    to either side. A sine of amplitude a has about a. Low notes are computed at a lower sample rate, so that
    the transforms of long windows are short.

    Args:
        pitches: MIDI pitches [n], rising.
        hop: samples per frame; frame t is centred on samples [t · hop, (t + 1) · hop).
        windows: pairs of the pitch up to which a window is used and its length in seconds.
    """

    def __init__(self, sample_rate: int, hop: int, pitches: Tensor, windows: tuple[tuple[float, float], ...] = WINDOWS):
        super().__init__()
        self.hop_length, self.n_ffts, self.factors = hop, [], []
        step = float(pitches[1] - pitches[0])
        start = 0
        for top, seconds in windows:
            n_fft = max(hop, 2 ** round(math.log2(seconds * sample_rate)))
            mine = pitches[start:][pitches[start:] < top]
            if not len(mine):
                continue
            start += len(mine)
            centres = frequency(mine)
            fitting = [d for d in FACTORS if hop % d == 0 and d * centres[-1] < HIGHEST_OF_RATE * sample_rate]
            factor = max(fitting, default=1)
            rate, n_fft = sample_rate / factor, n_fft // factor
            bin_width = rate / n_fft
            widths = (centres * (2 ** (step / 12) - 1)).clamp(min=bin_width)
            bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * bin_width
            weights = (1 - (bins[:, None] - centres).abs() / widths).clamp(min=0)  # [bins, steps]
            n_bins = int(weights.any(dim=1).nonzero().max()) + 1
            # The power of a sine of amplitude 1 at the centre is 1: a Hann window spreads it over three bins or more.
            window = torch.hann_window(n_fft, dtype=torch.float64)
            time = torch.arange(n_fft, dtype=torch.float64)[:, None] / rate
            sines = torch.fft.rfft(window[:, None] * (2 * math.pi * centres * time).sin(), dim=0).abs().square()
            power = (weights[:n_bins] * sines[:n_bins]).sum(dim=0)
            i = len(self.n_ffts)
            self.n_ffts.append(n_fft)
            self.factors.append(factor)
            self.register_buffer(f"low_pass_{i}", low_pass(factor).float(), persistent=False)
            self.register_buffer(f"weights_{i}", (weights[:n_bins] / power).float(), persistent=False)
            self.register_buffer(f"window_{i}", window.float(), persistent=False)
        lengths = zip(self.n_ffts, self.factors, strict=True)
        self.radius_samples = max((n_fft + FILTER_BLOCKS) * factor for n_fft, factor in lengths)

    def forward(self, waveform: Tensor) -> Tensor:  # [..., samples] -> float32 [..., steps, samples / hop]
        magnitudes = []
        with torch.autocast(waveform.device.type, enabled=False):
            for i, (n_fft, factor) in enumerate(zip(self.n_ffts, self.factors, strict=True)):
                window, weights = self.get_buffer(f"window_{i}"), self.get_buffer(f"weights_{i}")
                hop, side = self.hop_length // factor, n_fft - self.hop_length // factor
                x = decimate(waveform.float(), self.get_buffer(f"low_pass_{i}"), factor)
                frames = F.pad(x, (side // 2, side - side // 2)).unfold(-1, n_fft, hop)
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
        short = F.max_pool2d(short, (NEIGHBOURS, 1), stride=1, padding=(NEIGHBOURS // 2, 0))
        mean = F.avg_pool1d(short, SMOOTHING_FRAMES, 1, SMOOTHING_FRAMES // 2, count_include_pad=False)
        return long, long * (short / (mean + 1e-9)).clamp(0.03, 3.0)


def peak_weights(magnitudes: Tensor) -> Tensor:
    """[b, steps, time] -> weights: 1 for peaks, less for their neighbours, least elsewhere."""
    below, above = F.pad(magnitudes, (0, 0, 1, 0))[:, :-1], F.pad(magnitudes, (0, 0, 0, 1))[:, 1:]
    peaks = ((magnitudes >= below) & (magnitudes > above)).to(magnitudes.dtype)
    neighbours = NEIGHBOUR_WEIGHT * F.max_pool2d(peaks, (3, 1), stride=1, padding=(1, 0))
    return VALLEY_WEIGHT + (1 - VALLEY_WEIGHT) * torch.maximum(peaks, neighbours)
