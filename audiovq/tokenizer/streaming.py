"""Any length at constant memory, in blocks of any size, with the result that whole would give.

A window is computed with exactly the context that its codes or samples depend on (the network's radius), and the
context's own results are thrown away. Windows of equal length, of one track or of many, can share a batch: nothing is
padded, so no item sees another's end. (Zeros past the end would not do: each layer pads its own input at a track's end,
and the features of silence are not zeros.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.chunking import Window, Windows

CHUNK_SECONDS = 20.0  # of new audio a window, for files
WINDOWS_AT_ONCE = 8  # in a batch, where a batch is faster


def _round_up(samples: int, multiple: int) -> int:
    return -(-samples // multiple) * multiple


class StreamingEncoder:
    """As `network.encode`, in blocks: what is pushed and finished, put together, is what whole gives.

    Args:
        chunk_samples: new samples a window. Fewer give codes earlier and cost more, since every window computes its
            context again; 0 gives each top code as early as can be.
    """

    def __init__(self, network: VQVAE, chunk_samples: int):
        self.network = network
        self.windows = encoder_windows(network, chunk_samples)

    @property
    def latency_samples(self) -> int:
        """How many samples must be known, from the first of a code on, until the code comes, at most."""
        return self.windows.step + self.windows.context

    def push(self, waveform: Tensor) -> list[Tensor]:
        """float [batch, channels, any n] -> int64 [batch, codes that are certain now] a level, maybe none."""
        return self._codes(waveform, list(self.windows.push([waveform])))

    def finish(self) -> list[Tensor]:
        """The rest, int64 [batch, n] a level; ceil(samples / hop) in all."""
        last = self.windows.finish()
        return self._codes(torch.zeros(1), [last] if last else [])

    def _codes(self, waveform: Tensor, windows: list[Window]) -> list[Tensor]:
        if not windows:
            empty = torch.zeros(waveform.shape[0], 0, dtype=torch.int64, device=waveform.device)
            return [empty for _ in self.network.config.hop_lengths]
        parts = [encode_windows(self.network, [window])[0] for window in windows]
        return [torch.cat(level, dim=-1) for level in zip(*parts, strict=True)]


class StreamingDecoder:
    """As `network.decode` of the first `n_levels` levels, in blocks of codes."""

    def __init__(self, network: VQVAE, n_levels: int, chunk_samples: int):
        self.network, self.n_levels = network, n_levels
        self.windows = decoder_windows(network, n_levels, chunk_samples)

    @property
    def latency_samples(self) -> int:
        """How much of the codes' time must be known, from a sample on, until the sample comes, at most."""
        return self.windows.step + self.windows.context

    def push(self, codes: Sequence[Tensor]) -> Tensor:
        """int64 [batch, any n] a level -> float [batch, channels, samples that are certain now], maybe none.

        Levels may come at different paces.
        """
        if len(codes) != self.n_levels:
            raise ValueError(f"codes: expected {self.n_levels} levels, found {len(codes)}")
        pieces = [decode_windows(self.network, [window])[0] for window in self.windows.push(codes)]
        return torch.cat(pieces, dim=-1) if pieces else self._nothing(codes[0])

    def finish(self, n_samples: int | None = None) -> Tensor:
        """The rest, float [batch, channels, n]. `n_samples` is the length in all; default: as far as all levels reach.

        Raises:
            ValueError: codes that do not belong to so many samples.
        """
        reach = [n * hop for n, hop in zip(self.windows.counts, self.windows.hops, strict=True)]
        n_samples = min(reach) if n_samples is None else n_samples
        expected = [-(-n_samples // hop) for hop in self.windows.hops]
        if self.windows.counts != expected:
            raise ValueError(f"codes: expected {expected} a level for {n_samples} samples, found {self.windows.counts}")
        last = self.windows.finish(n_samples)
        return decode_windows(self.network, [last])[0] if last else self._nothing(torch.zeros(1))

    def _nothing(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape[0], self.network.config.channels, 0, device=like.device)


def encoder_windows(network: VQVAE, chunk_samples: int) -> Windows:
    """Windows on a waveform [batch, channels, samples]."""
    hop = network.config.hop_lengths[0]
    return Windows(max(1, chunk_samples // hop) * hop, _round_up(network.encoder_radius, hop))


def decoder_windows(network: VQVAE, n_levels: int, chunk_samples: int) -> Windows:
    """Windows on the codes of the first levels, [batch, n] each; they begin at multiples of the decoder's period."""
    step = max(1, chunk_samples // network.period) * network.period
    context = _round_up(network.decoder_radius, network.period)
    return Windows(step, context, network.config.hop_lengths[:n_levels])


def encode_windows(network: VQVAE, windows: Sequence[Window]) -> list[list[Tensor]]:
    """Codes of windows of one length, computed at once: for each, int64 [batch, n] a level."""
    sizes = [window.sequences[0].shape[0] for window in windows]
    levels = network.encode(torch.cat([window.sequences[0] for window in windows]))
    rows = zip(*(level.split(sizes) for level in levels), strict=True)
    hops = network.config.hop_lengths
    return [
        [window.part(level, hop) for level, hop in zip(row, hops, strict=True)]
        for window, row in zip(windows, rows, strict=True)
    ]


def decode_windows(network: VQVAE, windows: Sequence[Window]) -> list[Tensor]:
    """Waveforms of windows with equally many codes, computed at once: for each, float [batch, channels, n]."""
    sizes = [window.sequences[0].shape[0] for window in windows]
    levels = [torch.cat(level) for level in zip(*(window.sequences for window in windows), strict=True)]
    # At the end of a track its finer levels may be shorter than the top's last code; what is asked for is never longer.
    ends = [level.shape[-1] * hop for level, hop in zip(levels, network.config.hop_lengths, strict=False)]
    waveforms = network.decode(levels, min(ends)).split(sizes)
    return [window.part(waveform, 1) for window, waveform in zip(windows, waveforms, strict=True)]
