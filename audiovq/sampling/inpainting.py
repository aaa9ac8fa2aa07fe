"""Which codes of a piece are given and which the model draws: continue, edit, surround, render anew, vary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiovq.data.codes import Codes


@dataclass
class CodeMask:
    """A piece of `n_samples` with holes."""

    n_samples: int
    levels: list[Tensor]  # int64 [n_codes] or [items, n_codes] a level, coarse to fine; -1 where the model draws
    source_start: int = 0  # where the first sample of the source lies in the piece

    def check(self, hop_lengths: Sequence[int], n_items: int) -> None:
        """Raises ValueError for lengths that do not fit these levels, or if nothing is left to draw on them."""
        levels = self.levels[: len(hop_lengths)]
        for i, (level, hop) in enumerate(zip(levels, hop_lengths, strict=True)):
            expected = -(-self.n_samples // hop)
            if level.ndim not in {1, 2} or level.shape[-1] != expected or (level.ndim == 2 and len(level) != n_items):
                raise ValueError(
                    f"given codes of level {i}: expected [{expected}] or [{n_items}, {expected}], found {list(level.shape)}"
                )
        if all(bool((level >= 0).all()) for level in levels):
            raise ValueError("given codes: nothing is left to draw; give a stretch, a length or fewer levels to keep")

    def kept_stretches(self, hop_lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Where the codes of all levels are given to all items: (start, end) in samples."""
        finest = hop_lengths[-1]
        n = -(-self.n_samples // finest)
        kept = torch.ones(n, dtype=torch.bool)
        for level, hop in zip(self.levels, hop_lengths, strict=True):
            told = (level >= 0) if level.ndim == 1 else (level >= 0).all(dim=0)
            kept &= told.repeat_interleave(hop // finest)[:n]
        edges = torch.diff(kept.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().flatten().tolist()
        return [(a * finest, min(b * finest, self.n_samples)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def begin_with(prompt: Codes, n_samples: int) -> CodeMask:
    """A piece of `n_samples` that begins with the whole top codes of `prompt`.

    Raises:
        ValueError: a prompt shorter than one top code, or as long as the piece.
    """
    hops, rate = prompt.hop_lengths, prompt.sample_rate
    n_kept = prompt.n_samples // hops[0] * hops[0]
    if n_kept == 0:
        raise ValueError(f"prompt: expected at least {hops[0] / rate:.3f} s, found {prompt.seconds:.3f} s")
    if prompt.n_samples >= n_samples:
        raise ValueError(
            f"seconds: expected more than the prompt's {prompt.seconds:.3f} s (the piece begins with it), "
            f"found {n_samples / rate:.3f} s"
        )
    return _laid_out(prompt, 0, n_kept, n_samples)


def surround(piece: Codes, before_seconds: float, after_seconds: float) -> CodeMask:
    """New music before and after a piece. What comes before is rounded up to whole top codes; with something after it,
    the piece's last incomplete top code is drawn anew.

    Raises:
        ValueError: negative or no seconds, or a piece shorter than one top code.
    """
    top, rate = piece.hop_lengths[0], piece.sample_rate
    if min(before_seconds, after_seconds) < 0 or not 0 < before_seconds + after_seconds < math.inf:
        raise ValueError(
            f"before, after: expected seconds of which at least one is above 0, found {before_seconds:g} and {after_seconds:g}"
        )
    before = math.ceil(before_seconds * rate / top) * top
    kept = piece.n_samples // top * top if after_seconds else piece.n_samples
    if kept == 0:
        raise ValueError(f"before, after: expected a piece of at least {top / rate:.3f} s, found {piece.seconds:.3f} s")
    return _laid_out(piece, before, kept, before + piece.n_samples + round(after_seconds * rate))


def redraw(piece: Codes, start_seconds: float, end_seconds: float, keep_levels: int = 0) -> CodeMask:
    """A stretch is drawn anew, rounded outward to whole top codes; the first `keep_levels` levels are kept even there.

    Raises:
        ValueError: a stretch that is empty or not within the piece, or levels that are not there.
    """
    if not 0 <= start_seconds < end_seconds <= piece.seconds:
        raise ValueError(
            f"from, to: expected 0 <= from < to <= {piece.seconds:.3f} s, found {start_seconds:g} and {end_seconds:g}"
        )
    _check_levels(piece, keep_levels)
    top, rate = piece.hop_lengths[0], piece.sample_rate
    start = math.floor(start_seconds * rate / top) * top
    end = min(math.ceil(end_seconds * rate / top) * top, piece.n_samples)
    given = _laid_out(piece, 0, piece.n_samples, piece.n_samples)
    for level, hop in zip(given.levels[keep_levels:], piece.hop_lengths[keep_levels:], strict=True):
        level[start // hop : -(-end // hop)] = -1
    return given


def vary(piece: Codes, keep_levels: int) -> CodeMask:
    """Keep the first `keep_levels` levels and draw all finer ones.

    Raises:
        ValueError: levels that are not there.
    """
    _check_levels(piece, keep_levels)
    given = _laid_out(piece, 0, piece.n_samples, piece.n_samples)
    for level in given.levels[keep_levels:]:
        level[:] = -1
    return given


def _laid_out(piece: Codes, start: int, n_kept: int, n_samples: int) -> CodeMask:
    """The first `n_kept` samples of a piece from sample `start` (a multiple of the top hop) of a longer one."""
    levels = []
    for i, hop in enumerate(piece.hop_lengths):
        level = torch.full((-(-n_samples // hop),), -1, dtype=torch.int64)
        if i < len(piece.levels):  # a codes file may hold the coarser levels only
            n = -(-n_kept // hop)
            level[start // hop : start // hop + n] = piece.levels[i][:n]
        levels.append(level)
    return CodeMask(n_samples, levels, start)


def _check_levels(piece: Codes, keep_levels: int) -> None:
    if not 0 <= keep_levels <= len(piece.levels):
        raise ValueError(f"keep-levels: expected 0 to {len(piece.levels)}, found {keep_levels}")
