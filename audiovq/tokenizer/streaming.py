"""Encoding and decoding in blocks of any size, at constant memory, with the result that the whole would give. A window
is computed with exactly the context that its codes or samples depend on (the receptive field), and the results for the
context are discarded. (The features of silence are not zeros.)"""

from collections.abc import Sequence

import torch
from torch import Tensor

from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.chunking import Window, Windows
from audiovq.utils.device import torch_defaults

CHUNK_SECONDS = 20.0  # of new audio per window, for files
WINDOWS_AT_ONCE = 8  # in a batch, where a batch is faster


class StreamingEncoder:
    """A waveform in blocks -> its codes, on the network's device; all that `push` and `finish` return
    together is what `network.encode` gives. With few `chunk_samples` per window codes come early, but cost
    more, since each window computes its context again; 0 gives each code of level 0 as early as possible."""

    def __init__(self, network: VQVAE, chunk_samples: int):
        self.network = network
        self.windows = encoder_windows(network, chunk_samples)
        self.device = next(network.parameters()).device

    @property
    def latency_seconds(self) -> float:
        """The longest time from the first sample of a code until the code comes: context and a chunk."""
        return (self.windows.step + self.windows.ahead) / self.network.config.sample_rate

    @torch_defaults()
    def push(self, waveform: Tensor) -> list[Tensor]:
        """float [channels, any n] -> int64 [codes that are certain now] per level, perhaps none."""
        return self._codes(self.windows.push([waveform.to(self.device)]))

    @torch_defaults()
    def finish(self) -> list[Tensor]:
        """The rest, int64 [n] per level; ceil(samples / hop_length) codes in all."""
        return self._codes(self.windows.finish())

    def _codes(self, windows: list[Window]) -> list[Tensor]:
        parts = [[torch.zeros(0, dtype=torch.int64, device=self.device)] * self.network.config.n_levels]
        parts += [encode_windows(self.network, [window])[0] for window in windows]
        return [torch.cat(level) for level in zip(*parts, strict=True)]


class StreamingDecoder:
    """Codes of the first `n_levels` levels in blocks -> their waveform, on the device of the codes; together
    what `network.decode` gives. For `chunk_samples` see `StreamingEncoder`. With `ahead_samples`, less than a
    sample depends on, audio comes sooner, in chunks of any number of codes of level 0, and is not quite that."""

    def __init__(self, network: VQVAE, n_levels: int, chunk_samples: int, ahead_samples: int | None = None):
        self.network, self.n_levels = network, n_levels
        self.windows = decoder_windows(network, n_levels, chunk_samples, ahead_samples)
        self.device = self.caller_device = next(network.parameters()).device

    @property
    def latency_seconds(self) -> float:
        """The longest time from a code until its audio comes: what is looked ahead, and a chunk."""
        return (self.windows.step + self.windows.ahead) / self.network.config.sample_rate

    @torch_defaults()
    def push(self, levels: Sequence[Tensor]) -> Tensor:
        """The next codes of each level, int64 [any n], coarse to fine, of which one may be ahead of another
        -> the samples that are certain now, float [channels, n] in [-1, 1]. ValueError for wrong levels."""
        if len(levels) != self.n_levels:
            raise ValueError(f"codes: expected {self.n_levels} levels, found {len(levels)}")
        self.caller_device = levels[0].device
        return self._waveform(self.windows.push([level.to(self.device) for level in levels]))

    @torch_defaults()
    def finish(self, n_samples: int | None = None) -> Tensor:
        """The rest, float [channels, n], up to `n_samples` in all, by default as far as the codes of all
        levels reach; ValueError if there were more or fewer codes than so many samples have."""
        counts, hops = self.windows.counts, self.windows.hops
        if n_samples is None:
            n_samples = min(n * hop for n, hop in zip(counts, hops, strict=True))
        expected = [-(-n_samples // hop) for hop in hops]
        if counts != expected:
            raise ValueError(f"codes: expected {expected} per level for {n_samples} samples, found {counts}")
        return self._waveform(self.windows.finish(n_samples))

    def _waveform(self, windows: list[Window]) -> Tensor:
        parts = [torch.zeros(self.network.config.channels, 0, device=self.device)]
        parts += [decode_windows(self.network, [window])[0] for window in windows]
        return torch.cat(parts, dim=-1).clamp(-1, 1).to(self.caller_device)


def encoder_windows(network: VQVAE, chunk_samples: int) -> Windows:
    """Windows on a waveform [channels, samples]."""
    hop = network.config.hop_lengths[0]
    context, ahead = -(-network.encoder_radius // hop) * hop, network.encoder_ahead
    return Windows(max(1, chunk_samples // hop) * hop, context, ahead=ahead, period=network.encoder_period)


def decoder_windows(network: VQVAE, n_levels: int, chunk_samples: int, ahead_samples: int | None = None) -> Windows:
    """Windows on the codes [n] of the first levels; they start at multiples of the decoder's period, except for those
    that see less than they depend on, which are decoded one by one."""
    period, hops = network.period, network.config.hop_lengths[:n_levels]
    step, context = max(1, round(chunk_samples / hops[0])) * hops[0], -(-network.decoder_radius // hops[0]) * hops[0]
    ahead = -(-network.decoder_ahead // hops[0]) * hops[0]
    if ahead_samples is not None and ahead_samples < ahead:
        ahead, period = round(ahead_samples / hops[0]) * hops[0], network.grid
        # At least twice as far back, whose end matters much less than that ahead.
        context = min(context, (1 + 2 * ahead // period) * period)
    return Windows(step, context, hops, ahead, period)


def encode_windows(network: VQVAE, windows: Sequence[Window]) -> list[list[Tensor]]:
    """Codes of windows of equal length, computed in one batch: for each window int64 [n] per level."""
    levels = network.encode(torch.stack([window.sequences[0] for window in windows]))  # [windows, n] per level
    hops = network.config.hop_lengths
    return [[w.part(level[i], hop) for level, hop in zip(levels, hops, strict=True)] for i, w in enumerate(windows)]


def decode_windows(network: VQVAE, windows: Sequence[Window]) -> list[Tensor]:
    """Waveforms of windows with equally many codes, computed in one batch: float [channels, n] each."""
    levels = [torch.stack(level) for level in zip(*(window.sequences for window in windows), strict=True)]
    # At the end of a track the finer levels may be shorter than the last code of level 0.
    ends = [level.shape[-1] * hop for level, hop in zip(levels, network.config.hop_lengths, strict=False)]
    waveforms = network.decode(levels, min(ends), windows[0].low % network.period)  # [windows, channels, samples]
    return [window.part(waveforms[i], 1) for i, window in enumerate(windows)]
