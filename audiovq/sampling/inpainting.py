"""Which codes of a piece are given and which are drawn: continue, edit, surround, render anew, vary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiovq.data.codes import Codes

MAX_SECONDS = 24 * 3600.0  # of a piece


@dataclass
class CodeMask:
    """The codes of a piece of `n_samples`, some of which are still to be drawn."""

    n_samples: int
    levels: list[Tensor]  # int64 [n_codes] or [items, n_codes] per level; -1 where a code is to be drawn
    source_start: int = 0  # the sample of the piece where the source's first sample is

    def check(self, hop_lengths: Sequence[int], n_items: int) -> None:
        """Raises ValueError for lengths that do not fit these levels, or if there is nothing to draw."""
        levels = self.levels[: len(hop_lengths)]
        for i, (level, hop) in enumerate(zip(levels, hop_lengths, strict=True)):
            n, found = -(-self.n_samples // hop), list(level.shape)
            if found not in ([n], [n_items, n]):
                raise ValueError(f"given codes of level {i}: expected [{n}] or [{n_items}, {n}], found {found}")
        if all(bool((level >= 0).all()) for level in levels):
            raise ValueError("nothing is left to draw; give a stretch, a length, or fewer levels to keep")

    def first_new_sample(self, hop_lengths: Sequence[int]) -> int:
        """Where the first code is drawn, of any level."""
        drawn = [(level < 0).reshape(-1, level.shape[-1]).any(dim=0).nonzero() for level in self.levels]
        firsts = [int(where[0]) * hop for where, hop in zip(drawn, hop_lengths, strict=False) if len(where)]
        return min(firsts, default=0)

    def given_stretches(self, hop_lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Where the codes of all levels that are there are given to all items: (start, end) in samples."""
        finest = hop_lengths[-1]
        n = -(-self.n_samples // finest)
        all_given = torch.ones(n, dtype=torch.bool)
        for level, hop in zip(self.levels, hop_lengths, strict=False):
            given = (level >= 0).reshape(-1, level.shape[-1]).all(dim=0)
            all_given &= given.repeat_interleave(hop // finest)[:n]
        zero = torch.zeros(1)
        edges = (torch.diff(all_given.int(), prepend=zero, append=zero).nonzero().flatten() * finest).tolist()
        return [(start, min(end, self.n_samples)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def begin_with(prompt: Codes, n_samples: int) -> CodeMask:
    """A piece of `n_samples` that starts with the whole codes of level 0 of `prompt`, or whole patches. Raises ValueError
    for a prompt shorter than one of them, or as long as the piece."""
    multiple, rate = prompt.multiple, prompt.sample_rate
    n_given = prompt.n_samples // multiple * multiple
    if n_given == 0:
        raise ValueError(f"prompt: expected at least {multiple / rate:.3f} s, found {prompt.seconds:.3f} s")
    if prompt.n_samples >= n_samples:
        expected = f"more than the prompt's {prompt.seconds:.3f} s (the piece begins with it)"
        raise ValueError(f"seconds: expected {expected}, found {n_samples / rate:.3f} s")
    return _lay_out(prompt, 0, n_given, n_samples)


def surround(piece: Codes, before_seconds: float, after_seconds: float) -> CodeMask:
    """New music before and after a piece. The length before is rounded up to whole codes of level 0 or patches; with
    music after, an incomplete last one is drawn anew. ValueError for negative or no seconds, or too short a piece."""
    top, rate = piece.multiple, piece.sample_rate
    if min(before_seconds, after_seconds) < 0 or not 0 < before_seconds + after_seconds <= MAX_SECONDS:
        found = f"found {before_seconds:g} and {after_seconds:g}"
        expected = f"none negative and together above 0 and up to {MAX_SECONDS:g}"
        raise ValueError(f"before, after: expected seconds of new music, {expected}, {found}")
    before = math.ceil(before_seconds * rate / top) * top
    n_given = piece.n_samples // top * top if after_seconds else piece.n_samples
    if n_given == 0:
        raise ValueError(f"before, after: expected a piece of at least {top / rate:.3f} s, found {piece.seconds:.3f} s")
    return _lay_out(piece, before, n_given, before + piece.n_samples + round(after_seconds * rate))


def redraw(piece: Codes, start_seconds: float, end_seconds: float, keep_levels: int = 0) -> CodeMask:
    """A stretch is drawn anew, rounded outward to whole codes of level 0 or patches; there only the first
    `keep_levels` stay. ValueError for a stretch that is empty or not within the piece, or wrong levels."""
    if not 0 <= start_seconds < end_seconds <= piece.seconds:
        expected, found = f"within the piece of {piece.seconds:g} s", f"{start_seconds:g} to {end_seconds:g} s"
        raise ValueError(f"the stretch must begin before it ends, {expected}; found {found}")
    if not 0 <= keep_levels <= len(piece.levels):
        raise ValueError(f"keep-levels: expected 0 to {len(piece.levels)}, found {keep_levels}")
    top, rate = piece.multiple, piece.sample_rate
    start = math.floor(start_seconds * rate / top) * top
    end = min(math.ceil(end_seconds * rate / top) * top, piece.n_samples)
    mask = _lay_out(piece, 0, piece.n_samples, piece.n_samples)
    for level, hop in zip(mask.levels[keep_levels:], piece.hop_lengths[keep_levels:], strict=True):
        level[start // hop : -(-end // hop)] = -1
    return mask


def _lay_out(piece: Codes, start: int, n_given: int, n_samples: int) -> CodeMask:
    """The first `n_given` samples of a piece at sample `start`, a multiple of the top hop, of `n_samples`."""
    levels = []
    for i, hop in enumerate(piece.hop_lengths):
        level = torch.full((-(-n_samples // hop),), -1, dtype=torch.int64)
        if i < len(piece.levels):  # a codes file may have the coarser levels only
            n = -(-n_given // hop)
            level[start // hop : start // hop + n] = piece.levels[i][:n]
        levels.append(level)
    return CodeMask(n_samples, levels, start)
