"""The optimizers: AdamW, or Muon for the matrices of a prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from audiovq.recipe import TrainingConfig
from audiovq.training.muon import Muon


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """The optimizer of a network's trainable weights.

    Weight decay applies to matrices and convolution kernels, not to biases, norms and embeddings. Muon
    trains the matrices of linear layers, except heads; all other weights get AdamW.
    """
    is_muon = config.optimizer == "muon"
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    linear = {
        id(module.weight)
        for name, module in network.named_modules()
        if is_muon and isinstance(module, nn.Linear) and not name.endswith("head")
    }
    parameters = [p for p in network.parameters() if p.requires_grad]
    orthogonal = [p for p in parameters if id(p) in linear]
    rest = [p for p in parameters if id(p) not in linear]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in rest if p.ndim < 2 or id(p) in embeddings]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if is_muon:
        groups.append({"params": orthogonal, "weight_decay": config.weight_decay, "orthogonal": True})
    optimizer = Muon if is_muon else torch.optim.AdamW
    return optimizer(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
