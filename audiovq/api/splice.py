"""The original audio where all its codes stayed, with short cross-fades into the decoded waveform."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from audiovq.data.audio import downmix
from audiovq.data.resampling import Resampler
from audiovq.sampling.inpainting import CodeMask

FADE_SECONDS = 0.05
NEAR_SECONDS = 2.0  # on either side of new music, where its level is measured
MAX_GAIN, SILENCE = 4.0, 1e-6
Stretches = list[tuple[int, int]]  # (start, end) in samples


def keep_original(
    decode: Callable[[], Iterable[Tensor]],
    rate: int,
    source: Tensor,
    source_rate: int,
    mask: CodeMask,
    hop_lengths: Sequence[int],
) -> Iterator[Tensor]:
    """A recording with new music in it, in pieces [channels, any n] with the recording's rate and channels.

    A decoder may be quieter or louder than what it decodes. So new music gets the gain that the decoded
    neighbourhood needs to be as loud as the recording there, as far as it does not clip.

    Args:
        decode: gives the decoded waveform, float [any channels, any n] at `rate`; called twice.
        source: the recording, float [channels, n] at `source_rate`.
        mask: which codes were given, of a piece that begins `mask.source_start` samples before the recording.
    """
    scale, n_source = source_rate / rate, source.shape[-1]
    start = round(mask.source_start * scale)
    ends_together = mask.n_samples - mask.source_start == -(-n_source * rate // source_rate)
    n = start + n_source if ends_together else math.ceil(mask.n_samples * scale)
    given = mask.given_stretches(hop_lengths)
    stretches = [(round(a * scale), n if b == mask.n_samples else round(b * scale)) for a, b in given]

    def decoded() -> Iterator[Tensor]:
        return _converted(decode(), rate, source_rate, source.shape[0], n)

    gains = _matching_gains(decoded(), source, start, stretches, n, round(NEAR_SECONDS * source_rate))
    fade = round(FADE_SECONDS * source_rate)
    return splice(_amplified(decoded(), gains, stretches), source, start, stretches, n, fade)


def _converted(pieces: Iterable[Tensor], rate: int, new_rate: int, channels: int, n_samples: int) -> Iterator[Tensor]:
    """Pieces with another rate and number of channels, `n_samples` in all."""
    resampler, left = Resampler(rate, new_rate), n_samples

    def parts() -> Iterator[Tensor | None]:
        yield from map(resampler.push, pieces)
        yield resampler.finish()
        yield torch.zeros(1, left)  # rounding may leave a sample

    for part in parts():
        if part is not None and left:
            part = downmix(part[:, :left], channels if channels < 3 else 1).expand(channels, -1)
            left -= part.shape[-1]
            yield part


def _gaps(stretches: Stretches, n_samples: int) -> Stretches:
    """The new music between the stretches that stayed; an empty gap where there is none."""
    edges = [0, *(edge for stretch in stretches for edge in stretch), n_samples]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _matching_gains(
    decoded: Iterable[Tensor], source: Tensor, start: int, stretches: Stretches, n_samples: int, near: int
) -> list[float]:
    """A gain for each of `_gaps`; for the arguments see `splice`."""
    gaps = _gaps(stretches, n_samples)
    powers, peaks = torch.zeros(len(gaps), 2, dtype=torch.float64), torch.zeros(len(gaps))
    at = 0
    for piece in decoded:
        end = at + piece.shape[-1]
        for i, (a, b) in enumerate(gaps):
            new = piece[:, max(0, a - at) : max(0, b - at)]
            peaks[i] = torch.maximum(peaks[i], new.abs().max()) if new.numel() else peaks[i]
            for low, high in ((a - near, a), (b, b + near)):
                low, high = max(low, at, start), min(high, end, start + source.shape[-1])
                if low < high:
                    powers[i, 0] += source[:, low - start : high - start].square().sum()
                    powers[i, 1] += piece[:, low - at : high - at].square().sum()
        at = end
    gains = (powers[:, 0] / powers[:, 1]).sqrt().clamp(1 / MAX_GAIN, MAX_GAIN)
    gains = torch.where(powers.amin(dim=1) > SILENCE, gains, 1.0)
    return torch.minimum(gains, torch.clamp(1 / peaks, min=1.0)).tolist()


def _amplified(pieces: Iterable[Tensor], gains: list[float], stretches: Stretches) -> Iterator[Tensor]:
    """Each gap with its gain, which changes in the middle of a stretch, where the recording itself sounds."""
    middles, factors = torch.tensor([(a + b) // 2 for a, b in stretches]), torch.tensor(gains)
    at = 0
    for piece in pieces:
        index = torch.arange(at, at + piece.shape[-1])
        at += piece.shape[-1]
        yield piece * factors[torch.bucketize(index, middles, right=True)]


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
