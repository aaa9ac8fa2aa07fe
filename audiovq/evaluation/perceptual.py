"""A mean opinion score by Zimtohrli, a model of human hearing. Needs the extra `audiovq[perceptual]`."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional

from audiovq.data.resampling import resample

try:
    import zimtohrli  # pyright: ignore[reportMissingImports]  # of the extra "perceptual"
except ImportError:
    zimtohrli = None

SAMPLE_RATE = 48000  # of the model
SHORTEST = SAMPLE_RATE // 2  # samples; with less than 0.1 s zimtohrli 0.2.1 writes beyond its memory


def check_installed() -> None:
    """Raises ValueError if the extra is not installed."""
    if zimtohrli is None:
        raise ValueError("perceptual score: zimtohrli is missing; pip install 'audiovq[perceptual]'")


def perceptual_score(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """Estimated opinion of listeners, from 1 (bad) to 5 (no difference), mean over channels.

    A metric like those of `audiovq.evaluation.metrics`. Both waveforms are resampled to 48 kHz.

    Source: Zimtohrli, github.com/google/zimtohrli.
    """
    check_installed()
    a, b = (_prepare(w, sample_rate) for w in (reconstruction, reference))
    return float(np.mean([zimtohrli.mos_from_signals(y, x) for x, y in zip(a, b, strict=True)]))  # type: ignore[union-attr]


def _prepare(waveform: Tensor, sample_rate: int) -> np.ndarray:
    resampled = resample(waveform.detach().float().cpu(), sample_rate, SAMPLE_RATE)
    return functional.pad(resampled, (0, max(0, SHORTEST - resampled.shape[-1]))).numpy()
