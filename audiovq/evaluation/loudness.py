"""Loudness by ITU-R BS.1770-4, and the gains that make clips equally loud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyloudnorm
from torch import Tensor

TARGET, LOWEST_TARGET = -18.0, -30.0  # LUFS
MAX_PEAK = -1.0  # dBFS
STEP_SECONDS, BLOCK_STEPS = 0.1, 4  # the standard's gating block is four steps long and advances by one


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """Integrated loudness; a clip shorter than the standard's block of 0.4 s is repeated.

    Args:
        waveform: float [1 or 2 channels, samples].
    Returns:
        Loudness in LUFS; -inf for silence.
    Source: ITU-R BS.1770-4, annex 1, as measured by pyloudnorm with the filters of B. De Man, "Evaluation of
    Implementations of the EBU R128 Loudness Measurement", AES 145, 2018. They are the standard's at 48 kHz
    and keep its response at other rates.
    """
    step = STEP_SECONDS * sample_rate  # samples
    block = math.ceil(BLOCK_STEPS * step)
    if waveform.shape[1] < block:
        waveform = waveform.repeat(1, math.ceil(block / max(waveform.shape[1], 1)))
    # The standard ignores an incomplete block at the end. pyloudnorm may count it, so it is cut off.
    n_steps = int(waveform.shape[1] / step + 1e-6)
    whole = waveform[:, : math.ceil(n_steps * step)]
    meter = pyloudnorm.Meter(sample_rate, filter_class="DeMan")
    return float(meter.integrated_loudness(whole.double().T.numpy()))


@dataclass(frozen=True)
class Gain:
    """A change of level that was applied to a clip."""

    loudness: float  # LUFS before; -inf for silence
    decibels: float
    limited: bool = False  # less gain than its loudness asks for, because peaks would clip


def matching_gains(clips: Sequence[Tensor], sample_rates: Sequence[int]) -> list[Gain]:
    """The gains that make clips equally loud: -18 LUFS, or less so that no peak exceeds -1 dBFS.

    A clip that would pull the others below -30 LUFS because of its peaks stays quieter than they are instead.

    Args:
        clips: float [1 or 2 channels, samples] each.
        sample_rates: of the clips, Hz.
    """
    levels = [loudness(clip, rate) for clip, rate in zip(clips, sample_rates, strict=True)]
    largest = [MAX_PEAK - 20 * math.log10(max(float(clip.abs().max()), 1e-9)) for clip in clips]  # gains, dB
    reachable = [level + most for level, most in zip(levels, largest, strict=True) if level > -math.inf]
    target = max(LOWEST_TARGET, min([TARGET, *reachable]))
    gains = []
    for level, most in zip(levels, largest, strict=True):
        if level == -math.inf:
            gains.append(Gain(level, 0.0))
        else:
            gains.append(Gain(level, min(target - level, most), limited=most < target - level - 0.05))
    return gains
