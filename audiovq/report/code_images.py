"""A piece as a picture: its codes, one strip per level, over its mel spectrogram."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from audiovq.data.codes import Codes
from audiovq.report.spectrograms import draw_mel

WIDTH, HEIGHT, DPI = 1000, 360, 100  # pixels
LEFT, RIGHT = 0.07, 0.99  # where time begins and ends, as shares of the width
STRIPS, BOTTOM, TOP = 0.28, 0.13, 0.98  # shares of the height
NUMBER_PIXELS = 24  # a code that is at least so wide shows its number
MAX_MARKS = 160  # numbers, or lines between codes of level 0
GOLDEN_RATIO = 0.618033988749895  # gives neighbouring numbers distant colours


def draw_codes(waveform: Tensor, sample_rate: int, codes: Codes, path: Path) -> None:
    """Write a PNG in which equal codes have equal colours; float [channels, samples]."""
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
    axis = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - STRIPS - BOTTOM))
    draw_mel(axis, waveform, sample_rate)
    axis.set_ylabel("")
    axis.set_xlabel("seconds", fontsize=8)
    axis.tick_params(labelsize=8)
    begins = np.arange(1, len(codes.levels[0])) * codes.hop_lengths[0] / codes.sample_rate
    if len(begins) <= MAX_MARKS:
        axis.vlines(begins, *axis.get_ylim(), colors="white", linewidth=0.4, alpha=0.35)
    strips = figure.add_axes((LEFT, TOP - STRIPS, RIGHT - LEFT, STRIPS))
    _draw_strips(strips, codes, waveform.shape[1] / sample_rate)
    figure.savefig(path, format="png")


def _draw_strips(axis: Axes, codes: Codes, seconds: float) -> None:
    """One row of coloured cells per level, level 0 at the top."""
    n_levels = len(codes.levels)
    for row, (level, hop_length) in enumerate(zip(codes.levels, codes.hop_lengths, strict=False)):
        numbers, cell = level.numpy(), hop_length / codes.sample_rate
        colours = colormaps["turbo"](numbers * GOLDEN_RATIO % 1)[None]  # [1, n_codes, 4]
        place = (0, len(numbers) * cell, row + 1, row)
        axis.imshow(colours, extent=place, aspect="auto", interpolation="nearest", alpha=0.85)
        if cell / seconds * WIDTH * (RIGHT - LEFT) >= NUMBER_PIXELS:
            for i, number in enumerate(numbers[:MAX_MARKS]):
                middle = (i + 0.5) * cell
                if middle < seconds:
                    axis.text(middle, row + 0.5, str(number), ha="center", va="center", fontsize=7)
    axis.set(xlim=(0, seconds), ylim=(n_levels, 0), xticks=[], yticks=[i + 0.5 for i in range(n_levels)])
    axis.set_yticklabels([f"level {i}" for i in range(n_levels)], fontsize=8)
    axis.hlines(range(1, n_levels), 0, seconds, colors="white", linewidth=1.5)
