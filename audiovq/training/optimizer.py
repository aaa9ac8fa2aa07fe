"""AdamW or Muon, and a learning rate that is a pure function of the step (so a resumed run needs no scheduler state)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from audiovq.recipe import TrainingConfig
from audiovq.training.muon import Muon


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Weight decay on matrices and kernels only: not on biases, norms and embeddings. Muon takes the matrices within."""
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    linear = {
        id(m.weight) for name, m in network.named_modules() if isinstance(m, nn.Linear) and not name.endswith("head")
    }
    muon = config.optimizer == "muon"
    parameters = [p for p in network.parameters() if p.requires_grad]
    inner = [p for p in parameters if muon and id(p) in linear]
    rest = [p for p in parameters if not (muon and id(p) in linear)]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in rest if p.ndim < 2 or id(p) in embeddings]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0},
    ]  # fmt: skip
    if muon:
        groups.append({"params": inner, "weight_decay": config.weight_decay, "orthogonal": True})
    kind = Muon if muon else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to `final_fraction` at the last step; `step` counts from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    passed = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
