"""Codebooks: latent vectors ↔ integers. A new quantizer is one class and one line in `QUANTIZERS`.

A quantizer offers `encode` (vectors → codes), `embed` (codes → vectors), `forward` (both, with gradients),
`initialise` (once, from the first batch's latents) and `update` (once a training step, from all levels' latents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq import distributed
from audiovq.config import Config as BaseConfig


@dataclass
class Quantized:
    vectors: Tensor  # [b, t, codebook_dim], what the decoder gets; gradients pass straight through
    codes: Tensor  # int64 [b, t]
    latents: Tensor  # [b, t, codebook_dim], what was quantized
    commitment: Tensor  # scalar


def unquantized(latents: Tensor) -> Quantized:
    """Latents as they pass before there is a codebook: on the unit sphere, all with code 0."""
    x = F.normalize(latents.float(), dim=-1)
    return Quantized(x, torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device), x, x.new_zeros(()))


class Standardise(nn.Module):
    """Each channel to zero mean and unit variance: by the batch of all ranks in training, by running statistics after.

    Batch normalisation (arXiv:1502.03167) without scale and shift. Without it the latents of a fresh encoder point
    almost the same way, all fall to one code, and no gradient ever parts them.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:  # [b, t, dim] -> the same, float32
        x = x.float()
        mean, variance = self.mean, self.variance
        if self.training:
            mean = distributed.mean_with_gradient(x.mean(dim=(0, 1)))
            variance = distributed.mean_with_gradient((x - mean).square().mean(dim=(0, 1)))
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        return (x - mean) * (variance + 1e-5).rsqrt()


class EMAQuantizer(nn.Module):
    """Vector quantization with a codebook that follows the mean of its latents.

    Nearest code with a straight-through gradient, codebook by exponential moving averages of counts and sums
    (van den Oord 2017, arXiv:1711.00937, section 3.2 and appendix A.1). Differs: latents and codes live on the unit
    sphere of a low dimension, so nearest means largest cosine and no code can be missed by its length
    (ViT-VQGAN, arXiv:2110.04627, section 3.2); k-means start and revival of dead codes as in Jukebox (arXiv:2005.00341,
    section 3), but dead means below a fraction of mean usage, and a revived code starts with full counts.
    """

    class Config(BaseConfig):
        kind: Literal["ema"] = "ema"
        codebook_size: int = Field(default=1024, ge=2, le=65536)
        codebook_dim: int = Field(default=16, ge=2)
        decay: float = Field(default=0.99, gt=0, lt=1)
        revival_fraction: float = Field(default=0.03, ge=0, lt=1)  # of the mean usage; 0 never revives
        kmeans_iterations: int = Field(default=10, ge=0)

    embedding: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        shape = (config.codebook_size, config.codebook_dim)
        self.register_buffer("embedding", F.normalize(torch.randn(shape), dim=-1))
        self.register_buffer("counts", torch.ones(config.codebook_size))
        self.register_buffer("sums", self.embedding.clone())

    def normalise(self, x: Tensor) -> Tensor:
        """To the unit sphere, in float32 whatever autocast says."""
        return F.normalize(x.float(), dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """Nearest code of each vector, float [..., codebook_dim] -> int64 [...]."""
        with torch.autocast(x.device.type, enabled=False):
            return (self.normalise(x) @ self.embedding.T).argmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        """int64 [...] -> float [..., codebook_dim]."""
        return F.embedding(codes, self.embedding)

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)
        codes = self.encode(latents)
        nearest = self.embed(codes)
        commitment = (latents - nearest).square().sum(dim=-1).mean()
        return Quantized(latents + (nearest - latents).detach(), codes, latents, commitment)

    @torch.no_grad()
    def initialise(self, latents: list[Tensor]) -> None:
        """Spherical k-means on the latents of one batch, all levels pooled; rank 0 decides."""
        x = torch.cat([rearrange(self.normalise(level), "b t d -> (b t) d") for level in latents])
        size = self.config.codebook_size
        picks = torch.randperm(len(x), device=x.device)[:size]
        more = torch.randint(len(x), (size - len(picks),), device=x.device)
        centres = torch.cat([x[picks], self.normalise(x[more] + 0.1 * torch.randn_like(x[more]))])
        for _ in range(self.config.kmeans_iterations):
            codes = (x @ centres.T).argmax(dim=-1)
            sums = torch.zeros_like(centres).index_add_(0, codes, x)
            empty = sums.norm(dim=-1, keepdim=True) < 1e-6
            centres = torch.where(empty, centres, self.normalise(sums))
        self.embedding.copy_(distributed.broadcast_(centres.contiguous()))
        self.counts.fill_(len(x) * distributed.world_size() / size)
        self.sums.copy_(self.embedding * self.counts[:, None])

    @torch.no_grad()
    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """Move the codebook once, by the pooled latents [b, t, codebook_dim] and codes [b, t] of all its levels."""
        x = torch.cat([rearrange(level, "b t d -> (b t) d") for level in latents])
        flat = torch.cat([level.flatten() for level in codes])
        counts = distributed.all_reduce_(torch.bincount(flat, minlength=len(self.counts)).to(x.dtype))
        sums = distributed.all_reduce_(torch.zeros_like(self.sums).index_add_(0, flat, x))
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        means = torch.where(self.sums.norm(dim=-1, keepdim=True) > 1e-6, self.normalise(self.sums), self.embedding)
        # Drawn for every code and for every rank, used for the dead ones: no host sync, no rank-local branch.
        candidates = distributed.broadcast_(x[torch.randint(len(x), (len(self.counts),), device=x.device)])
        mean_usage = self.counts.mean()
        dead = self.counts < self.config.revival_fraction * mean_usage
        self.embedding.copy_(torch.where(dead[:, None], candidates, means))
        self.counts.copy_(torch.where(dead, mean_usage, self.counts))
        self.sums.copy_(torch.where(dead[:, None], candidates * mean_usage, self.sums))


QUANTIZERS = {"ema": EMAQuantizer}
