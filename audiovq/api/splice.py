"""The original audio where all its codes stayed, with short cross-fades into the decoded waveform."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.data.audio import downmix
from audiovq.data.resampling import resample
from audiovq.sampling.inpainting import CodeMask

FADE_SECONDS = 0.05
NEAR_SECONDS = 2.0  # on either side of new music, where its level is measured
MAX_GAIN, SILENCE = 4.0, 1e-6
Stretches = list[tuple[int, int]]  # (start, end) in samples


def keep_original(
    decoded: Iterable[Tensor], rate: int, source: Tensor, source_rate: int, mask: CodeMask, hop_lengths: Sequence[int]
) -> Tensor:
    """A recording with new music in it, float [channels, n] with the recording's rate and channels.

    A decoder may be quieter or louder than what it decodes. So new music gets the gain that the decoded
    neighbourhood needs to be as loud as the recording there, as far as it does not clip.

    Args:
        decoded: the decoded waveform in pieces, float [any channels, any n] at `rate`.
        source: the recording, float [channels, n] at `source_rate`.
        mask: which codes were given, of a piece that begins `mask.source_start` samples before the recording.
    """
    scale, n_source = source_rate / rate, source.shape[-1]
    start = round(mask.source_start * scale)
    ends_together = mask.n_samples - mask.source_start == -(-n_source * rate // source_rate)
    n = start + n_source if ends_together else math.ceil(mask.n_samples * scale)
    given = mask.given_stretches(hop_lengths)
    stretches = [(round(a * scale), n if b == mask.n_samples else round(b * scale)) for a, b in given]
    converted = resample(torch.cat(list(decoded), dim=-1), rate, source_rate)[:, :n]
    converted = F.pad(converted, (0, n - converted.shape[-1]))  # rounding may leave a sample
    mixed = downmix(converted, len(source) if len(source) < 3 else 1).expand(len(source), -1).clone()
    gains = _matching_gains(mixed, source, start, stretches, round(NEAR_SECONDS * source_rate))
    edges = [0, *((a + b) // 2 for a, b in stretches), n]  # gains change where the recording itself sounds
    for gain, a, b in zip(gains, edges[:-1], edges[1:], strict=True):
        mixed[:, a:b] *= gain
    splice(mixed, source, start, stretches, round(FADE_SECONDS * source_rate))
    return mixed


def _matching_gains(decoded: Tensor, source: Tensor, start: int, stretches: Stretches, near: int) -> list[float]:
    """A gain for each gap between the stretches, at both ends, too, of the decoded waveform; see `splice`."""
    borders, gains = [0, *(border for stretch in stretches for border in stretch), decoded.shape[-1]], []
    for a, b in zip(borders[::2], borders[1::2], strict=True):
        powers = torch.zeros(2, dtype=torch.float64)  # of the recording and the decoded waveform, around the gap
        for low, high in ((max(a - near, start, 0), a), (b, min(b + near, start + source.shape[-1]))):
            for i, part in enumerate((source[:, max(0, low - start) : max(0, high - start)], decoded[:, low:high])):
                powers[i] += part.square().sum()
        gain = (powers[0] / powers[1]).sqrt().clamp(1 / MAX_GAIN, MAX_GAIN) if powers.amin() > SILENCE else 1.0
        peak = float(decoded[:, a:b].abs().max()) if b > a else 0.0
        gains.append(min(float(gain), max(1.0, 1 / max(peak, 1e-9))))
    return gains


def splice(waveform: Tensor, source: Tensor, source_start: int, stretches: Stretches, fade: int) -> None:
    """Lay `source` over stretches of a decoded waveform [channels, n], in place. The cross-fade has equal
    power, since the two do not agree in phase, and lies within the stretch.

    Args:
        source: float [channels, any n], whose first sample is sample `source_start` of the waveform.
        fade: samples of a cross-fade at each end of a stretch, except at the ends of the piece.
    """
    n = waveform.shape[-1]
    for start, stop in stretches:
        low = max(start, source_start)
        high = max(low, min(stop, n, source_start + source.shape[-1]))
        fade_in_end = max(low, min(start + fade, high)) if start > 0 else low
        fade_out_start = max(stop - fade, fade_in_end) if stop < n else high
        index = torch.cat([torch.arange(low, fade_in_end), torch.arange(fade_out_start, high)])
        ones = torch.ones(len(index))
        fade_in = (index - start + 0.5) / fade if start > 0 else ones
        fade_out = (stop - index - 0.5) / fade if stop < n else ones
        angle = torch.minimum(fade_in, fade_out).clamp(0, 1) * (math.pi / 2)
        faded = angle.sin() * source[:, index - source_start] + angle.cos() * waveform[:, index]
        waveform[:, low:high] = source[:, low - source_start : high - source_start]
        waveform[:, index] = faded
