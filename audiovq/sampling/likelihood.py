"""How likely a prior finds given codes: to rank candidates, and to tell which label they fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.prior import Prior
from audiovq.sampling.decode_state import BLOCK, coarser_at_rate_above
from audiovq.sampling.guidance import GuidedPrior, piece_conditions
from audiovq.sampling.request import Request


@torch.inference_mode()
def sequence_log_probability(prior: Prior, levels: Sequence[Tensor], request: Request) -> Tensor:
    """log p(codes of the prior's level | coarser codes, labels), at temperature 1 and nothing cut off.

    Teacher-forced, block after block with the cache: any length at constant memory.

    Args:
        levels: int64 [items, n_codes] a level, coarse to fine, at least to the prior's own.
        request: the conditions; its items and seed do not matter.
    Returns:
        float64 [items], nats, summed over the codes.
    """
    level = prior.spec.level
    device = prior.head.weight.device
    codes = levels[level].to(device)
    batch, n_codes = codes.shape
    previous = F.pad(codes, (1, 0), value=prior.spec.codebook_size)
    around = coarser_at_rate_above(prior, [coarser.to(device) for coarser in levels[:level]], batch, n_codes)
    guided = GuidedPrior(prior, piece_conditions(prior, request, batch))
    cache = prior.new_cache(batch)
    guided.write_prefix(cache)
    total = torch.zeros(batch, dtype=torch.float64)
    block = -(-BLOCK // prior.spec.ratio) * prior.spec.ratio
    for start in range(0, n_codes, block):
        end = min(start + block, n_codes)
        context = guided.context(around, start, end)
        logits = prior(previous[:, start:end], context, cache).float()
        total -= F.cross_entropy(logits.mT, codes[:, start:end], reduction="none").double().sum(dim=1).cpu()
    return total


def bits_per_second(priors: Sequence[Prior], levels: Sequence[Tensor], request: Request) -> Tensor:
    """What the codes of all levels cost under the priors, float64 [items]: the likelier, the fewer."""
    nats = torch.stack([sequence_log_probability(prior, levels, request) for prior in priors]).sum(dim=0)
    return -nats / math.log(2) / (request.n_samples / priors[0].spec.sample_rate)
