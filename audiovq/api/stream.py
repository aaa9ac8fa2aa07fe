"""Live audio → codes and codes → audio: blocks of any size in, what is certain out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audiovq.data import audio
from audiovq.data.resampling import RESAMPLE_SECONDS, Resampler
from audiovq.tokenizer.streaming import StreamingDecoder, StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE


def checked(waveform: Tensor) -> Tensor:
    """[samples] or [channels, samples] -> float32 [channels, samples]; ValueError if it is neither, or not finite."""
    waveform = waveform[None] if waveform.ndim == 1 else waveform
    if waveform.ndim != 2:
        raise ValueError(f"waveform: expected [samples] or [channels, samples], found {list(waveform.shape)}")
    waveform = waveform.float()
    if not waveform.isfinite().all():
        raise ValueError("waveform: expected finite samples, found NaN or infinity")
    return waveform


class EncodeStream:
    """A waveform in blocks -> its codes. Made by `Tokenizer.stream`.

    >>> stream = tokenizer.stream(sample_rate=44100)
    >>> for block in blocks:
    ...     codes = stream.push(block)  # those that are certain by now, maybe none
    >>> codes = stream.finish()  # the rest
    """

    def __init__(self, network: VQVAE, device: torch.device, sample_rate: int, chunk_samples: int):
        config = network.config
        self.config, self.device, self.sample_rate, self.n_samples = config, device, sample_rate, 0
        self.encoder = StreamingEncoder(network, chunk_samples)
        # No more at once than the encoder takes: what waits in the resampler waits longer.
        at_once = min(RESAMPLE_SECONDS, self.encoder.windows.step / config.sample_rate)
        self.resampler = Resampler(sample_rate, config.sample_rate, at_once)

    @property
    def latency_seconds(self) -> float:
        """From the first sample of a code until the code comes, at most: the network's context to the right (its
        radius), the new audio of a chunk, and the resampler's own."""
        return (
            self.encoder.latency_samples / self.config.sample_rate + self.resampler.latency_samples / self.sample_rate
        )

    @torch.inference_mode()
    def push(self, block: Tensor) -> list[Tensor]:
        """float [samples] or [channels, samples], any number, 1 to 6 channels -> int64 [n] a level, coarse to fine.

        Raises:
            ValueError: wrong shape, or samples that are not finite.
        """
        # A copy, since the caller may use the block's memory again.
        mixed = audio.downmix(checked(block), self.config.channels).to(self.device, copy=True)
        return self._push(self.resampler.push(mixed))

    def _push(self, waveform: Tensor) -> list[Tensor]:
        self.n_samples += waveform.shape[-1]
        return [level[0].cpu() for level in self.encoder.push(waveform[None])]

    @torch.inference_mode()
    def finish(self) -> list[Tensor]:
        """The rest; ceil(n_samples / hop) codes a level in all, where `n_samples` counts at the tokenizer's rate."""
        rest = self.resampler.finish()
        levels = [self._push(rest)] if rest is not None else []
        levels.append([level[0].cpu() for level in self.encoder.finish()])
        return [torch.cat(level) for level in zip(*levels, strict=True)]


class DecodeStream:
    """Codes in blocks -> their waveform. Made by `Tokenizer.decoder_stream`."""

    def __init__(self, network: VQVAE, device: torch.device, n_levels: int, chunk_samples: int):
        self.device, self.sample_rate = device, network.config.sample_rate
        self.decoder = StreamingDecoder(network, n_levels, chunk_samples)

    @property
    def latency_seconds(self) -> float:
        """From the first code of a stretch until its audio comes, at most: the network's radius and a chunk."""
        return self.decoder.latency_samples / self.sample_rate

    @torch.inference_mode()
    def push(self, levels: Sequence[Tensor]) -> Tensor:
        """int64 [any n] a level, coarse to fine -> float [channels, samples that are certain now], maybe none.

        Raises:
            ValueError: another number of levels, or codes out of range.
        """
        return self.decoder.push([level[None].to(self.device) for level in levels])[0].clamp(-1, 1).cpu()

    @torch.inference_mode()
    def finish(self, n_samples: int | None = None) -> Tensor:
        """The rest; `n_samples` in all, by default as far as the codes of all levels reach.

        Raises:
            ValueError: not as many codes as so many samples have.
        """
        return self.decoder.finish(n_samples)[0].clamp(-1, 1).cpu()
