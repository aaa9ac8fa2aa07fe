"""Mel spectrograms as pictures."""

from pathlib import Path

import librosa.display
import numpy as np
import torchaudio
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from audiovq.utils.files import atomic_file

N_MELS, WIDTH = 128, 720  # of a spectrogram
DECIBELS = (-50, 40)  # of the darkest and the brightest colour


def draw_spectrograms(waveforms: dict[str, Tensor], sample_rate: int, path: Path) -> None:
    """Write a PNG with one spectrogram below the other, each with its name.

    Args:
        waveforms: float [channels, samples] by name.
    """
    figure = Figure(figsize=(11, 2.4 * len(waveforms)))
    axes = figure.subplots(len(waveforms), 1, squeeze=False)[:, 0]
    for axis, (name, waveform) in zip(axes, waveforms.items(), strict=True):
        draw_mel(axis, waveform, sample_rate)
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel("")
    figure.tight_layout()
    with atomic_file(path, flush=False) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def draw_mel(axis: Axes, waveform: Tensor, sample_rate: int) -> None:
    """Draw a spectrogram over its time in seconds; float [channels, samples]."""
    mono = waveform.float().mean(dim=0)
    n_fft = max(256, 1 << round(np.log2(sample_rate * 0.093)))
    hop = max(1, -(-len(mono) // WIDTH))  # one column a pixel
    mel = torchaudio.transforms.MelSpectrogram(  # librosa's loads slowly
        sample_rate, n_fft, None, hop, n_mels=N_MELS, pad_mode="constant", norm="slaney", mel_scale="slaney"
    )
    decibels = (10 * mel(mono).clamp(min=1e-10).log10()).numpy()  # [mels, columns]
    scale = {"x_axis": "time", "y_axis": "mel", "vmin": DECIBELS[0], "vmax": DECIBELS[1], "cmap": "magma"}
    librosa.display.specshow(decibels, sr=sample_rate, hop_length=hop, ax=axis, **scale)
    axis.set_xlim(0, waveform.shape[1] / sample_rate)  # the last frame ends after the music
