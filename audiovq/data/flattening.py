"""All levels of a piece as ids for a language model: one sequence, or one row per place in a frame.

A frame is the time of one code of level 0. It has that code and the codes of the finer levels in its time, coarse
to fine. With hop lengths 4, 2 and 2 these are five places, and the patterns are:

interleave  [n_frames · 5], frame after frame: code c of level i has the id i · codebook_size + c
delay       [5, n_frames + 4], place k in row k, k steps later, so that a step sees the places before it in its
            frame; ids are the codes themselves (MusicGen, arXiv:2306.05284, section 2.2. Differs: any rates)

Three ids follow those of the codes: padding, beginning and end. Padding stands where there is no code: in the last
frame behind the end of the piece, and in the corners that the delay leaves free.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Pattern = Literal["interleave", "delay"]


class Flattening:
    """Levels of codes <-> ids, both exactly. Raises ValueError for an unknown pattern.

    Attributes:
        counts: the codes of each level in a frame.
        levels, offsets: of each place in a frame the level, and the id of code 0: int64 [frame].
        vocab_size: the number of ids, with pad_token_id, bos_token_id and eos_token_id.
    """

    def __init__(self, hop_lengths: Sequence[int], codebook_size: int, pattern: Pattern = "interleave"):
        if pattern not in ("interleave", "delay"):
            raise ValueError(f"pattern: expected interleave or delay, found {pattern!r:.40}")
        self.codebook_size, self.is_delayed = codebook_size, pattern == "delay"
        self.counts = [hop_lengths[0] // hop for hop in hop_lengths]
        self.levels = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))
        self.offsets = self.levels * (0 if self.is_delayed else codebook_size)
        self.pad_token_id = codebook_size * (1 if self.is_delayed else len(self.counts))
        self.bos_token_id, self.eos_token_id, self.vocab_size = (self.pad_token_id + i for i in (1, 2, 3))

    def flatten(self, levels: Sequence[Tensor], special: bool = False) -> Tensor:
        """int64 [n] per level -> ids, see above; with `special` between the ids of beginning and end."""
        n, size, pad = len(levels[0]), len(self.levels), self.pad_token_id
        pairs = zip(levels, self.counts, strict=True)
        whole = [F.pad(level, (0, n * count - len(level)), value=-1).reshape(n, count) for level, count in pairs]
        frames = torch.cat(whole, dim=1)  # [n, size]
        frames = torch.where(frames < 0, pad, frames + self.offsets)
        ids = frames.flatten()
        if self.is_delayed:  # with `size` places more in each row, rows that are one shorter begin one later each
            ids = F.pad(frames.T, (0, size), value=pad).flatten()[:-size].view(size, -1)
        if special:
            ids = F.pad(F.pad(ids, (1, 0), value=self.bos_token_id), (0, 1), value=self.eos_token_id)
        return ids

    def unflatten(self, ids: Any) -> list[Tensor]:
        """Ids as from `flatten`, or generated ones, as a tensor, array or list -> int64 [n] per level. Beginning, end
        and padding around the piece may be there or not, and a last frame that is not whole is left out. Raises
        ValueError for no frame, or an id that cannot stand where it is."""
        ids = ids.cpu() if isinstance(ids, Tensor) else torch.from_numpy(np.array(ids))
        n_rows, size = len(self.levels) if self.is_delayed else 1, len(self.levels)
        rows = ids[None] if ids.ndim == 1 and not self.is_delayed else ids
        if rows.ndim != 2 or len(rows) != n_rows or ids.is_floating_point():
            expected = f"[{n_rows}, n]" if self.is_delayed else "[n]"
            raise ValueError(f"ids: expected whole numbers {expected}, found {ids.dtype} {list(ids.shape)}")
        rows = rows.long()[:, int((rows[:1, :1] == self.bos_token_id).any()) :]
        for end in (rows == self.eos_token_id).any(dim=0).nonzero()[:1].flatten().tolist():
            rows = rows[:, :end]
        if self.is_delayed:
            n = max(0, rows.shape[1] - size + 1)
            frames = torch.stack([row[k : k + n] for k, row in enumerate(rows)], dim=1)
        else:
            frames = rows[0, : rows.shape[1] // size * size].reshape(-1, size)
        last = (frames != self.pad_token_id).any(dim=1).nonzero().flatten()[-1:]
        frames = frames[: int(last) + 1 if len(last) else 0]
        return [self._codes(frames[:, self.levels == i].flatten(), i) for i in range(len(self.counts))]

    def _codes(self, ids: Tensor, level: int) -> Tensor:
        """The codes of a level, without the padding behind them; ValueError for other ids."""
        first = int(self.offsets[self.levels == level][0])
        ids = ids[: int((ids != self.pad_token_id).sum())]
        wrong = ids[(ids < first) | (ids >= first + self.codebook_size)].tolist()
        if wrong or not len(ids):
            found = "padding" if not wrong or wrong[0] == self.pad_token_id else wrong[0]
            last = first + self.codebook_size - 1
            raise ValueError(f"ids of level {level}: expected {first} to {last}, found {found}")
        return ids - first
