"""Low-rank adapters (LoRA, arXiv:2106.09685) through peft: trained beside a prior's frozen weights, then merged into them.

What is saved is a plain prior, so whatever samples from it knows nothing of adapters. Needs the extra `audiovq[lora]`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from audiovq.prior.prior import Prior
from audiovq.recipe import LoraConfig

TARGETS = ["qkv", "out", "gate_up", "down"]  # the matrices of each layer of the transformer


def check_installed() -> None:
    """Raises ValueError if the extra is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError("lora: the package peft is missing; pip install 'audiovq[lora]'")


def add_adapters(network: Prior, config: LoraConfig) -> None:
    """Freeze all but the conditioners, whose labels may be new, and put an adapter beside each matrix of the layers."""
    check_installed()
    peft: Any = importlib.import_module("peft")  # not above: it imports transformers, which takes seconds
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=TARGETS, bias="none"
    )
    peft.inject_adapter_in_model(settings, network.transformer)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("conditioners."))


def merge_adapters(network: Prior) -> None:
    """Add each adapter to its matrix and take it away; the network computes what it did."""
    adapted = [(name, module) for name, module in network.named_modules() if hasattr(module, "lora_A")]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, layer.get_base_layer())
    for parameter in network.parameters():
        parameter.requires_grad_(True)
