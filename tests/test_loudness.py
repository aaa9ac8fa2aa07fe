"""Loudness against the standard's own test signals, and gains that match it."""

import math

import pytest
import torch

from audiovq.evaluation.loudness import MAX_PEAK, loudness, matching_gains


def sine(seconds: float, decibels: float, rate: int = 16000, hertz: float = 1000.0, channels: int = 2) -> torch.Tensor:
    wave = 10 ** (decibels / 20) * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)
    return wave.expand(channels, -1)


@pytest.mark.parametrize("rate", [48000, 44100, 16000])
def test_a_full_scale_sine_in_one_channel_is_3_01_below(rate: int) -> None:
    # BS.1770-4, annex 1; the tolerance of EBU Tech 3341
    assert loudness(sine(2, 0, rate, 997, 1), rate) == pytest.approx(-3.01, abs=0.1)


def test_the_signals_of_ebu_tech_3341() -> None:
    assert loudness(sine(20, -23), 16000) == pytest.approx(-23, abs=0.1)  # case 1
    parts = [sine(10, -36), sine(60, -23), sine(10, -36)]  # case 3: the relative gate
    assert loudness(torch.cat(parts, dim=1), 16000) == pytest.approx(-23, abs=0.1)
    parts = [sine(10, -72), *parts, sine(10, -72)]  # case 4: and the absolute one
    assert loudness(torch.cat(parts, dim=1), 16000) == pytest.approx(-23, abs=0.1)


def test_bass_counts_less_and_treble_more() -> None:
    middle, bass, treble = (loudness(sine(1, -20, hertz=hertz, rate=48000), 48000) for hertz in (1000, 40, 4000))
    assert bass < middle - 3
    assert middle + 2 < treble < middle + 4


def test_an_incomplete_block_at_the_end_does_not_count() -> None:
    whole = sine(0.6, -20, rate=11025)
    longer = torch.cat([whole, torch.zeros(2, 1000)], dim=1)
    assert loudness(longer, 11025) == pytest.approx(loudness(whole, 11025), abs=1e-9)


def test_short_and_silent_clips() -> None:
    assert loudness(sine(0.1, -20), 16000) == pytest.approx(loudness(sine(2, -20), 16000), abs=0.05)
    assert loudness(torch.zeros(1, 100), 8000) == -math.inf
    assert matching_gains([torch.zeros(1, 8000)], [8000]) == [None]


def test_gains_make_clips_equally_loud_and_never_clip() -> None:
    clips = [sine(2, -40, 48000), sine(2, -3, 48000), sine(2, -20, channels=1)]
    rates = [48000, 48000, 16000]
    gains = matching_gains(clips, rates)
    after = [clip * 10 ** ((gain or 0) / 20) for clip, gain in zip(clips, gains, strict=True)]
    assert [loudness(clip, rate) for clip, rate in zip(after, rates, strict=True)] == pytest.approx([-18] * 3, abs=0.01)
    click = torch.zeros(1, 48000)
    click[0, ::24000] = 0.5  # hardly loud, and cannot be made so
    gains = matching_gains([*clips, click], [*rates, 48000])
    assert gains[3] == pytest.approx(MAX_PEAK - 20 * math.log10(0.5), abs=0.01)
    after = [loudness(c * 10 ** ((g or 0) / 20), r) for c, g, r in zip(clips, gains, rates, strict=False)]
    assert after == pytest.approx([-30] * 3, abs=0.01)  # no further down for the sake of one clip
