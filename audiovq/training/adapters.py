"""Low-rank adapters (LoRA, arXiv:2106.09685) by peft: trained while a prior's weights are frozen, then merged.

The saved model is a plain prior. Needs the extra `audiovq[lora]`.
"""

import importlib
from typing import Any

from audiovq.prior.prior import Prior
from audiovq.recipe import LoraConfig
from audiovq.utils.environment import require

TARGETS = ["qkv", "out", "gate_up", "down"]  # the matrices of each transformer layer


def add_adapters(network: Prior, config: LoraConfig) -> None:
    """Add an adapter to each matrix of the layers, and freeze all other weights but the conditioners'.

    Raises:
        ValueError: peft is not installed.
    """
    require("lora", "peft", install="pip install 'audiovq[lora]'")
    peft: Any = importlib.import_module("peft")  # here, because it imports transformers, which takes seconds
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=TARGETS, bias="none"
    )
    peft.inject_adapter_in_model(settings, network.transformer)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("conditioners."))


def merge_adapters(network: Prior) -> None:
    """Add each adapter to its matrix and remove it; the network computes the same."""
    adapted = [(name, module) for name, module in network.named_modules() if hasattr(module, "lora_A")]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, layer.get_base_layer())
    for parameter in network.parameters():
        parameter.requires_grad_(True)
