"""Statistics that distinguish music from noise, silence and drones: level, pitch classes, onsets."""

import math

import librosa
import numpy as np
from torch import Tensor


def music_statistics(waveform: Tensor, sample_rate: int) -> dict[str, float]:
    """Statistics of a piece, float [channels, samples].

    Returns:
        rms_db: level in dB relative to full scale.
        peak: largest absolute sample.
        clipped: share of samples at full scale.
        flatness: median spectral flatness over frames, 1 for white noise, near 0 for tones.
        chroma_entropy: mean entropy of the 12 pitch classes in a frame, in bits; 3.58 for noise, 0 for one pitch class.
        chroma_change: mean L1 distance between the mean chroma of successive half seconds; 0 for a constant tone.
        onsets_per_second: of librosa's onset detector.
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
    onsets = librosa.onset.onset_detect(y=mono, sr=sample_rate)
    return {
        "rms_db": 10 * math.log10(max(float(waveform.float().square().mean()), 1e-18)),
        "peak": float(waveform.abs().max()),
        "clipped": float((waveform.abs() >= 0.999).float().mean()),
        "flatness": float(np.median(flatness[loud])) if loud.any() else 1.0,
        "chroma_entropy": float(entropy.mean()),
        "chroma_change": float(change.mean()) if len(change) else 0.0,
        "onsets_per_second": len(onsets) * sample_rate / len(mono),
    }
