"""Statistics that distinguish music from noise, silence and drones: level, pitch classes, onsets."""

import math

import librosa
import numpy as np
from torch import Tensor

# How well each pitch class fits a key on the first one (Krumhansl and Kessler 1982, Psychol. Rev. 89:334).
KEY_PROFILES = np.array([
    [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],  # major
    [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],  # minor
])  # fmt: skip


def key_clarity(chroma: np.ndarray) -> float:
    """Largest correlation of a chroma vector, float [12], with the profiles of the 24 keys."""
    keys = np.stack([np.roll(profile, k) for profile in KEY_PROFILES for k in range(12)])
    return float(np.corrcoef(chroma, keys)[0, 1:].max()) if chroma.std() > 1e-9 else 0.0


def music_statistics(waveform: Tensor, sample_rate: int) -> dict[str, float]:
    """Statistics of a piece.

    Args:
        waveform: float [channels, samples].
        sample_rate: Hz.
    Returns:
        rms_db: level in dB relative to full scale.
        peak: largest absolute sample.
        clipped: share of samples at full scale.
        flatness: median spectral flatness over frames, 1 for white noise, near 0 for tones.
        chroma_entropy: mean entropy of the 12 pitch classes in a frame, in bits; 3.58 for noise, 0 for one
            pitch class.
        chroma_change: mean L1 distance between the mean chroma of successive half seconds; 0 for a constant
            tone.
        key_clarity: of the mean chroma, see `key_clarity`.
        onsets_per_second: of librosa's onset detector.
        tempo: beats per minute, librosa's estimate; 0 if there are no onsets.
    """
    mono = waveform.float().mean(dim=0).numpy()
    rms = float(np.sqrt(np.mean(mono**2)))
    loud = librosa.feature.rms(y=mono, center=False)[0] > 0.1 * rms  # frames of 2048 samples
    flatness = librosa.feature.spectral_flatness(y=mono, center=False)[0]
    chroma = librosa.feature.chroma_stft(y=mono, sr=sample_rate, n_fft=4096, hop_length=1024, tuning=0.0)
    p = chroma / np.maximum(chroma.sum(axis=0, keepdims=True), 1e-9)
    entropy = -(p * np.log2(np.maximum(p, 1e-9))).sum(axis=0)
    half_seconds = max(1, round(0.5 * sample_rate / 1024))
    slow = np.stack([p[:, i : i + half_seconds].mean(axis=1) for i in range(0, p.shape[1], half_seconds)])
    change = np.abs(np.diff(slow, axis=0)).sum(axis=1)
    strength = librosa.onset.onset_strength(y=mono, sr=sample_rate)
    onsets = librosa.onset.onset_detect(onset_envelope=strength, sr=sample_rate)
    tempo = librosa.feature.tempo(onset_envelope=strength, sr=sample_rate)[0] if len(onsets) else 0.0
    return {
        "rms_db": 20 * math.log10(max(rms, 1e-9)),
        "peak": float(np.abs(mono).max()),
        "clipped": float((waveform.abs() >= 0.999).float().mean()),
        "flatness": float(np.median(flatness[loud])) if loud.any() else 1.0,
        "chroma_entropy": float(entropy.mean()),
        "chroma_change": float(change.mean()) if len(change) else 0.0,
        "key_clarity": key_clarity(p.mean(axis=1)),
        "onsets_per_second": len(onsets) * sample_rate / len(mono),
        "tempo": float(tempo),
    }
