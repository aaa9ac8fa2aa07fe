"""A rough estimate of the hours that a recipe takes on this machine, within seconds.

`audiovq plan` (`estimate.py`) counts every operation and measures real steps, which takes minutes for a large recipe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from audiovq.prior.transformer import TransformerConfig
from audiovq.recipe import Recipe
from audiovq.tokenizer.discriminators import Discriminators
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.devices import use_bf16

# Of a training step, per weight and position: 2 forward and 4 backward (Kaplan 2020, arXiv:2001.08361, section 2.1).
FLOPS_PER_WEIGHT = 6
# Passes of a decoder step through the discriminators, in forward passes: 3 for the original and 3 for the reconstruction,
# which train them, and 3 for the decoder, whose two loss terms each need a gradient.
DISCRIMINATOR_PASSES = 9
# The share of a large matrix product's speed that training reaches, roughly.
EFFICIENCY = 0.5


def rough_hours(recipe: Recipe, stages: Sequence[str], n_devices: int = 1) -> float:
    """Hours of training on devices like the one of this process. Encoding and samples are not counted.

    Args:
        stages: names of the stages to train.
        n_devices: processes that share each step.
    """
    operations = 0.0
    if "tokenizer" in stages and not recipe.tokenizer.from_pretrained and not recipe.codes.path:
        operations += tokenizer_operations(recipe)
    if "decoder" in stages and recipe.decoder_tuning and not recipe.codes.path:
        operations += decoder_operations(recipe)
    if "priors" in stages:
        operations += sum(prior_operations(recipe, level) for level in range(recipe.n_priors))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return operations / (EFFICIENCY * matrix_rate(device, use_bf16(recipe)) * n_devices) / 3600


def tokenizer_operations(recipe: Recipe) -> float:
    """Floating-point operations of training the tokenizer; all weights are counted at the rate of the finest level."""
    training = recipe.tokenizer.training
    return FLOPS_PER_WEIGHT * weights_per_crop(recipe) * training.steps * training.batch_size


def decoder_operations(recipe: Recipe) -> float:
    """Floating-point operations of the decoder stage, whose discriminators cost the most."""
    assert recipe.decoder_tuning is not None
    training, model = recipe.decoder_tuning.training, recipe.tokenizer.model
    network = Discriminators(model.channels, recipe.decoder_tuning.adversarial, model.sample_rate)
    n_samples = model.sample_rate // 16  # operations are about proportional to the length; this takes little time
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, model.channels, n_samples))
    per_crop = DISCRIMINATOR_PASSES * counter.get_total_flops() * recipe.tokenizer.crop_samples / n_samples
    per_crop += FLOPS_PER_WEIGHT * weights_per_crop(recipe)
    return per_crop * training.steps * training.batch_size


def weights_per_crop(recipe: Recipe) -> float:
    """Weights of the tokenizer times the codes of the finest level in a training crop."""
    n_weights = sum(parameter.numel() for parameter in VQVAE(recipe.tokenizer.model).parameters())
    return n_weights * recipe.tokenizer.crop_samples / recipe.tokenizer.model.hop_lengths[-1]


def prior_operations(recipe: Recipe, level: int) -> float:
    """Floating-point operations of training the prior of a level."""
    stage = recipe.prior(level)
    config = stage.model.transformer
    positions = stage.training.steps * stage.training.batch_size * config.context
    attention = 12 * config.n_layers * config.dim * config.window  # per position: two products, three passes
    return positions * (FLOPS_PER_WEIGHT * transformer_weights(config) + attention)


def transformer_weights(config: TransformerConfig) -> float:
    """Weights of the layers' matrices: queries and output, keys and values, and the three of SwiGLU."""
    attention = 2 * config.dim**2 + 2 * config.dim * config.kv_heads * config.head_dim
    return config.n_layers * (attention + 3 * config.mlp_ratio * config.dim**2)


def matrix_rate(device: torch.device, bf16: bool, size: int = 1024) -> float:
    """Floating-point operations per second of a product of square matrices, the best of five measurements."""
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def describe_machine() -> str:
    """Such as "this machine (2 CPU cores, no GPU)"."""
    if torch.cuda.is_available():
        return f"this machine ({torch.cuda.device_count()} × {torch.cuda.get_device_name(0)})"
    return f"this machine ({os.cpu_count()} CPU cores, no GPU)"
