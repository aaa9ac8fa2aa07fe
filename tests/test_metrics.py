"""Metrics of reconstructions on signals whose answer is known, and against plain NumPy."""

import math

import numpy as np
import pytest
import torch

from audiovq.evaluation import notes
from audiovq.evaluation.metrics import (
    CQT_FLOOR,
    MEL_WINDOWS,
    METRICS,
    _constant_q,
    _cqt_frequencies,
    chroma_distance,
    compare,
    cqt_distance,
    level_difference,
    mel_distance,
    si_sdr,
    stft_distance,
)  # fmt: skip
from audiovq.evaluation.music_statistics import music_statistics
from audiovq.tokenizer.losses import MelSpectrogram

RATE = 16000


def sine(frequency: float, seconds: float = 1.0, rate: int = RATE, amplitude: float = 0.5) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * rate)) / rate)[None]


def chord(*semitones: float, seconds: float = 2.0) -> torch.Tensor:
    """Sines that many semitones above A2, 110 Hz."""
    return torch.stack([sine(110 * 2 ** (k / 12), seconds, amplitude=0.2) for k in semitones]).sum(dim=0)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_perfect_on_equals_and_refuses_unequal_shapes(name: str) -> None:
    x, metric = torch.cat([chord(0, 4, 7), 0.3 * torch.randn(1, 2 * RATE)]), METRICS[name]  # stereo
    perfect = metric(x, x, RATE)
    assert perfect > 100 if name == "si_sdr_db" else perfect == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="equal shape"):
        metric(x, x[:, :-1], RATE)
    for n in (1, 300, 5000):  # shorter than the windows
        assert math.isfinite(metric(0.1 * x[:, :n] + 1e-3, x[:, :n], RATE))


def test_gains_cost_what_the_logarithms_say() -> None:
    x = 0.3 * torch.randn(1, RATE)  # loud at all frequencies: nothing at the floor
    assert mel_distance(2 * x, x, RATE) == pytest.approx(math.log10(2), rel=1e-3)
    assert cqt_distance(2 * x, x, RATE) == pytest.approx(math.log10(2), rel=3e-2)
    assert chroma_distance(2 * x, x, RATE) == pytest.approx(0, abs=2e-3)
    tone = sine(440)
    assert 0 < mel_distance(0.9 * tone, tone, RATE) < mel_distance(0.3 * torch.randn_like(tone), tone, RATE)
    assert mel_distance(0.1 * tone, tone, RATE) <= 1.0 + 1e-6  # a factor of ten is at most one decade


def test_level_is_the_ratio_of_powers_and_knows_too_quiet_from_too_loud() -> None:
    x = sine(440)
    assert level_difference(0.25 * x, x, RATE) == pytest.approx(-12.04, abs=0.01)
    assert level_difference(2 * x, x, RATE) == pytest.approx(6.02, abs=0.01)
    assert level_difference(0 * x, x, RATE) == pytest.approx(-60 - 20 * math.log10(0.5 / 2**0.5), abs=0.01)
    assert level_difference(1e-4 * x, 0 * x, RATE) == 0  # silence, more or less


