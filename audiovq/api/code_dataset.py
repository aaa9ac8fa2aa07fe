"""`CodeDataset`: the codes of a run's tracks as examples for a model of your own."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.data.flattening import Flattening, Pattern
from audiovq.data.shards import Shards, ShardTrack
from audiovq.data.storage import is_url
from audiovq.recipe import codes_place


class CodeDataset(Dataset[dict[str, Tensor]]):
    """Flattened codes of all tracks of a data set, in order. Only what is used is read from the disk.

    An item is a dict of int64 tensors, ids as from `Codes.flatten`, [n] or with the pattern `delay` [frame, n]:

        input_ids: the codes of a track, or of `n_frames` frames of it
        labels: the same, with -100 in the place of padding, as the models of transformers take them

    >>> data = CodeDataset("runs/mine", n_frames=64)
    >>> batch = next(iter(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)))

    Args:
        source: a run, a folder of codes, or a URL of one.
        split: train, valid, or None for both.
        n_frames: cut tracks into items of so many codes of level 0, without the rest; None: an item is a whole track.
        pattern: see `audiovq.data.flattening`.
        special: put the ids of beginning and end around each item.
    Raises:
        ValueError: no codes there or damaged ones, or no item.
    """

    def __init__(
        self, source: str | Path, split: str | None = "train", n_frames: int | None = None,
        pattern: Pattern = "interleave", special: bool = False,
    ):  # fmt: skip
        if split not in ("train", "valid", None) or (n_frames is not None and n_frames < 1):
            found = f"{split!r:.40} and {n_frames}"
            raise ValueError(f"split, n_frames: expected train, valid or None, and at least 1 or None, found {found}")
        self.shards, self.n_frames, self.special = open_shards(source), n_frames, special
        index = self.shards.index
        self.flattening = Flattening(index.hop_lengths, index.codebook_size, pattern)
        self.tracks = index.tracks.of(split)
        whole = [self.tracks.lengths(i) // count for i, count in enumerate(self.flattening.counts)]
        n_items = np.min(whole, axis=0) // n_frames if n_frames else np.ones(len(self.tracks), dtype=np.int64)
        self.ends = np.cumsum(n_items)  # items up to the end of each track
        if not len(self):
            expected = f"tracks of at least {n_frames} frames" if len(self.tracks) else f"{split or ''} tracks".strip()
            raise ValueError(f"{source}: expected {expected} among the codes, found none")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.flattening.flatten(self.levels(index), self.special)
        return {"input_ids": ids, "labels": ids.masked_fill(ids == self.flattening.pad_token_id, -100)}

    def track(self, index: int) -> ShardTrack:
        """The track of an item: its path, split and labels."""
        return self.tracks[self._place(index)[0]]

    def levels(self, index: int) -> list[Tensor]:
        """The codes of an item, int64 [n] per level, which `Tokenizer.decode` takes."""
        i, first = self._place(index)
        n, track = self.n_frames, self.tracks[i]
        spans = [(first * count, (first + n) * count if n else None) for count in self.flattening.counts]
        return [torch.from_numpy(self.shards.codes(track, level, *span)) for level, span in enumerate(spans)]

    def _place(self, index: int) -> tuple[int, int]:
        """The track of an item, and the frame that it begins with."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an item from 0 to {len(self) - 1}, found {index}")
        index %= len(self)
        i = int(np.searchsorted(self.ends, index, side="right"))
        return i, (index - int(self.ends[i - 1] if i else 0)) * (self.n_frames or 0)


def open_shards(source: str | Path) -> Shards:
    """The codes of a run, in a folder or at a URL; raises as `Shards`."""
    is_run = not is_url(source) and (Path(source) / "recipe.yaml").is_file()
    return Shards(codes_place(Path(source)) if is_run else source)
