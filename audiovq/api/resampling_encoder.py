"""A streaming encoder for audio of any sample rate and number of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from audiovq.data.audio import downmix
from audiovq.data.resampling import Resampler
from audiovq.tokenizer.streaming import StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE


def checked(waveform: Tensor) -> Tensor:
    """[samples] or [channels, samples] -> float32 [channels, samples]; ValueError for anything else."""
    waveform = waveform[None] if waveform.ndim == 1 else waveform
    if waveform.ndim != 2:
        raise ValueError(f"waveform: expected [samples] or [channels, samples], found {list(waveform.shape)}")
    if not waveform.isfinite().all():
        raise ValueError("waveform: expected finite samples, found NaN or infinity")
    return waveform.float()


class ResamplingEncoder:
    """Resamples and downmixes a waveform in blocks, and encodes it. Made by `Tokenizer.stream`.

    >>> stream = tokenizer.stream(sample_rate=44100)
    >>> for block in blocks:
    ...     codes = stream.push(block)  # those that are certain by now, perhaps none
    >>> codes = stream.finish()  # the rest

    Attributes:
        n_samples: the waveform's length so far, at the tokenizer's rate.
    """

    def __init__(self, network: VQVAE, sample_rate: int, chunk_seconds: float):
        self.channels, self.sample_rate, self.n_samples = network.config.channels, sample_rate, 0
        self.encoder = StreamingEncoder(network, int(chunk_seconds * network.config.sample_rate))
        self.resampler = Resampler(sample_rate, network.config.sample_rate)

    @property
    def latency_seconds(self) -> float:
        """The longest time from the first sample of a code until the code comes."""
        return self.encoder.latency_seconds + self.resampler.latency_samples / self.sample_rate

    @torch.inference_mode()
    def push(self, block: Tensor) -> list[Tensor]:
        """float [samples] or [channels, samples], 1 to 6 channels -> int64 [n] per level, coarse to fine.

        Raises:
            ValueError: wrong shape, or samples that are not finite.
        """
        mixed = downmix(checked(block), self.channels)
        # A copy, because the caller may use the block's memory again.
        return self._encode(self.resampler.push(mixed).to(self.encoder.device, copy=True))

    def _encode(self, waveform: Tensor) -> list[Tensor]:
        self.n_samples += waveform.shape[-1]
        return [level.cpu() for level in self.encoder.push(waveform)]

    @torch.inference_mode()
    def finish(self) -> list[Tensor]:
        """The rest; ceil(n_samples / hop_length) codes per level in all."""
        rest = self.resampler.finish()
        levels = [self._encode(rest)] if rest is not None else []
        levels.append([level.cpu() for level in self.encoder.finish()])
        return [torch.cat(level) for level in zip(*levels, strict=True)]
