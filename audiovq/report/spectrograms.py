"""Pictures of sound: mel spectrograms drawn by librosa."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import librosa
import librosa.display
import matplotlib
import numpy as np
import torch
import torchaudio
from torch import Tensor

from audiovq.utils.files import atomic_file

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

MELS, COLUMNS, ROWS = 128, 720, 144  # of a picture without axes
FREQUENCIES = (200, 500, 1000, 2000, 5000, 10000, 20000)  # Hz, that may be written beside it


@dataclass(frozen=True)
class Picture:
    webp: bytes
    frequencies: list[tuple[int, float]]  # Hz, and how high in the picture it is: 0 the bottom, 1 the top


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
    with atomic_file(path, flush=False) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    pyplot.close(figure)


def spectrogram_picture(waveform: Tensor, sample_rate: int) -> Picture:
    """A mel spectrogram that fills its picture, for a page that has the axes beside it; float [channels, samples]."""
    decibels, hop = mel_decibels(waveform.float().mean(dim=0), sample_rate)
    figure = Figure(figsize=(COLUMNS / 100, ROWS / 100), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    librosa.display.specshow(
        decibels, sr=sample_rate, hop_length=hop, x_axis="time", y_axis="mel", ax=axis, vmin=-50, vmax=40, cmap="magma"
    )
    axis.set_xlim(0, waveform.shape[1] / sample_rate)  # the last frame's end is beyond the music's
    axis.set_axis_off()
    heights = axis.transScale + axis.transLimits
    places: list[tuple[int, float]] = []
    for f in FREQUENCIES:
        height = float(heights.transform((0.0, f))[1])
        if 0.06 < height < 0.94 and (not places or height - places[-1][1] > 0.13):  # else there is no room to write it
            places.append((f, height))
    file = io.BytesIO()
    figure.savefig(file, format="webp", pil_kwargs={"quality": 72, "method": 4})
    return Picture(file.getvalue(), places)


def mel_decibels(mono: Tensor, sample_rate: int) -> tuple[np.ndarray, int]:
    """[mels, about COLUMNS] in dB, and the hop. Librosa's mel spectrogram, by torch: it loads seconds sooner."""
    n_fft = max(256, 1 << round(np.log2(sample_rate * 0.093)))
    hop = max(1, -(-len(mono) // COLUMNS))
    spectrum = torch.stft(
        mono, n_fft, hop, window=torch.hann_window(n_fft), center=True, pad_mode="constant", return_complex=True
    )
    filters = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, 0.0, sample_rate / 2, MELS, sample_rate, norm="slaney", mel_scale="slaney"
    )
    power = filters.T @ spectrum.abs().square()
    return (10 * power.clamp(min=1e-10).log10()).numpy(), hop
