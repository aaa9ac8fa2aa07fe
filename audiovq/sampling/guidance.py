"""A prior with what it is told about the piece, and guidance: how strongly that is followed.

logits = unsaid + guidance · (said - unsaid), from two rows of one batch for each item, with and without label, text and
chroma (classifier-free guidance, Ho & Salimans 2021, arXiv:2207.12598, equation 6; for codes of music MusicGen,
arXiv:2306.05284, section 3.1). 1 is the prior as it is and costs nothing; timing and gaps are told to both rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from audiovq.data.datasets import text_bytes
from audiovq.prior.conditioners import NO_GAP, Conditions
from audiovq.prior.kv_cache import KVCache, Prefix
from audiovq.prior.prior import Prior


class Wanted(Protocol):
    """What `sampling.generate.Request` says of the pieces."""

    n_samples: int
    labels: dict[str, int]  # index in the prior's vocabulary, a label name; 0 or absent is unknown
    text: str  # what is longer than the prior's `max_bytes` is cut
    chroma: Tensor | None  # int64 [n_frames] of a reference, one a top code; 0, or past the end, is unknown


def piece_conditions(prior: Prior, wanted: Wanted, batch: int, starts: Sequence[int] = (0,)) -> Conditions:
    """What is asked for, a row for each of `batch` pieces from each of the codes `starts` on: [starts · batch]."""
    device, beside, n_rows = prior.head.weight.device, prior.config.beside, batch * len(starts)
    full = lambda value: torch.full((n_rows,), value, dtype=torch.int64, device=device)  # noqa: E731
    position = torch.tensor(list(starts), device=device).repeat_interleave(batch)
    labels = {name: full(wanted.labels.get(name, 0)) for name in prior.spec.vocabularies}
    conditions = Conditions(labels, full(wanted.n_samples), position)
    if wanted.text and beside["text_bytes"]:
        conditions.text = text_bytes(wanted.text, beside["text_bytes"]).to(device).expand(n_rows, -1)
    if wanted.chroma is not None and beside["chroma"]:
        n_frames = -(-wanted.n_samples // prior.spec.hop_lengths[0])
        kept = wanted.chroma[:n_frames].to(device)
        conditions.chroma = torch.nn.functional.pad(kept, (0, n_frames + 1 - len(kept))).expand(n_rows, -1)
    return conditions


class GuidedPrior:
    """One level's prior while it generates a batch of pieces: each item is one row of the network's batch, or, guided, two.

    `rows` and `combine` lead from items to rows and back for whatever runs the network.
    """

    def __init__(self, prior: Prior, conditions: Conditions, guidance: float = 1.0):
        """Args: conditions: of `piece_conditions`."""
        self.prior, self.guidance = prior, guidance
        batch = len(conditions.position)
        said = any(bool(index.any()) for index in conditions.labels.values())
        said = said or conditions.text is not None or conditions.chroma is not None
        self.guided = said and guidance != 1
        self.n_rows = 2 * batch if self.guided else batch
        both = _twice(conditions) if self.guided else conditions
        self.conditions = both.only_where(torch.arange(self.n_rows, device=conditions.position.device) < batch)

    def rows(self, items: Tensor) -> Tensor:
        """[batch, ...] -> [n_rows, ...]."""
        return torch.cat([items, items]) if self.guided else items

    def combine(self, logits: Tensor) -> Tensor:
        """[n_rows, ...] -> [batch, ...]."""
        return guide(logits, self.guidance) if self.guided else logits

    def context(self, around: Tensor, start: int, end: int) -> Tensor:
        """Of codes [start, end) of each row, counted from its own first one: float [n_rows, end - start, dim].

        Args:
            start: a multiple of the prior's ratio.
            around: int64 [batch, level, n + 2·context_codes], the coarser levels from each row's first code on
                (`coarser_at_rate_above`).
        """
        prior, now = self.prior, self.conditions
        ratio, context_codes = prior.spec.ratio, prior.config.context_codes
        window = around[:, :, start // ratio : -(-end // ratio) + 2 * context_codes]
        now = dataclasses.replace(now, position=now.position + start)
        if now.chroma is not None:
            per_frame = prior.spec.hop_lengths[0] // prior.spec.hop_lengths[prior.spec.level]
            frames = torch.arange((end - start) // per_frame + 2, device=now.position.device)
            frames = (now.position[:, None] // per_frame + frames).clamp(
                max=now.chroma.shape[1] - 1
            )  # the last: unknown
            now = dataclasses.replace(now, chroma=now.chroma.gather(1, frames))
        return prior.context(self.rows(window), now, end - start).expand(self.n_rows, -1, -1)

    def prefix(self) -> Prefix | None:
        """What every code may attend to: text and the right side of a gap. None if the prior has no such conditioner."""
        return self.prior.prefix(self.conditions)

    def write_prefix(self, cache: KVCache) -> None:
        """Put what every code may attend to into a cache of `n_rows`."""
        prefix = self.prefix()
        if prefix is not None:
            cache.write_prefix(prefix)

    @property
    def hears_gaps(self) -> bool:
        """Whether the prior was trained to fill gaps (it has an infill conditioner)."""
        return self.prior.config.beside["infill_codes"] > 0

    def tell_gap(self, codes: Tensor, gap_end: int | None, cache: KVCache | None = None) -> None:
        """Say what follows the gap that ends before code `gap_end`; None: no gap any more. Prefix and later contexts change.

        Args:
            codes: int64 [batch, n_codes] of the whole piece, of which [gap_end, gap_end + infill codes) are read.
            cache: to be told, too, if it was made before.
        """
        n = self.prior.config.beside["infill_codes"]
        assert n, "the prior has no infill conditioner"
        right = codes[:, gap_end : gap_end + n] if gap_end is not None else codes[:, :0]
        right = torch.nn.functional.pad(right, (0, n - right.shape[1]), value=self.prior.spec.codebook_size)
        end = torch.full((self.n_rows,), NO_GAP if gap_end is None else gap_end, device=codes.device)
        self.conditions = dataclasses.replace(self.conditions, right=self.rows(right), gap_end=end)
        if cache is not None:
            self.write_prefix(cache)

    def tell_what_follows(self, given: Tensor, position: int, cache: KVCache) -> None:
        """Say what is given behind the next gap from `position` on, if the prior hears gaps.

        Args:
            given: int64 [batch, n_codes] of the whole piece, -1 where codes are drawn.
        """
        if not self.hears_gaps:
            return
        known = given.masked_fill(given < 0, self.prior.spec.codebook_size)
        self.tell_gap(known, gap_end_after(given, position), cache)


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Rows with and then rows without conditions, float [2·b, ...] -> [b, ...]."""
    said, unsaid = logits.float().chunk(2)
    return unsaid + guidance * (said - unsaid)


def gap_end_after(given: Tensor, start: int) -> int | None:
    """Where the first gap ends that is open at `start` or later: the `gap_end` for `tell_gap`.

    Args:
        given: int64 [batch, n_codes], -1 where a code is to be drawn.
    Returns:
        The index of the first code behind the gap that all items are given; None if there is no gap, or nothing behind it.
    """
    told = (given >= 0).all(dim=0)
    missing = (~told[start:]).nonzero()
    if not len(missing):
        return None
    first = start + int(missing[0])
    behind = told[first:].nonzero()
    return first + int(behind[0]) if len(behind) else None


def _twice(conditions: Conditions) -> Conditions:
    tensors = {name: torch.cat([x, x]) for name, x in vars(conditions).items() if isinstance(x, Tensor)}
    labels = {name: torch.cat([index, index]) for name, index in conditions.labels.items()}
    return dataclasses.replace(conditions, labels=labels, **tensors)
