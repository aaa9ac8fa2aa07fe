"""What a prior can follow besides labels: a text, and the chroma of a melody, the strongest pitch class at each moment."""

import math
from collections.abc import Iterator
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor

SILENT = 13  # pitch classes C to B are 1 to 12; 0 is unknown
QUIET = 10 ** (-60 / 20)  # root mean square below which a frame is silent: -60 dBFS
FRAMES_AT_ONCE = 1024


def chroma_classes(waveform: Tensor, sample_rate: int, hop_length: int) -> np.ndarray:
    """Float [channels, samples] -> pitch classes 1 to 13, uint8 [ceil(samples / hop_length)]. Source: MusicGen,
    arXiv:2306.05284, section 2.3 (the argmax of a chromagram). Differs: silence is a class."""
    parts = []
    for piece, n_fft, quiet in frame_blocks(waveform, sample_rate, hop_length):
        sizes: Any = {"sr": sample_rate, "n_fft": n_fft, "hop_length": hop_length}
        bands = librosa.feature.chroma_stft(y=piece, center=False, tuning=0.0, norm=None, **sizes)
        parts.append(np.where(quiet, SILENT, bands[:, : len(quiet)].argmax(axis=0) + 1))
    return np.concatenate(parts).astype(np.uint8)


def frame_blocks(waveform: Tensor, sample_rate: int, hop_length: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Blocks of float [channels, samples] for spectra, in bounded memory: the samples (mono), the length of a window,
    and which of the block's frames are silent, bool [n_frames]. The window of frame i is centred on samples [i ·
    hop_length, (i + 1) · hop_length), so that with the top level's hop frame i and top code i are at the same time."""
    mono = waveform.float().mean(dim=0).cpu().numpy()
    n_frames = -(-len(mono) // hop_length)
    # A window of about a fifth of a second, and at least one hop.
    n_fft = 1 << max(round(math.log2(0.2 * sample_rate)), (hop_length - 1).bit_length())
    lead = (n_fft - hop_length) // 2
    padded = np.pad(mono, (lead, n_fft + hop_length))
    for start in range(0, n_frames, FRAMES_AT_ONCE):
        end = min(start + FRAMES_AT_ONCE, n_frames)
        own = padded[lead + start * hop_length : lead + end * hop_length].reshape(-1, hop_length)
        piece = padded[start * hop_length : (end - 1) * hop_length + n_fft]
        yield piece, n_fft, np.sqrt((own**2).mean(axis=1)) < QUIET


def track_text(labels: dict[str, str]) -> str:
    """Caption or lyrics of a track: the label `text`, which `<name>.txt` gives, or `caption`."""
    return labels.get("text") or labels.get("caption", "")


def text_bytes(text: str, n: int) -> Tensor:
    """The first `n` UTF-8 bytes of a text, each plus 1, padded with 0: int64 [n]."""
    found = np.frombuffer(text.encode()[:n], dtype=np.uint8).astype(np.int64) + 1
    return torch.from_numpy(np.pad(found, (0, n - len(found))))
