"""Checks of the tokenizer's inputs; each raises a ValueError with what was expected and what was found."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LEVELS = 16


def check_hop_lengths(hops: Sequence[int], topology: str) -> None:
    if not 1 <= len(hops) <= MAX_LEVELS:
        raise ValueError(f"expected 1 to {MAX_LEVELS} hop_lengths, found {len(hops)}")
    found = f"found {list(hops)}"
    if min(hops) < 2 or any(a < b or a % b for a, b in itertools.pairwise(hops)):
        raise ValueError(f"hop_lengths: expected a list that never rises, each divisible by the next, {found}")
    if topology == "independent" and len(set(hops)) < len(hops):
        raise ValueError(f"hop_lengths: expected each once with topology independent, {found}; use topology residual")


def check_waveform(waveform: Tensor, channels: int, multiple: int) -> None:
    shape = list(waveform.shape)
    if waveform.ndim != 3 or shape[1] != channels or shape[2] < 1:
        raise ValueError(f"waveform: expected [batch, {channels} channels, samples > 0], found {shape}")
    if shape[2] % multiple:
        raise ValueError(f"waveform: expected a multiple of {multiple} samples, found {shape[2]}")


def check_codes(codes: Sequence[Tensor], hops: Sequence[int], codebook_size: int, n_samples: int) -> None:
    if not 1 <= len(codes) <= len(hops):
        raise ValueError(f"codes: expected 1 to {len(hops)} levels, found {len(codes)}")
    for i, (level, hop) in enumerate(zip(codes, hops, strict=False)):
        name, length = f"codes of level {i}", -(-n_samples // hop)
        if level.ndim != 2 or level.shape[1] != length:
            raise ValueError(f"{name}: expected [batch, {length}] for {n_samples} samples, found {list(level.shape)}")
        low, high = torch.aminmax(level)
        if low < 0 or high >= codebook_size:
            raise ValueError(f"{name}: expected 0 to {codebook_size - 1}, found {int(low)} to {int(high)}")
