"""Roughly how long a recipe takes on this machine, known within a second: for a word before a training begins.

`estimate.py` counts every operation and times real steps; that takes longer and is what `audiovq plan` prints.
"""

from __future__ import annotations

import os
import time

import torch

from audiovq.prior.transformer import TransformerConfig
from audiovq.recipe import Recipe
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.devices import use_bf16

FLOPS_PER_WEIGHT = (
    6  # of a training step, for each position: 2 forward, 4 backward (Kaplan 2020, arXiv:2001.08361, section 2.1)
)
# Training reaches this share of a large matrix product's rate. The bundled model's tokenizer reached about this on 2 cores.
EFFICIENCY = 0.5


def rough_hours(recipe: Recipe, n_devices: int = 1) -> float:
    """Hours that the stages of a recipe train for on devices like the one at hand; codes and samples are not counted.

    Args:
        n_devices: processes that share each step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    operations = tokenizer_operations(recipe) + sum(prior_operations(recipe, i) for i in range(recipe.n_priors))
    return operations / (EFFICIENCY * matrix_rate(device, use_bf16(recipe)) * n_devices) / 3600


def tokenizer_operations(recipe: Recipe) -> float:
    """Floating-point operations of training the tokenizer, and of tuning its decoder.

    Every weight is counted at the finest level's rate, which is where most of them work.
    """
    stage = recipe.tokenizer
    n_frames = stage.crop_samples / stage.model.hop_lengths[-1]
    examples = 0 if stage.from_pretrained or recipe.codes.path else stage.training.steps * stage.training.batch_size
    if recipe.decoder_tuning and not recipe.codes.path:
        examples += recipe.decoder_tuning.training.steps * recipe.decoder_tuning.training.batch_size
    if not examples:
        return 0.0
    n_weights = sum(parameter.numel() for parameter in VQVAE(stage.model).parameters())
    return FLOPS_PER_WEIGHT * n_weights * n_frames * examples


def prior_operations(recipe: Recipe, level: int) -> float:
    """Floating-point operations of training the prior of a level."""
    stage = recipe.prior(level)
    config = stage.model.transformer
    positions = stage.training.steps * stage.training.batch_size * config.context
    attention = 12 * config.n_layers * config.dim * config.window  # of each position: both products, three passes
    return positions * (FLOPS_PER_WEIGHT * transformer_weights(config) + attention)


def transformer_weights(config: TransformerConfig) -> float:
    """Weights of its matrices: queries and output, keys and values, and the three of SwiGLU; embeddings are not counted."""
    attention = 2 * config.dim**2 + 2 * config.dim * config.kv_heads * config.head_dim
    return config.n_layers * (attention + 3 * config.mlp_ratio * config.dim**2)


def matrix_rate(device: torch.device, bf16: bool, size: int = 1024) -> float:
    """Operations per second of a product of square matrices, the best of a few."""
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
