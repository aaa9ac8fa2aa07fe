"""All levels of a piece as ids for a language model: one sequence, or one row per place in a frame.

A frame is the time of one code of level 0. It has that code and the codes of the finer levels in its time, coarse
to fine. With hop lengths 4, 2 and 2, frame t is a(t), b(2t), b(2t+1), c(2t), c(2t+1):

interleave  [n_frames · 5], frame after frame: code c of level i has the id i · codebook_size + c
delay       [5, n_frames + 4], place k of each frame in row k, k steps later, so that a step sees the places
            before it in its frame; ids are the codes themselves (MusicGen, arXiv:2306.05284, section 2.2.
            Differs: levels may have unequal rates)

Three ids follow those of the codes: pad, beginning and end. Pad stands where there is no code: in the last frame
behind the end of the piece, and in the corners that the delay leaves free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Pattern = Literal["interleave", "delay"]


@dataclass(frozen=True)
class Flattening:
    """Levels of codes <-> ids, both exactly. Raises ValueError for an unknown pattern."""

    hop_lengths: tuple[int, ...]
    codebook_size: int
    pattern: Pattern = "interleave"

    def __post_init__(self) -> None:
        if self.pattern not in ("interleave", "delay"):
            raise ValueError(f"pattern: expected interleave or delay, found {self.pattern!r:.40}")

    @property
    def counts(self) -> list[int]:
        """The codes of each level in a frame."""
        return [self.hop_lengths[0] // hop for hop in self.hop_lengths]

    @property
    def levels(self) -> Tensor:
        """The level of each place in a frame: int64 [frame]."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))

    @property
    def offsets(self) -> Tensor:
        """The id of code 0 at each place in a frame: int64 [frame]."""
        return self.levels * (self.codebook_size if self.pattern == "interleave" else 0)

    @property
    def pad_token_id(self) -> int:
        return self.codebook_size * (len(self.hop_lengths) if self.pattern == "interleave" else 1)

    @property
    def bos_token_id(self) -> int:
        return self.pad_token_id + 1

    @property
    def eos_token_id(self) -> int:
        return self.pad_token_id + 2

    @property
    def vocab_size(self) -> int:
        """The number of ids, with the special ones."""
        return self.pad_token_id + 3

    def flatten(self, levels: Sequence[Tensor], special: bool = False) -> Tensor:
        """int64 [n] per level -> ids, see above; with `special` between the ids of beginning and end."""
        pad, n_frames = self.pad_token_id, len(levels[0])
        frames = torch.full((n_frames, len(self.levels)), pad)
        for i, (level, count) in enumerate(zip(levels, self.counts, strict=True)):
            place = torch.full((n_frames * count,), pad)
            place[: len(level)] = level + self.offsets[self.levels == i][0]
            frames[:, self.levels == i] = place.reshape(n_frames, count)
        ids = frames.flatten() if self.pattern == "interleave" else _delayed(frames.T, pad)
        if special:
            ends = [torch.full((*ids.shape[:-1], 1), token) for token in (self.bos_token_id, self.eos_token_id)]
            ids = torch.cat([ends[0], ids, ends[1]], dim=-1)
        return ids

    def unflatten(self, ids: Tensor | np.ndarray | Sequence[int]) -> list[Tensor]:
        """Ids as from `flatten`, or generated ones -> int64 [n] per level.

        Ids of beginning and end and frames of padding around the piece may be there or not, and a last frame that
        is not whole, as after a limit of new tokens, is left out. Raises ValueError for no frame, or an id that
        cannot stand where it is.
        """
        ids = torch.as_tensor(np.asarray(ids)) if not isinstance(ids, Tensor) else ids.cpu()
        n_rows, size = (1 if self.pattern == "interleave" else len(self.levels)), len(self.levels)
        rows = ids.long()[None] if ids.ndim == 1 and self.pattern == "interleave" else ids.long()
        if rows.ndim != 2 or len(rows) != n_rows or ids.is_floating_point():
            expected = "whole numbers [n]" if n_rows == 1 else f"whole numbers [{n_rows}, n]"
            raise ValueError(f"ids: expected {expected}, found {ids.dtype} {list(ids.shape)}")
        rows = rows[:, int((rows[:1, :1] == self.bos_token_id).any()) :]
        ends = (rows == self.eos_token_id).any(dim=0).nonzero()
        rows = rows[:, : int(ends[0])] if len(ends) else rows
        if self.pattern == "delay":
            frames = torch.stack([row[k : max(k, rows.shape[1] - size + 1 + k)] for k, row in enumerate(rows)], dim=1)
        else:
            frames = rows[0, : rows.shape[1] // size * size].reshape(-1, size)
        filled = (frames != self.pad_token_id).any(dim=1).nonzero()
        frames = frames[: int(filled[-1]) + 1] if len(filled) else frames[:0]
        return [self._level(frames, i) for i in range(len(self.counts))]

    def _level(self, frames: Tensor, i: int) -> Tensor:
        """The codes of a level, without the padding behind them; ValueError for other ids."""
        mine, first = frames[:, self.levels == i].flatten(), int(self.offsets[self.levels == i][0])
        codes = mine[: int((mine != self.pad_token_id).sum())]
        wrong = codes[(codes < first) | (codes >= first + self.codebook_size)].tolist()
        if wrong or not len(codes):
            found = "padding" if not wrong or wrong[0] == self.pad_token_id else wrong[0]
            raise ValueError(f"ids of level {i}: expected {first} to {first + self.codebook_size - 1}, found {found}")
        return codes - first


def _delayed(places: Tensor, pad: int) -> Tensor:
    """[frame, n] -> [frame, n + frame - 1], row k moved by k."""
    size, n = places.shape
    rows = torch.full((size, n + size - 1), pad)
    for k, row in enumerate(places):
        rows[k, k : k + n] = row
    return rows
