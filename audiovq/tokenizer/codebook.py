"""How codebooks start and stay in use: k-means, usage counts, revival; all pooled over levels and ranks."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from audiovq.distributed import collectives, rng

LATENTS_PER_CODE = 64  # of more latents, k-means takes a random part


def spherical_k_means(latents: list[Tensor], size: int, iterations: int) -> Tensor:
    """Cluster centres [size, dim] of unit length of the latents, [b, time, dim] per level; rank 0 decides."""
    pool = collectives.Pool([rearrange(level, "b t d -> (b t) d") for level in latents])
    n, device, generator = int(pool.size), latents[0].device, rng.generator()
    limit = size * LATENTS_PER_CODE
    rows = torch.arange(n, device=device)
    if n > limit:
        rows = torch.randint(n, (limit,), generator=generator, device=device)
    x = pool.rows(rows)  # [n, dim]
    # Centres start at random latents; if there are too few, also at latents with noise.
    first = torch.randperm(len(x), generator=generator, device=device)[:size]
    more = x[torch.randint(len(x), (size - len(first),), generator=generator, device=device)]
    noise = torch.randn(more.shape, generator=generator, device=device)
    centres = torch.cat([x[first], F.normalize(more + 0.1 * noise, dim=-1)])  # [size, dim]
    for _ in range(iterations):
        codes = (x @ centres.T).argmax(dim=-1)  # [n]
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        centres = torch.where(sums.norm(dim=-1, keepdim=True) < 1e-6, centres, F.normalize(sums, dim=-1))
    return collectives.broadcast_(centres.contiguous())


def start_codebook(vectors: Tensor, counts: Tensor, latents: list[Tensor], iterations: int) -> None:
    """Code vectors [size, dim] by k-means; `counts` as if all were chosen equally often in this batch."""
    vectors.copy_(spherical_k_means(latents, len(vectors), iterations))
    n = torch.tensor(float(sum(level[..., 0].numel() for level in latents)), device=counts.device)
    counts.copy_((collectives.all_reduce_(n) / len(vectors)).expand_as(counts))


def update_counts(counts: Tensor, codes: list[Tensor], latents: list[Tensor], config: Any) -> tuple[Tensor, Tensor]:
    """Move the averages `counts`, float32 [size], towards how often each code is chosen in this batch. Codes that are
    used less than `revival_fraction` of the mean are dead: bool [size, 1]. They count as of average use from here on.
    A latent is drawn for every code, [size, dim], though only dead ones take theirs: no rank takes a branch alone."""
    found = torch.bincount(torch.cat([level.flatten() for level in codes]), minlength=len(counts))
    counts.lerp_(collectives.all_reduce_(found.float()), 1 - config.decay)
    pool = collectives.Pool([rearrange(level, "b t d -> (b t) d") for level in latents])
    drawn = torch.randint(2**31, (len(counts),), generator=rng.generator(), device=counts.device)
    dead = counts < config.revival_fraction * counts.mean()
    counts.copy_(torch.where(dead, counts.mean(), counts))
    return dead[:, None], pool.rows(drawn % pool.size)
