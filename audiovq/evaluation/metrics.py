"""How close a reconstruction is to its source. Every metric is a function `f(reconstruction, reference, sample_rate)
-> float` of two waveforms, float [channels, samples] in [-1, 1], and raises ValueError if their shapes differ.
`METRICS` lists them."""

import functools
import math
from collections.abc import Callable, Mapping

import librosa
import numpy as np
import torch
from torch import Tensor

from audiovq.tokenizer.losses import MelSpectrogram, mean_log_difference

Metric = Callable[[Tensor, Tensor, int], float]

MEL_WINDOWS, MEL_SPECTROGRAM = (64, 128, 256, 512, 1024, 2048), functools.lru_cache(maxsize=16)(MelSpectrogram)
STFT_WINDOWS = (2048, 512)
CQT_LOWEST = 32.703  # Hz: C1
CQT_OCTAVES = 7  # up to C8, 4186 Hz; fewer at low sample rates
CQT_BINS = 36  # per octave: three per semitone, so that half a semitone is another bin
CQT_FLOOR = 1e-3  # 54 dB below a full-scale sine; less counts as silence, so that faint noise has no weight
POWER_FLOOR = 1e-6  # mean square, -60 dBFS
CHROMA_FLOOR = 1e-4  # added to every pitch class, so that silence is a uniform chroma
WINDOW_SECONDS = 10.0
WHOLE = {"si_sdr_db", "note_f1", "frame_f1"}


