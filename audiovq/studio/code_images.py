"""A piece to look at: its codes, one strip a level, over its mel spectrogram."""

from __future__ import annotations

from pathlib import Path

import librosa.display
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from audiovq.data.codes import Codes
from audiovq.report.spectrograms import mel_decibels

WIDTH, HEIGHT, DPI = 1000, 360, 100  # pixels
LEFT, RIGHT = 0.07, 0.99  # where time begins and ends, as shares of the width: the page lays its playhead over it
STRIPS, BOTTOM, TOP = 0.28, 0.13, 0.98  # shares of the height
NUMBER_PIXELS = 24  # a code whose cell is so wide has its number written
MOST_LINES = 160  # between top codes, down into the spectrogram
GOLDEN = 0.618033988749895  # neighbouring numbers get colours far apart


def draw_codes(waveform: Tensor, sample_rate: int, codes: Codes, path: Path) -> None:
    """Write a PNG; float [channels, samples]. The same code has the same colour wherever it is."""
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
    seconds = waveform.shape[1] / sample_rate
    axis = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - STRIPS - BOTTOM))
    decibels, hop = mel_decibels(waveform.float().mean(dim=0), sample_rate)
    librosa.display.specshow(
        decibels, sr=sample_rate, hop_length=hop, x_axis="time", y_axis="mel", ax=axis, vmin=-50, vmax=40, cmap="magma"
    )
    axis.set(xlim=(0, seconds), ylabel="")
    axis.set_xlabel("seconds", fontsize=8)
    axis.tick_params(labelsize=8)
    top = np.arange(1, len(codes.levels[0])) * codes.hop_lengths[0] / codes.sample_rate
    if len(top) <= MOST_LINES:
        axis.vlines(top, *axis.get_ylim(), colors="white", linewidth=0.4, alpha=0.35)
    strips = figure.add_axes((LEFT, TOP - STRIPS, RIGHT - LEFT, STRIPS))
    _draw_strips(strips, codes, seconds)
    figure.savefig(path, format="png")


def _draw_strips(axis: Axes, codes: Codes, seconds: float) -> None:
    """One row of coloured cells a level, the top level on top."""
    n_levels = len(codes.levels)
    for row, (level, hop) in enumerate(zip(codes.levels, codes.hop_lengths, strict=False)):
        numbers, cell = level.numpy(), hop / codes.sample_rate
        colours = colormaps["turbo"](numbers * GOLDEN % 1)[None]  # [1, n_codes, 4]
        axis.imshow(
            colours, extent=(0, len(numbers) * cell, row + 1, row), aspect="auto", interpolation="nearest", alpha=0.85
        )
        if cell / seconds * WIDTH * (RIGHT - LEFT) >= NUMBER_PIXELS:
            for i, number in enumerate(numbers[:MOST_LINES]):
                if (i + 0.5) * cell < seconds:
                    axis.text((i + 0.5) * cell, row + 0.5, str(number), ha="center", va="center", fontsize=7)
    axis.set(xlim=(0, seconds), ylim=(n_levels, 0), xticks=[], yticks=[i + 0.5 for i in range(n_levels)])
    axis.set_yticklabels([f"level {i + 1}" for i in range(n_levels)], fontsize=8)
    axis.hlines(range(1, n_levels), 0, seconds, colors="white", linewidth=1.5)