def test_stft_distance_equals_numpy() -> None:
    a, b = 0.3 * torch.randn(2, 3000), 0.3 * torch.randn(2, 3000)

    def magnitude(w: np.ndarray, n: int) -> np.ndarray:
        padded = np.pad(w, ((0, 0), (n // 2, n // 2)), mode="reflect")
        frames = np.stack([padded[:, i : i + n] for i in range(0, 3001, n // 4)], axis=1)
        return np.abs(np.fft.rfft(frames * np.hanning(n + 1)[:-1]))

    expected = 0.0
    for n in (2048, 512):
        x, y = magnitude(a.numpy(), n), magnitude(b.numpy(), n)
        logs = np.log10(np.maximum(x, 1e-5) ** 2) - np.log10(np.maximum(y, 1e-5) ** 2)
        expected += np.abs(logs).mean() + np.abs(x - y).mean()
    assert stft_distance(a, b, RATE) == pytest.approx(expected, rel=1e-4)


def test_si_sdr_of_known_noise_and_of_any_gain() -> None:
    x = sine(440)
    noise = torch.randn_like(x)
    noise = noise - (noise * x).sum() / (x * x).sum() * x
    noisy = x + noise * (x.norm() / noise.norm()) * 10 ** (-12 / 20)
    assert si_sdr(noisy, x, RATE) == pytest.approx(12, abs=0.1)
    assert si_sdr(0.1 * noisy, x, RATE) == pytest.approx(12, abs=0.1)
    e, s = (w.double()[0].numpy() - float(w.double().mean()) for w in (noisy, x))
    projection = (e @ s) / (s @ s) * s
    expected = 10 * np.log10((projection @ projection) / ((e - projection) @ (e - projection)))
    assert si_sdr(noisy, x, RATE) == pytest.approx(expected, abs=1e-6)
    for nothing in (torch.zeros_like(x), torch.full_like(x, 0.1), torch.full_like(x, 1e-9)):  # worse than any noise
        assert si_sdr(nothing, x, RATE) == -100


@pytest.mark.parametrize("rate", [24000, 44100, 48000, 96000])
def test_no_band_of_the_mel_distance_is_empty(rate: int) -> None:
    x = 0.1 * torch.randn(1, rate // 4)
    for n_fft in MEL_WINDOWS:
        assert (MelSpectrogram(rate, n_fft)(x).amax(dim=(0, 2)) > 0).all()
    assert mel_distance(0.1 * x, x, rate) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("rate", [1000, 8000, 16000, 44100])
def test_a_full_scale_sine_has_a_constant_q_magnitude_of_one_half_in_its_own_bin(rate: int) -> None:
    frequencies = _cqt_frequencies(rate)
    assert frequencies[-1] * 1.02 < rate / 2
    for bin_ in (36, 75, len(frequencies) - 4):
        magnitudes = _constant_q(sine(frequencies[bin_], 4, rate, amplitude=1.0), rate)
        middle = magnitudes[0, :, magnitudes.shape[-1] // 2]
        assert middle.argmax() == bin_
        assert middle[bin_] == pytest.approx(0.5, rel=0.02)


def test_a_semitone_beside_is_wrong_and_an_octave_is_not() -> None:
    tone = chord(24, seconds=4.0)
    assert chroma_distance(chord(25, seconds=4.0), tone, RATE) > 0.93  # the rest: the clicks at both ends
    assert chroma_distance(chord(36, seconds=4.0), tone, RATE) < 0.05
    one_wrong = chroma_distance(chord(24, 28, seconds=4.0), chord(24, 31, seconds=4.0), RATE)
    assert one_wrong == pytest.approx(0.5, abs=0.05)  # one of two notes
    assert chroma_distance(torch.zeros_like(tone), tone, RATE) == pytest.approx(11 / 12, abs=0.06)  # uniform
    assert chroma_distance(tone, torch.zeros_like(tone), RATE) == 0


def test_constant_q_hears_blurred_low_notes_that_mel_does_not() -> None:
    """Each note becomes two, 0.7 semitones to either side, of the same loudness: a mel band holds all three."""
    notes = (0, 3, 8)
    source = chord(*notes, seconds=4.0)
    blurred = chord(*(k + d for k in notes for d in (-0.7, 0.7)), seconds=4.0) / 2**0.5
    assert METRICS["low_cqt_distance"](blurred, source, RATE) > 1.5 * mel_distance(blurred, source, RATE)
    high = sine(1760, 4.0)
    assert METRICS["low_cqt_distance"](0.5 * high, high, RATE) < 1e-3 < cqt_distance(0.5 * high, high, RATE)


def test_the_floor_of_the_constant_q_distance_is_silence() -> None:
    x = sine(440, amplitude=1.9 * CQT_FLOOR)
    assert cqt_distance(x, 0 * x, RATE) == 0


def test_windows_are_weighted_by_length_and_equal_the_whole() -> None:
    x = 0.3 * torch.randn(1, 25 * RATE)
    gains = torch.cat([torch.full((10 * RATE,), 2.0), torch.full((10 * RATE,), 1.0), torch.full((5 * RATE,), 4.0)])
    expected = (10 * math.log10(2) + 5 * math.log10(4)) / 25
    assert compare(gains * x, x, RATE, {"mel": mel_distance})["mel"] == pytest.approx(expected, rel=1e-2)
    whole = mel_distance(gains * x, x, RATE)
    assert compare(gains * x, x, RATE, {"mel": mel_distance})["mel"] == pytest.approx(whole, rel=1e-2)
    row = compare(gains[: 2 * RATE] * x[:, : 2 * RATE], x[:, : 2 * RATE], RATE)
    assert list(row) == list(METRICS)
    assert row["mel_distance"] == pytest.approx(math.log10(2), rel=1e-3)


def test_music_statistics_tell_music_from_silence_noise_and_a_tone() -> None:
    rate = RATE
    notes = torch.cat(
        [sine(220 * 2 ** (k / 12), 0.5) * torch.linspace(1, 0.05, 8000) for k in (0, 4, 7, 12, 7, 4)], dim=1
    )
    music = music_statistics(notes, rate)
    noise = music_statistics(0.1 * torch.randn(1, 48000), rate)
    tone = music_statistics(sine(440, 3.0), rate)
    silence = music_statistics(torch.zeros(1, 48000), rate)
    assert music["flatness"] < 0.01 < 0.3 < noise["flatness"]
    assert noise["chroma_entropy"] > 3 > music["chroma_entropy"]
    assert tone["chroma_change"] < 0.05 < 0.3 < music["chroma_change"]
    assert silence["rms_db"] < -100
    assert tone["rms_db"] == pytest.approx(20 * math.log10(0.5 / 2**0.5), abs=0.01)
    assert 1 < music["onsets_per_second"] < 4
    sides = music_statistics(torch.tensor([[1.0], [-1.0]]) * sine(440, 2.0, rate, 0.3), rate)  # its mean is silence
    assert sides["peak"] == pytest.approx(0.3, abs=1e-4)
    assert sides["rms_db"] == pytest.approx(20 * math.log10(0.3 / 2**0.5), abs=0.01)


def test_harmony_counts_what_there_is_and_rests_are_no_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With given notes in place of a transcription: C before a rest and C after it, then C with E, and nothing."""
    rows = [(0.0, 1.0, 60), (4.0, 6.0, 60), (5.0, 6.0, 64)]
    monkeypatch.setattr(notes, "transcribe", lambda waveform, rate: (np.array(rows, dtype=float).reshape(-1, 3), None))
    found = notes.harmony(torch.zeros(1, 8 * 100), 100)
    moments = np.arange(notes.STEP_SECONDS, 8, notes.STEP_SECONDS)
    pairs = sum(a < 1 or a >= 4 for a in moments[:-1] if a + notes.STEP_SECONDS < 6) - (
        1 - notes.STEP_SECONDS in moments
    )
    assert found["consonance"] == 1
    assert found["top_moves"] == 1 / pairs  # from C to E; not across the rest
    assert found["top_steps"] == 0
    rows.clear()
    assert notes.harmony(torch.zeros(1, 800), 100) == {
        "notes_per_second": 0, "polyphony": 0, "consonance": None, "top_moves": None, "top_steps": None,
    }  # fmt: skip
