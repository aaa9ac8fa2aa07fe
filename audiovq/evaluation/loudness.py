"""How loud music sounds: loudness after ITU-R BS.1770-4, and the gains that make clips equally loud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor

BLOCK_SECONDS, OVERLAP = 0.4, 4  # of the blocks that are gated; each begins a quarter block after the one before
SILENCE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below the mean of what is not silent
TARGET, CEILING, LOWEST = -18.0, -1.0, -30.0  # LUFS, dBFS, LUFS: see `matching_gains`


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """Integrated loudness of float [1 or 2 channels, samples] in LUFS; -inf for silence.

    What is shorter than a block of 0.4 s is repeated. Source: ITU-R BS.1770-4, annex 1.
    """
    block = round(BLOCK_SECONDS * sample_rate)
    if waveform.shape[1] < block:
        waveform = waveform.repeat(1, -(-block // max(waveform.shape[1], 1)))
    weighted = waveform.double()
    for b, a in _k_weighting(sample_rate):
        weighted = torchaudio.functional.lfilter(weighted, a, b, clamp=False)
    power = weighted.unfold(1, block, block // OVERLAP).square().mean(dim=2).sum(dim=0)  # [blocks]
    heard = power[power > _power(SILENCE)]
    heard = heard[heard > heard.mean() * 10 ** (RELATIVE_GATE / 10)]
    return -0.691 + 10 * math.log10(float(heard.mean())) if len(heard) else -math.inf


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _k_weighting(rate: int) -> list[tuple[Tensor, Tensor]]:
    """The head's shelf and the high-pass as (b, a), for any rate.

    The standard has them for 48 kHz alone; these analogue prototypes give its coefficients there (B. De Man,
    "Evaluation of Implementations of the EBU R128 Loudness Measurement", AES 145, 2018).
    """
    k, q = math.tan(math.pi * 1681.974450955533 / rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    shelf = [high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k]
    below = [1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k]
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    poles = [1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k]
    pairs = [(shelf, below), ([poles[0], -2 * poles[0], poles[0]], poles)]
    return [(torch.tensor(b).double() / a[0], torch.tensor(a).double() / a[0]) for b, a in pairs]


@dataclass(frozen=True)
class Gain:
    """What was done to a clip's level."""

    loudness: float  # LUFS before; -inf for silence
    decibels: float
    limited: bool = False  # less than it would take: peaks would clip


def matching_gains(clips: Sequence[Tensor], sample_rates: Sequence[int]) -> list[Gain]:
    """The gain of each clip that makes all equally loud, as near to -18 LUFS as no peak goes above -1 dBFS.

    Where that would be below -30 LUFS for the sake of a single peaky clip, only that clip stays quieter than the rest.
    """
    levels = [loudness(clip, rate) for clip, rate in zip(clips, sample_rates, strict=True)]
    room = [CEILING - 20 * math.log10(max(float(clip.abs().max()), 1e-9)) for clip in clips]
    audible = [(level, most) for level, most in zip(levels, room, strict=True) if level > -math.inf]
    target = max(LOWEST, min([TARGET, *(level + most for level, most in audible)]))
    return [
        Gain(level, min(target - level, most), most < target - level - 0.05) if level > -math.inf else Gain(level, 0.0)
        for level, most in zip(levels, room, strict=True)
    ]
