"""Start-up from data: what is better measured on a batch of music than learned by gradient steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiovq.tokenizer.quantizer import Bypass
from audiovq.tokenizer.vqvae import VQVAE, encode_features


@torch.no_grad()
def initialise_statistics(network: VQVAE, waveform: Tensor) -> None:
    """Before the first step: the front's feature statistics and the decoder's mean spectrum.

    Args:
        waveform: float [b, channels, samples], the first batch of this rank; statistics are those of all ranks.
    """
    for autoencoder in network.groups:
        parts: Any = autoencoder
        parts.encoder.front.initialise(waveform)
        parts.decoder.initialise(waveform)


@torch.no_grad()
def initialise_codebooks(network: VQVAE, waveform: Tensor, microbatch_size: int | None = None) -> None:
    """Before the first quantized step: codebooks by k-means on the latents of a batch.

    Args:
        waveform: float [b, channels, samples]; latents of all ranks are pooled.
        microbatch_size: items that go through the encoder together, to save memory; the result is the same.
    """
    quantizers, latents = network.quantizers(), []
    for autoencoder, levels in network.level_groups():
        features = encode_features(autoencoder, waveform, microbatch_size)  # [b, dim, t] for each level
        results, _ = autoencoder.quantize(features, [Bypass(quantizers[i]) for i in levels])
        latents += [result.latents for result in results]  # [b, t, codebook_dim]
    for codebook in dict.fromkeys(quantizers):
        codebook.initialise([x for q, x in zip(quantizers, latents, strict=True) if q is codebook])
