"""How close a reconstruction is, and whether a piece of audio behaves like music. Pure functions of waveforms."""

from __future__ import annotations

import math

import librosa
import numpy as np
import torch
from torch import Tensor

from audiovq.tokenizer.losses import LOG_FLOOR, MelSpectrogram

MEL_WINDOWS = (64, 128, 256, 512, 1024, 2048)


def mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Mean |Δ log10 mel| over six window sizes; 0 is perfect (DAC, arXiv:2306.06546, section 4.3, has one of its kind).

    float [channels, samples] twice.
    """
    _same_shape(reference, estimate)
    distances = []
    for n_fft in MEL_WINDOWS:
        mel = MelSpectrogram(sample_rate, n_fft)
        a, b = (mel(x.float()).clamp(min=LOG_FLOOR).log10() for x in (reference, estimate))
        distances.append(float((a - b).abs().mean()))
    return sum(distances) / len(distances)


def si_sdr(reference: Tensor, estimate: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, higher is better (Le Roux 2019, arXiv:1811.02508, eq. 5)."""
    _same_shape(reference, estimate)
    s, e = reference.double().flatten(), estimate.double().flatten()
    s, e = s - s.mean(), e - e.mean()
    target = (e @ s) / (s @ s).clamp(min=1e-12) * s
    return float(10 * torch.log10((target @ target).clamp(min=1e-12) / ((e - target) @ (e - target)).clamp(min=1e-12)))


def _same_shape(reference: Tensor, estimate: Tensor) -> None:
    if reference.shape != estimate.shape:
        raise ValueError(f"expected waveforms of equal shape, found {list(reference.shape)} and {list(estimate.shape)}")


def music_statistics(waveform: Tensor, sample_rate: int) -> dict[str, float]:
    """What tells music from silence, noise and a constant tone; float [channels, samples].

    rms_db: level, dB below full scale. peak: largest sample. clipped: share of samples at full scale.
    flatness: median spectral flatness over frames, 1 for white noise, near 0 for tones.
    chroma_entropy: mean entropy of the 12 pitch classes a frame, bits; log2 12 = 3.58 for noise, 0 for one pitch class.
    chroma_change: mean L1 distance of successive half-second mean chromas; 0 for a constant tone.
    onsets_per_second: note beginnings, by librosa's onset detector.
    """
    mono = waveform.float().mean(dim=0).numpy()
    rms = float(np.sqrt(np.mean(mono**2)))
    frames = librosa.util.frame(mono, frame_length=2048, hop_length=512) if len(mono) >= 2048 else mono[:, None]
    loud = np.sqrt((frames**2).mean(axis=0)) > 0.1 * rms
    flatness = librosa.feature.spectral_flatness(y=mono, center=False)[0][: len(loud)]
    chroma = librosa.feature.chroma_stft(y=mono, sr=sample_rate, n_fft=4096, hop_length=1024, tuning=0.0)
    p = chroma / np.maximum(chroma.sum(axis=0, keepdims=True), 1e-9)
    entropy = -(p * np.log2(np.maximum(p, 1e-9))).sum(axis=0)
    half_seconds = max(1, round(0.5 * sample_rate / 1024))
    slow = np.stack([p[:, i : i + half_seconds].mean(axis=1) for i in range(0, p.shape[1], half_seconds)])
    change = np.abs(np.diff(slow, axis=0)).sum(axis=1)
    onsets = librosa.onset.onset_detect(y=mono, sr=sample_rate)
    return {
        "rms_db": 20 * math.log10(max(rms, 1e-9)),
        "peak": float(np.abs(mono).max()),
        "clipped": float((waveform.abs() >= 0.999).float().mean()),
        "flatness": float(np.median(flatness[loud])) if loud.any() else 1.0,
        "chroma_entropy": float(entropy.mean()),
        "chroma_change": float(change.mean()) if len(change) else 0.0,
        "onsets_per_second": len(onsets) * sample_rate / len(mono),
    }
