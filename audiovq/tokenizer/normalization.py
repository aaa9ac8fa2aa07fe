"""Latents before they are quantized: channels of one size, and none that repeats another."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from audiovq.distributed import collectives


class BatchNorm(nn.Module):
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
            mean = collectives.mean_with_gradient(x.mean(dim=(0, 1)), len(x))
            variance = collectives.mean_with_gradient((x - mean).square().mean(dim=(0, 1)), len(x))
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        return (x - mean) * (variance + 1e-5).rsqrt()


class ZCAWhitening(nn.Module):
    """Turns standardised channels into uncorrelated ones, by the inverse square root of their running correlation matrix.

    Latents of a coarse level soon lie along few directions; of a codebook that levels share, such a level then uses only
    what lies there. Whitening by ZCA (Kessy 2018, arXiv:1512.00809, section 2); directions of hardly any variance are raised only so far.
    """

    correlation: Tensor
    matrix: Tensor
    LEAST = 0.02  # variance of a direction

    def __init__(self, dim: int, momentum: float = 0.03):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("correlation", torch.eye(dim))
        self.register_buffer("matrix", torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:  # [b, t, dim] -> the same
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                self._update(x.detach())
            return x @ self.matrix

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        flat = rearrange(x, "b t d -> (b t) d")
        found = collectives.mean_(flat.T @ flat / len(flat), len(x))
        found = torch.where(found.isfinite().all(), found, self.correlation)  # the loop skips steps that are not finite
        self.correlation.lerp_(found, self.momentum)
        variances, directions = torch.linalg.eigh(self.correlation)
        self.matrix.copy_(directions * variances.clamp(min=self.LEAST).rsqrt() @ directions.T)
