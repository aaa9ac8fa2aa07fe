"""Resampling by windowed sinc, of a whole waveform or of one that comes in blocks."""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor

from audiovq.utils.chunking import Window, Windows

RESAMPLE_SECONDS = 5.0  # of audio that is resampled at once


class Resampler:
    """Resamples a waveform that comes in blocks.

    The results of `push` and `finish` together are torchaudio's resampling of the whole waveform,
    [..., ceil(samples · to_rate / from_rate)]: the same bits for any block sizes.
    """

    def __init__(self, from_rate: int, to_rate: int, chunk_seconds: float = RESAMPLE_SECONDS):
        shared = math.gcd(from_rate, to_rate)
        self.old, self.new = from_rate // shared, to_rate // shared  # `old` samples become `new` samples
        resample = torchaudio.transforms.Resample
        self.kernel = resample(from_rate, to_rate, lowpass_filter_width=16, dtype=torch.float32)
        width = self.kernel.width if from_rate != to_rate else 0
        chunk = max(1, int(chunk_seconds * from_rate) // self.old) * self.old
        self.windows = Windows(chunk, -(-width // self.old) * self.old)

    @property
    def latency_samples(self) -> int:
        """The largest number of samples at the old rate between a sample and its result."""
        return self.windows.step + self.windows.context if self.old != self.new else 0

    def push(self, waveform: Tensor) -> Tensor:
        """float32 [..., any n] at the old rate -> [..., n] at the new rate: what is complete, or nothing."""
        if self.old == self.new:
            return waveform
        parts = [self._resample(window) for window in self.windows.push([waveform])]
        return torch.cat(parts, dim=-1) if parts else waveform[..., :0]

    def finish(self) -> Tensor | None:
        """The rest, or None if there is none."""
        last = self.windows.finish()
        return self._resample(last) if last else None

    def _resample(self, window: Window) -> Tensor:
        waveform = window.sequences[0]
        resampled = self.kernel.to(waveform.device)(waveform)
        first = (window.start - window.low) // self.old * self.new
        return resampled[..., first : -(-(window.end - window.low) * self.new // self.old)]


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """float32 [..., samples] -> [..., ceil(samples · to_rate / from_rate)], on the waveform's device."""
    resampler = Resampler(from_rate, to_rate)
    parts = [resampler.push(waveform), resampler.finish()]
    return torch.cat([part for part in parts if part is not None], dim=-1)