def mel_distance(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """Mean |Δ log10 mel magnitude| over windows of 64 to 2048 samples; 0 is perfect, a gain of ten costs 1. The
    windows are those of DAC, arXiv:2306.06546, section 3.4. Differs: the scale, and a mean over windows, no sum."""
    a, b = _pair(reconstruction, reference)
    mels = [MEL_SPECTROGRAM(sample_rate, n_fft) for n_fft in MEL_WINDOWS]
    return sum(float(mean_log_difference(mel(a), mel(b), torch.log10)) for mel in mels) / len(MEL_WINDOWS)


def stft_distance(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """Sum over windows of 2048 and 512 samples of mean |Δ log10 |X|²| + mean |Δ |X||; 0 is perfect. Source: DAC,
    arXiv:2306.06546, section 4.3, as in its released code: hops of a quarter window, magnitudes that are not
    normalised and clamped at 1e-5 in the logarithm, and the linear term."""
    a, b = _pair(reconstruction, reference)
    total = 0.0
    for n_fft in STFT_WINDOWS:
        window = torch.hann_window(n_fft)
        padding = "reflect" if a.shape[-1] > n_fft // 2 else "constant"  # short signals cannot be mirrored
        options = {"window": window, "pad_mode": padding, "return_complex": True}
        x, y = (torch.stft(w, n_fft, n_fft // 4, **options).abs() for w in (a, b))
        logarithmic = (x.clamp(min=1e-5).log10() - y.clamp(min=1e-5).log10()).abs().mean()
        total += float(2 * logarithmic + (x - y).abs().mean())  # log10 |X|² = 2 log10 |X|
    return total


def si_sdr(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio of all channels together, in dB; higher is better. Source: Le Roux
    2019, arXiv:1811.02508, equation 5, of the waveforms without their means. -100 at least, which silence has."""
    e, s = (w.double().flatten() for w in _pair(reconstruction, reference))
    s, e = s - s.mean(), e - e.mean()
    target = (e @ s) / (s @ s).clamp(min=1e-12) * s
    distortion = e - target
    ratio = (target @ target) / (distortion @ distortion).clamp(min=1e-12)
    return float(10 * torch.log10(ratio.clamp(min=1e-10)))


def level_difference(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """The level of the reconstruction relative to the reference, in dB: 0 is perfect, less is too quiet. 10 log10 of
    the ratio of mean squares; less than -60 dBFS counts as -60 dBFS. Distances of log magnitudes do not show this: a
    tokenizer that is unsure where a partial is minimises them with nearly none."""
    a, b = (w.double().square().mean().clamp(min=POWER_FLOOR) for w in _pair(reconstruction, reference))
    return float(10 * torch.log10(a / b))


def chroma_distance(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """The share of the harmony that is in wrong pitch classes: 0 is perfect, 1 has no pitch class in common. Half the
    L1 distance (total variation) between the chroma vectors of a frame, each normalised to sum 1; silence is 1/12
    everywhere. The mean over frames is weighted by the magnitude of the reference; 0 if the reference is silent.
    Chroma is librosa's `chroma_cqt`, tuned to A4 = 440 Hz."""
    chroma = functools.partial(librosa.feature.chroma_cqt, fmin=CQT_LOWEST, bins_per_octave=CQT_BINS, tuning=0.0)
    pair = (_constant_q(w, sample_rate) for w in _pair(reconstruction, reference))
    a, b = (chroma(C=spectrum, norm=None) for spectrum in pair)  # [channels, 12, frames]
    weight = b.sum(axis=-2)
    a, b = a + CHROMA_FLOOR, b + CHROMA_FLOOR
    p, q = (classes / classes.sum(axis=-2, keepdims=True) for classes in (a, b))
    return float((0.5 * np.abs(p - q).sum(axis=-2) * weight).sum() / max(weight.sum(), 1e-9))


def cqt_distance(reconstruction: Tensor, reference: Tensor, sample_rate: int, highest: float = math.inf) -> float:
    """Mean |Δ log10 magnitude| of the constant-Q transform, C1 to C8 in thirds of a semitone; 0 is perfect. Its
    filters are 51 periods long, so it resolves the semitones of low notes, which a mel spectrogram with windows of
    2048 samples does not. Only bins below `highest` Hz count. Source: Brown 1991."""
    a, b = (np.maximum(_constant_q(w, sample_rate), CQT_FLOOR) for w in _pair(reconstruction, reference))
    return float(np.abs(np.log10(a) - np.log10(b))[..., _cqt_frequencies(sample_rate) < highest, :].mean())


def _cqt_frequencies(sample_rate: int) -> np.ndarray:
    # The factor 1.1 leaves room for the width of the highest filter.
    octaves = min(CQT_OCTAVES, int(math.log2(sample_rate / 2 / CQT_LOWEST / 1.1)))
    return librosa.cqt_frequencies(n_bins=CQT_BINS * octaves, fmin=CQT_LOWEST, bins_per_octave=CQT_BINS)


def _constant_q(waveform: Tensor, sample_rate: int) -> np.ndarray:
    """Magnitudes [channels, bins, frames], about 30 ms apart; a full-scale sine has 0.5."""
    hop = 2 ** round(math.log2(0.03 * sample_rate))
    frequencies = _cqt_frequencies(sample_rate)
    lengths, _ = librosa.filters.wavelet_lengths(freqs=frequencies, sr=sample_rate)
    n = waveform.shape[-1]
    shortest = 2 ** math.ceil(math.log2(lengths.max()))  # the transform of the longest filter
    y = librosa.util.fix_length(waveform.numpy(), size=max(n, shortest))
    bins = {"fmin": CQT_LOWEST, "n_bins": len(frequencies), "bins_per_octave": CQT_BINS}
    spectrum = librosa.cqt(y, sr=sample_rate, hop_length=hop, tuning=0.0, **bins)
    return np.abs(spectrum[..., : n // hop + 1]) / np.sqrt(lengths)[:, None]


def _pair(reconstruction: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if reconstruction.shape != reference.shape or reference.ndim != 2 or reference.shape[-1] == 0:
        found = f"found {list(reconstruction.shape)} and {list(reference.shape)}"
        raise ValueError(f"expected two waveforms [channels, samples] of equal shape, {found}")
    return reconstruction.detach().float().cpu(), reference.detach().float().cpu()


METRICS: dict[str, Metric] = {
    "mel_distance": mel_distance, "stft_distance": stft_distance, "si_sdr_db": si_sdr, "level_db": level_difference,
    "chroma_distance": chroma_distance, "cqt_distance": cqt_distance,
    "low_cqt_distance": functools.partial(cqt_distance, highest=500.0),  # where tokenizers lose pitch first
}  # fmt: skip


def compare(
    reconstruction: Tensor, reference: Tensor, sample_rate: int, metrics: Mapping[str, Metric] = METRICS
) -> dict[str, float]:
    """Every metric by name: the mean over windows of 10 s, weighted by their length, at constant memory. Levels are
    so averaged in dB, and silent windows count as perfect in `chroma_distance`. Those in `WHOLE` are computed for all
    of it at once: SI-SDR has one scale for the track, and notes may sound across seams."""
    values = {}
    for name, metric in metrics.items():
        n = reference.shape[-1] if name in WHOLE else max(1, round(WINDOW_SECONDS * sample_rate))
        parts = zip(reconstruction.split(n, dim=-1), reference.split(n, dim=-1), strict=True)
        values[name] = sum(metric(a, b, sample_rate) * b.shape[-1] for a, b in parts) / reference.shape[-1]
    return values
