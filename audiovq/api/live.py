"""Audio while it is generated: what can be decoded for good is decoded as the finest level grows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from audiovq.tokenizer.streaming import StreamingDecoder
from audiovq.tokenizer.vqvae import VQVAE

STREAM_SECONDS = 2.0  # decoded at once


class GrowingDecoder:
    """Decodes a growing prefix of the finest of `n_levels` levels; all pieces together are what decoding the whole gives."""

    def __init__(self, network: VQVAE, n_samples: int, n_levels: int):
        self.n_samples = n_samples
        self.decoder = StreamingDecoder(network, n_levels, int(STREAM_SECONDS * network.config.sample_rate))
        self.n_pushed = [0] * n_levels  # codes
        self.finished = False

    @torch.inference_mode()
    def feed(self, levels: list[Tensor], n_known: int) -> Iterator[Tensor]:
        """float [channels, up to 2 s] each, all that no later code can change.

        Args:
            levels: int64 [1, ceil(n_samples / hop)] a level, complete but for the last, the finest.
            n_known: how many codes of the finest are final.
        """
        if self.finished:
            return
        ends = [*(level.shape[1] for level in levels[:-1]), n_known]
        blocks = [level[:, a:b] for level, a, b in zip(levels, self.n_pushed, ends, strict=True)]
        self.n_pushed = ends
        self.finished = n_known == levels[-1].shape[1]
        pieces = [self.decoder.push(blocks)]
        if self.finished:
            pieces.append(self.decoder.finish(self.n_samples))
        yield from (piece[0].clamp(-1, 1).cpu() for piece in pieces if piece.shape[-1])
