"""Checks of the tokenizer's inputs; each raises a ValueError with what was expected and what was found."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LEVELS = 16


def check_hop_lengths(hops: Sequence[int], topology: str) -> None:
    if not 1 <= len(hops) <= MAX_LEVELS:
        raise ValueError(f"expected 1 to {MAX_LEVELS} hop_lengths, found {len(hops)}")
    if min(hops) < 2 or any(a < b or a % b for a, b in itertools.pairwise(hops)):
        raise ValueError(
            f"hop_lengths: expected a list that never rises, each divisible by the next, found {list(hops)}"
        )
    if topology == "independent" and len(set(hops)) < len(hops):
        raise ValueError(
            f"hop_lengths: expected each once with topology independent, found {list(hops)}; use topology residual"
        )


def check_waveform(waveform: Tensor, channels: int, multiple: int) -> None:
    if waveform.ndim != 3 or waveform.shape[1] != channels or waveform.shape[-1] < 1:
        shape = list(waveform.shape)
        raise ValueError(f"waveform: expected [batch, {channels} channels, samples > 0], found {shape}")
    if waveform.shape[-1] % multiple:
        raise ValueError(f"waveform: expected a multiple of {multiple} samples, found {waveform.shape[-1]}")


def check_codes(codes: Sequence[Tensor], hops: Sequence[int], codebook_size: int, n_samples: int) -> None:
    if not 1 <= len(codes) <= len(hops):
        raise ValueError(f"codes: expected 1 to {len(hops)} levels, found {len(codes)}")
    for i, (level, hop) in enumerate(zip(codes, hops, strict=False)):
        name, length = f"codes of level {i}", -(-n_samples // hop)
        if level.ndim != 2 or level.shape[1] != length:
            shape = list(level.shape)
            raise ValueError(f"{name}: expected [batch, {length}] for {n_samples} samples, found {shape}")
        low, high = torch.aminmax(level)
        if low < 0 or high >= codebook_size:
            raise ValueError(f"{name}: expected 0 to {codebook_size - 1}, found {int(low)} to {int(high)}")
