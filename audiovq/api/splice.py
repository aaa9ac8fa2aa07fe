"""The original audio where all its codes stayed, with short cross-fades into the decoded waveform."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

FADE_SECONDS = 0.05


def splice(
    decoded: Iterable[Tensor],
    source: Tensor,
    source_start: int,
    stretches: list[tuple[int, int]],
    n_samples: int,
    fade: int,
) -> Iterator[Tensor]:
    """Lay `source` over the pieces of a decoded waveform.

    The cross-fade has equal power, since the two do not agree in phase, and lies within the stretch.

    Args:
        decoded: float [channels, any n], `n_samples` in all.
        source: float [channels, n], whose first sample is sample `source_start` of the result.
        stretches: (start, end) of the result where the source replaces the decoded waveform, in samples.
        fade: samples of a cross-fade at each end of a stretch, except at the ends of the piece.
    """
    at = 0
    for piece in decoded:
        end, mixed = at + piece.shape[-1], piece.clone()
        for start, stop in stretches:
            low, high = max(at, start), min(end, stop, source_start + source.shape[-1])
            if low < high:
                index = torch.arange(low, high)
                fade_in = (index - start + 0.5) / fade if start > 0 else torch.ones(high - low)
                fade_out = (stop - index - 0.5) / fade if stop < n_samples else torch.ones(high - low)
                angle = torch.minimum(fade_in, fade_out).clamp(0, 1) * (math.pi / 2)
                here = slice(low - at, high - at)
                original = source[:, low - source_start : high - source_start]
                faded = angle.sin() * original + angle.cos() * piece[:, here]
                mixed[:, here] = torch.where(angle >= math.pi / 2, original, faded)  # exact outside the fades
        at = end
        yield mixed
