"""Oscillators at equal steps of pitch: the loudness of each step becomes sound."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.tokenizer.blocks import overlap_add
from audiovq.tokenizer.pitch import frequency


class Oscillators(nn.Module):
    """Steps of pitch that are louder than both neighbours become sines, whose phases are fixed.

    Sinusoidal modelling (McAulay 1986, doi:10.1109/TASSP.1986.1164910; DDSP, arXiv:2001.04643). A note that a network
    blurs over several steps is still one steady sine, and its phase need not be coded.

    Attributes:
        period: frames, after which all sines are where they began; a chunk begins at the `first` frame of it.
            Frequencies are rounded for it, by at most sample_rate / (2 · hop · period) Hz.
    """

    period = 64
    overlap = 4  # frames in the window in which a loudness counts

    def __init__(self, pitches: Tensor, hop_length: int, sample_rate: int):
        super().__init__()
        self.hop_length, n_window = hop_length, self.overlap * hop_length
        grid = sample_rate / (hop_length * self.period)
        cycles = (frequency(pitches) / grid).round()
        self.cycles = nn.Buffer(cycles.float(), persistent=False)  # in a period
        hertz = cycles * grid
        # The golden ratio spreads the phases without a pattern, so that tones together do not click.
        phases = torch.arange(len(pitches), dtype=torch.float64) * (math.sqrt(5) - 1) / 2
        frames = torch.arange(self.period, dtype=torch.float64)[:, None]
        turns = 2 * math.pi * (frames * hertz * hop_length / sample_rate + phases)  # [period, steps]
        self.cos, self.sin = (nn.Buffer(x.float(), persistent=False) for x in (turns.cos(), turns.sin()))
        time = (torch.arange(n_window, dtype=torch.float64) - n_window / 2) / sample_rate
        angles = 2 * math.pi * hertz[:, None] * time
        window = torch.hann_window(n_window, dtype=torch.float64) * 2 / self.overlap
        self.waves = nn.Buffer((torch.cat([angles.cos(), -angles.sin()]) * window).float(), persistent=False)

    def forward(self, loudness: Tensor, first: int = 0) -> Tensor:
        """[b, channels, time, steps] -> [b, channels, time * hop]."""
        # 3. Sum the sines within windows, and the windows.
        return overlap_add(self.parts(loudness, first) @ self.waves, self.hop_length)

    def parts(self, loudness: Tensor, first: int = 0) -> Tensor:
        """What to multiply `waves` by, [b, channels, time, 2 * steps]."""
        # 1. Only the steps that are louder than both neighbours sound.
        below, above = F.pad(loudness, (1, 0))[..., :-1], F.pad(loudness, (0, 1))[..., 1:]
        loudness = loudness * ((loudness >= below) & (loudness > above))
        # 2. Real and imaginary parts: every sine goes on from frame to frame.
        end = first + loudness.shape[2]
        repeats = (end + self.period - 1) // self.period, 1
        cos, sin = self.cos.repeat(repeats)[first:end], self.sin.repeat(repeats)[first:end]
        return torch.cat([loudness * cos, loudness * sin], dim=-1)
