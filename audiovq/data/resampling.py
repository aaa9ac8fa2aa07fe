"""Resampling by libsoxr between any two rates, of a whole waveform or of one that comes in blocks."""

import contextlib
import math
from functools import cache

import numpy as np
import soxr
import torch
from torch import Tensor

from audiovq.config import whole_number

RATES = (1000, 768_000)  # Hz


def check_rate(rate: float, name: str = "sample rate") -> int:
    """The sample rate as an integer; ValueError for one that audio does not have."""
    with contextlib.suppress(ValueError):
        if RATES[0] <= (found := whole_number(rate, "sample rate")) <= RATES[1]:
            return found
    raise ValueError(f"{name}: expected a whole number from {RATES[0]} to {RATES[1]} Hz, found {rate!r:.40}")


class Resampler:
    """Resamples a waveform in blocks. The results of `push` and `finish` together are [..., ceil(samples ·
    to_rate / from_rate)]: the same bits for any block sizes, on the waveform's device."""

    def __init__(self, from_rate: int, to_rate: int):
        from_rate, to_rate = check_rate(from_rate), check_rate(to_rate)
        shared = math.gcd(from_rate, to_rate)
        self.old, self.new = from_rate // shared, to_rate // shared  # `old` samples become `new` samples
        self.stream: soxr.ResampleStream | None = None
        self.n_old = self.n_new = 0  # samples so far
        self.silence = torch.zeros(0)  # as the blocks, and long enough to bring out the last sample

    @property
    def latency_samples(self) -> int:
        """The largest number of samples at the old rate between a sample and its result."""
        return _latency(self.old, self.new) if self.old != self.new else 0

    def push(self, waveform: Tensor) -> Tensor:
        """float32 [..., any n] at the old rate -> [..., n] at the new rate: what is complete, or nothing."""
        if self.old == self.new:
            return waveform
        self.n_old += waveform.shape[-1]
        self.silence = waveform.new_zeros(*waveform.shape[:-1], self.old // self.new + 2)
        return self._resample(waveform)

    def finish(self) -> list[Tensor]:
        """The rest, if there is one."""
        missing = -(-self.n_old * self.new // self.old) - self.n_new
        return [self._resample(self.silence, last=True)[..., :missing]] if missing else []

    def _resample(self, waveform: Tensor, last: bool = False) -> Tensor:
        frames = waveform.detach().flatten(0, -2).T if waveform.ndim > 1 else waveform.detach()[:, None]
        if self.stream is None:
            self.stream = soxr.ResampleStream(self.old, self.new, frames.shape[1], "float32")
        result = self.stream.resample_chunk(np.ascontiguousarray(frames.cpu().numpy(), np.float32), last)
        self.n_new += len(result)
        return torch.from_numpy(result.T.copy()).reshape(*waveform.shape[:-1], -1).to(waveform.device)


@cache
def _latency(old: int, new: int) -> int:
    """Measured with silence, because libsoxr works in blocks and does not tell their lengths."""
    stream, longest, n_old, n_new = soxr.ResampleStream(old, new, 1, "float32"), 0, 0, 0
    block = np.zeros((max(1, old // new // 4), 1), np.float32)
    for _ in range(20_000):
        n_old += len(block)
        n_new += len(stream.resample_chunk(block))
        longest = max(longest, n_old - n_new * old // new)
    return longest


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """float32 [..., samples] -> [..., ceil(samples · to_rate / from_rate)], on the waveform's device."""
    resampler = Resampler(from_rate, to_rate)
    return torch.cat([resampler.push(waveform), *resampler.finish()], dim=-1)
