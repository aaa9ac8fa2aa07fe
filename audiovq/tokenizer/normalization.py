"""Normalization of latents before they are quantized: channels of equal size, and uncorrelated ones."""

import torch
from einops import rearrange
from torch import Tensor, nn

from audiovq.distributed import collectives


class BatchNorm(nn.Module):
    """Batch normalization (arXiv:1502.03167) without scale and shift. In training, mean and variance are those of the
    batch of all ranks; in inference, their running averages. Without it the latents of a new encoder have almost the
    same direction, and all get one code."""

    def __init__(self, dim: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.mean = nn.Buffer(torch.zeros(dim))
        self.variance = nn.Buffer(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:  # [b, time, dim] -> the same, float32
        x = x.float()
        mean, variance = self.mean, self.variance
        if self.training:
            mean = collectives.mean_with_gradient(x.mean(dim=(0, 1)), len(x))
            variance = collectives.mean_with_gradient((x - mean).square().mean(dim=(0, 1)), len(x))
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        return (x - mean) * (variance + 1e-5).rsqrt()


class ZCAWhitening(nn.Module):
    """Make standardised channels uncorrelated, by the inverse square root of their running correlation. ZCA whitening
    (Kessy 2018, arXiv:1512.00809, section 2). Without it the latents of a coarse level have few directions, and use
    only part of a shared codebook."""

    LEAST = 0.02  # variance; less counts as this

    def __init__(self, dim: int, momentum: float = 0.03):
        super().__init__()
        self.momentum = momentum
        self.correlation = nn.Buffer(torch.eye(dim))
        self.matrix = nn.Buffer(torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:  # [b, time, dim] -> the same
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                flat = rearrange(x.detach(), "b t d -> (b t) d")
                found = collectives.mean_(flat.T @ flat / len(flat), len(x))  # [dim, dim]
                # eigh fails on a NaN; the training loop skips such a step afterwards.
                found = torch.where(found.isfinite().all(), found, self.correlation)
                self.correlation.lerp_(found, self.momentum)
                variances, directions = torch.linalg.eigh(self.correlation)
                self.matrix.copy_(directions * variances.clamp(min=self.LEAST).rsqrt() @ directions.T)
            return x @ self.matrix


def latent_norm(dim: int, whiten: bool) -> nn.Module:
    return nn.Sequential(BatchNorm(dim), ZCAWhitening(dim)) if whiten else BatchNorm(dim)
