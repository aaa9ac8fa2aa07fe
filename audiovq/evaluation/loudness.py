"""Loudness by ITU-R BS.1770-4, and the gains that make clips equally loud."""

import math
from collections.abc import Sequence

import torchaudio
from torch import Tensor

TARGET, LOWEST_TARGET = -18.0, -30.0  # LUFS
MAX_PEAK = -1.0  # dBFS


def loudness(waveform: Tensor, sample_rate: int) -> float:
    """LUFS of float [1 or 2 channels, samples], -inf for silence; a clip shorter than 0.4 s is repeated."""
    block = math.ceil(0.4 * sample_rate)
    if waveform.shape[1] < block:
        waveform = waveform.repeat(1, math.ceil(block / max(waveform.shape[1], 1)))
    # Half the amplitude, because torchaudio's filters amplify, and clip at full scale.
    level = float(torchaudio.functional.loudness(waveform / 2, sample_rate)) + 20 * math.log10(2)
    return -math.inf if math.isnan(level) else level


def headroom(waveform: Tensor) -> float:
    """The largest gain in dB that leaves peaks below -1 dBFS."""
    return MAX_PEAK - 20 * math.log10(max(float(waveform.abs().max()), 1e-9))


def normalized(waveform: Tensor, sample_rate: int, target: float) -> Tensor:
    """At the loudness `target` in LUFS, or as close to it as peaks below -1 dBFS allow; silence as it is."""
    found = loudness(waveform, sample_rate)
    return waveform * 10 ** ((min(target - found, headroom(waveform)) if found > -math.inf else 0.0) / 20)


def matching_gains(clips: Sequence[Tensor], sample_rates: Sequence[int]) -> list[float | None]:
    """The gains that make clips equally loud: -18 LUFS, or less so that no peak exceeds -1 dBFS. A clip that would
    pull the others below -30 LUFS because of its peaks stays quieter than they are instead. Clips are float [1 or 2
    channels, samples]; each has a gain in dB, or None for silence."""
    levels = [loudness(clip, rate) for clip, rate in zip(clips, sample_rates, strict=True)]
    largest = [headroom(clip) for clip in clips]
    reachable = [level + most for level, most in zip(levels, largest, strict=True) if level > -math.inf]
    target = max(LOWEST_TARGET, min([TARGET, *reachable]))
    pairs = zip(levels, largest, strict=True)
    return [min(target - level, most) if level > -math.inf else None for level, most in pairs]
