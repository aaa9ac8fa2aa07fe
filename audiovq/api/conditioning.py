"""What a piece is asked to follow besides labels: a text, and the chroma of a recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from audiovq.data import audio
from audiovq.data.chroma import chroma_classes
from audiovq.prior.prior import Prior


def check_text(priors: Sequence[Prior], text: str) -> None:
    """Raises ValueError if no prior reads texts, or none reads one so long."""
    most = max(prior.config.beside["text_bytes"] for prior in priors)
    if text and not most:
        raise ValueError("text: this model was trained without texts; expected a prior with a text conditioner")
    if len(text.encode()) > most:
        raise ValueError(f"text: expected at most {most} bytes in UTF-8, found {len(text.encode())}")


def reference_chroma(priors: Sequence[Prior], path: str | Path) -> Tensor:
    """The pitch classes of a recording, one a top code: int64 [n_frames].

    Raises:
        ValueError: no prior follows chroma, or audio that cannot be used.
    """
    if not any(prior.config.beside["chroma"] for prior in priors):
        raise ValueError("chroma: this model was trained without; expected a prior with a chroma conditioner")
    spec = priors[0].spec
    waveform, rate = audio.read_audio(path, spec.sample_rate)
    return torch.from_numpy(chroma_classes(waveform, rate, spec.hop_lengths[0])).long()
