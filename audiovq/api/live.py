"""Audio while it is generated: what can be decoded for good is decoded as the finest level grows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from audiovq.tokenizer.vqvae import VQVAE

STREAM_SECONDS = 2.0  # decoded at once


class StreamDecoder:
    """Decodes a growing prefix of the codes; all pieces together are what decoding the whole gives."""

    def __init__(self, network: VQVAE, n_samples: int):
        self.network, self.n_samples = network, n_samples
        self.n_done = 0  # samples decoded so far
        period = network.period
        self.step = max(1, int(STREAM_SECONDS * network.config.sample_rate) // period) * period
        self.context = -(-network.decoder_radius // period) * period  # whole periods, as decoding in chunks has

    @torch.inference_mode()
    def feed(self, levels: list[Tensor], n_known: int) -> Iterator[Tensor]:
        """float [channels, up to 2 s] each, all that no later code can change.

        Args:
            levels: int64 [1, ceil(n_samples / hop)] a level, complete but for the last, the finest.
            n_known: how many codes of the finest are final.
        """
        hops = self.network.config.hop_lengths
        known = n_known * hops[len(levels) - 1]
        while self.n_done < self.n_samples:
            end = min(self.n_done + self.step, self.n_samples)
            low, high = max(0, self.n_done - self.context), min(end + self.context, self.n_samples)
            if high > known:
                return
            codes = [level[:, low // hop : -(-high // hop)] for level, hop in zip(levels, hops, strict=False)]
            piece = self.network.decode(codes, high - low)
            yield piece[0, :, self.n_done - low : end - low].clamp(-1, 1).cpu()
            self.n_done = end
