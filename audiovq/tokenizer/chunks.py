"""Encode and decode any length in chunks at constant memory, with the result that whole would give.

A chunk is computed with exactly the context its codes or samples depend on (the network's radius), and the context's
own results are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from audiovq.tokenizer.vqvae import VQVAE

CHUNK_SECONDS = 20.0  # what the network sees at once, by default


def encode_in_chunks(network: VQVAE, waveform: Tensor, chunk_samples: int) -> list[Tensor]:
    """As `network.encode`: float [batch, channels, samples] -> int64 [batch, ceil(samples / hop)] a level."""
    hops, samples = network.config.hop_lengths, waveform.shape[-1]
    waveform = torch.nn.functional.pad(waveform, (0, -samples % hops[0]))
    parts: list[list[Tensor]] = [[] for _ in hops]
    for start, end, low, high in _chunks(waveform.shape[-1], chunk_samples, network.encoder_radius, hops[0]):
        codes = network.encode(waveform[..., low:high])
        for part, level, hop in zip(parts, codes, hops, strict=True):
            part.append(level[:, (start - low) // hop : (end - low) // hop])
    whole = [torch.cat(part, dim=1) for part in parts]
    return [level[:, : -(-samples // hop)] for level, hop in zip(whole, hops, strict=True)]


def decode_in_chunks(network: VQVAE, codes: list[Tensor], n_samples: int, chunk_samples: int) -> Iterator[Tensor]:
    """As `network.decode`, piece by piece: float [batch, channels, up to chunk_samples], `n_samples` in all."""
    hops = network.config.hop_lengths
    padded = codes[0].shape[1] * hops[0] if codes else 0
    for start, end, low, high in _chunks(padded, chunk_samples, network.decoder_radius, network.period):
        stop = min(high, n_samples)  # at the end of the track, its finer levels may be shorter than the top's last code
        piece = network.decode(
            [level[:, low // hop : -(-stop // hop)] for level, hop in zip(codes, hops, strict=False)], stop - low
        )
        if start < n_samples:
            yield piece[..., start - low : min(end, n_samples) - low]


def _chunks(samples: int, chunk_samples: int, radius: int, period: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, start with context, end with context), all multiples of `period` but where the track ends."""
    step = max(1, chunk_samples // period) * period
    context = -(-radius // period) * period
    for start in range(0, samples, step):
        end = min(start + step, samples)
        yield start, end, max(0, start - context), min(samples, end + context)
