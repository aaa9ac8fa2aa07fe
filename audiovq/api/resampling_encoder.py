"""A streaming encoder for audio of any sample rate and number of channels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiovq.data.audio import LARGEST_PEAK, downmix, read_audio
from audiovq.data.resampling import Resampler, check_rate
from audiovq.tokenizer.streaming import StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.device import torch_defaults

Waveform = Tensor | np.ndarray | Sequence[Any]
MAX_CHANNELS = 6
PCM = {torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32}


def with_rate(source: Any, sample_rate: float | None) -> tuple[Any, int]:
    """A waveform and its sample rate, from both, or from what has both: a file's path, or a value of an `Audio` column
    of the library datasets, a dict or a decoder. Raises ValueError for no rate, or another one than `source` has."""
    if isinstance(source, str | Path):
        source, own_rate = read_audio(source)
    elif isinstance(source, Mapping):
        if not {"array", "sampling_rate"} <= source.keys():
            found = ", ".join(map(str, source))
            raise ValueError(f"waveform: expected a dict with array and sampling_rate, found {found or 'no keys'}")
        source, own_rate = source["array"], source["sampling_rate"]
    elif hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        source, own_rate = samples.data, samples.sample_rate
    else:
        return source, check_rate(sample_rate)  # type: ignore[arg-type] - None is refused
    if sample_rate is not None and sample_rate != own_rate:
        raise ValueError(f"sample rate: expected {own_rate}, which the audio says, or none, found {sample_rate!r:.40}")
    return source, check_rate(own_rate)


def checked(waveform: Waveform, at_least: int = 0) -> Tensor:
    """Audio as people have it, as `Tokenizer.encode` takes it -> float32 [channels, samples], `at_least` so
    many samples. Raises ValueError for another shape or type, or samples that are not finite."""
    try:
        if not isinstance(waveform, Tensor):
            array = np.array(waveform)
            if array.dtype == np.longdouble:  # which torch does not have
                array = array.astype(np.float64)
            waveform = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError):
        found = f"{type(waveform).__name__} {getattr(waveform, 'dtype', '')}".strip()
        raise ValueError(f"waveform: expected a tensor or an array, found {found}") from None
    waveform = waveform.detach()[None] if waveform.ndim == 1 else waveform.detach()
    found = list(waveform.shape)
    if waveform.ndim != 2 or found[0] == 0 or found[1] < at_least:
        raise ValueError(f"waveform: expected [samples] or [channels, samples], found {found}")
    if found[0] > MAX_CHANNELS:
        advice = "; turn it around, as in waveform.T" if found[1] <= MAX_CHANNELS else ""
        raise ValueError(f"waveform: expected [channels, samples], 1 to {MAX_CHANNELS} channels, found {found}{advice}")
    if waveform.dtype in PCM:
        scale = torch.iinfo(waveform.dtype)
        size = 1 << (scale.bits - 1)  # of 1.0, and in unsigned numbers of 0.0
        return ((waveform.cpu().double() - (0 if scale.min else size)) / size).float()
    if not waveform.is_floating_point():
        kinds = "floating-point numbers in [-1, 1], or PCM of 8, 16 or 32 bits"
        advice = "; name its size, as in waveform.astype('int16')" if waveform.dtype == torch.int64 else ""
        raise ValueError(f"waveform: expected {kinds}, found {waveform.dtype}{advice}")
    waveform = waveform.float()
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    if not math.isfinite(peak):
        raise ValueError("waveform: expected finite samples, found NaN or infinity")
    if peak > LARGEST_PEAK:
        raise ValueError(f"waveform: expected numbers in [-1, 1], found {peak:g}; divide PCM by its largest number")
    return waveform


class ResamplingEncoder:
    """Resamples and downmixes a waveform in blocks, and encodes it. Made by `Tokenizer.stream`.

    >>> stream = tokenizer.stream(sample_rate=44100)
    >>> for block in blocks:
    ...     codes = stream.push(block)  # those that are certain by now, perhaps none
    >>> codes = stream.finish()  # the rest

    Attributes:
        n_samples: the waveform's length so far, at the tokenizer's rate.
    """

    @torch_defaults()
    def __init__(self, network: VQVAE, sample_rate: int, chunk_seconds: float):
        sample_rate = check_rate(sample_rate)
        self.channels, self.sample_rate, self.n_samples = network.config.channels, sample_rate, 0
        self.encoder = StreamingEncoder(network, int(chunk_seconds * network.config.sample_rate))
        self.resampler = Resampler(sample_rate, network.config.sample_rate)

    @property
    def latency_seconds(self) -> float:
        """The longest time from the first sample of a code until the code comes."""
        return self.encoder.latency_seconds + self.resampler.latency_samples / self.sample_rate

    @torch_defaults()
    def push(self, block: Waveform) -> list[Tensor]:
        """A block as `checked` takes it -> int64 [n] per level, coarse to fine; raises as `checked`."""
        mixed = downmix(checked(block), self.channels)
        # A copy, because the caller may use the block's memory again.
        return self._encode(self.resampler.push(mixed).to(self.encoder.device, copy=True))

    def _encode(self, waveform: Tensor) -> list[Tensor]:
        self.n_samples += waveform.shape[-1]
        return [level.cpu() for level in self.encoder.push(waveform)]

    @torch_defaults()
    def finish(self) -> list[Tensor]:
        """The rest; ceil(n_samples / hop_length) codes per level in all."""
        levels = [self._encode(rest) for rest in self.resampler.finish()]
        levels.append([level.cpu() for level in self.encoder.finish()])
        return [torch.cat(level) for level in zip(*levels, strict=True)]
