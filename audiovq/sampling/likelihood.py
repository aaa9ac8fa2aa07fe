"""The likelihood of given codes under a prior: to rank candidates, and to find the label that they fit."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.prior import Prior
from audiovq.sampling.decode_state import BLOCK, coarser_at_rate_above
from audiovq.sampling.guidance import GuidedPrior, Request, piece_conditions


@torch.inference_mode()
def sequence_log_probability(prior: Prior, levels: Sequence[Tensor], request: Request) -> Tensor:
    """log p(codes of the prior's level | coarser codes, conditions) in nats, summed over the codes, float64
    [items], at temperature 1, without top-k and top-p, block by block with the cache: any length at constant
    memory. Levels are int64 [items, n_codes] each; the request's items and seed are not used."""
    level, device = prior.spec.level, prior.head.weight.device
    codes = levels[level].to(device)
    batch, n_codes = codes.shape
    previous = F.pad(codes, (1, 0), value=prior.spec.codebook_size)
    coarser = [codes.to(device) for codes in levels[:level]]
    guided = GuidedPrior(prior, piece_conditions(prior, request, batch))
    cache = prior.transformer.new_cache(batch)
    guided.write_prefix(cache)
    total = torch.zeros(batch, dtype=torch.float64)
    block = -(-BLOCK // prior.spec.ratio) * prior.spec.ratio
    for start in range(0, n_codes, block):
        end = min(start + block, n_codes)
        window = coarser_at_rate_above(prior, coarser, batch, n_codes, start, end)
        logits = prior(previous[:, start:end], guided.context(window, start, end), cache).float()
        logits = prior.possible(logits, torch.arange(start, end, device=device))
        total -= F.cross_entropy(logits.mT, codes[:, start:end], reduction="none").cpu().double().sum(dim=1)
    return total


def bits_per_second(priors: Sequence[Prior], levels: Sequence[Tensor], request: Request) -> Tensor:
    """The information of all levels under the priors, in bits per second of audio: float64 [items]."""
    nats = torch.stack([sequence_log_probability(prior, levels, request) for prior in priors]).sum(dim=0)
    return -nats / math.log(2) / (request.n_samples / priors[0].spec.sample_rate)
