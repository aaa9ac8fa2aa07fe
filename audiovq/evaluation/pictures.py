"""Pictures of sound: mel spectrograms drawn by librosa."""

from __future__ import annotations

from pathlib import Path

import librosa
import librosa.display
import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot


def draw_spectrograms(waveforms: dict[str, Tensor], sample_rate: int, path: Path) -> None:
    """One mel spectrogram under the other, each under its name, on one scale; float [channels, samples] each."""
    figure, axes = pyplot.subplots(len(waveforms), 1, figsize=(11, 2.4 * len(waveforms)), squeeze=False)
    for axis, (name, waveform) in zip(axes[:, 0], waveforms.items(), strict=True):
        mono = waveform.float().mean(dim=0).numpy()
        mel = librosa.feature.melspectrogram(y=mono, sr=sample_rate, n_fft=4096, hop_length=512, n_mels=160, power=2.0)
        decibels = np.asarray(librosa.power_to_db(mel, ref=1.0, top_db=None))
        librosa.display.specshow(
            decibels,
            sr=sample_rate,
            hop_length=512,
            x_axis="time",
            y_axis="mel",
            ax=axis,
            vmin=-60,
            vmax=40,
            cmap="magma",
        )
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel("")
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=80, format="png")
    temporary.replace(path)
    pyplot.close(figure)
