"""Start-up from data: statistics and codebooks are measured on a batch of music."""

import torch
from torch import Tensor

from audiovq.tokenizer.quantizer import Quantized, Quantizer
from audiovq.tokenizer.vqvae import VQVAE


class Bypass(Quantizer):
    """Replaces a quantizer while there is no codebook: latents pass unquantized, and every code is 0."""

    def __init__(self, quantizer: Quantizer):
        super().__init__(quantizer.config)
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Quantized:  # [b, time, codebook_dim]
        latents = self.quantizer.normalise(x)
        codes = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        # Data-parallel training expects a gradient for every parameter: the losses are 0 times each of them.
        zero = latents.new_zeros(()) + sum(0 * parameter.sum() for parameter in self.quantizer.parameters())
        return Quantized(latents, codes, latents, dict.fromkeys(self.quantizer.loss_names, zero))


@torch.no_grad()
def initialise_statistics(network: VQVAE, waveform: Tensor) -> None:
    """Before the first step, from this rank's first batch, float [b, channels, samples]: the mean and scale
    of the front's features, and the decoder's mean spectrum, pooled over ranks."""
    for autoencoder in network.groups:
        if autoencoder.combiner is None:  # bands have no statistics
            autoencoder.encoder.front.initialise(waveform)
        autoencoder.decoder.initialise(waveform)


@torch.no_grad()
def initialise_codebooks(network: VQVAE, waveform: Tensor, microbatch_size: int | None = None) -> None:
    """Before the first step that quantizes: each codebook by k-means on the latents of all its levels and
    ranks, from a batch, float [b, channels, samples], `microbatch_size` items at a time."""
    quantizers = network.quantizers()
    results = network.quantize(waveform, [Bypass(quantizer) for quantizer in quantizers], microbatch_size)
    latents = [level.latents for _, levels, _ in results for level in levels]  # per level: [b, time, codebook_dim]
    for codebook in network.codebooks:
        codebook.initialise([x for q, x in zip(quantizers, latents, strict=True) if q is codebook])
