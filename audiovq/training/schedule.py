"""The learning rate, a function of the step, so that no scheduler state is saved."""

from __future__ import annotations

import math

from audiovq.recipe import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then a cosine to `final_fraction`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    passed = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
