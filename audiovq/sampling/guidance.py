"""A prior with what it is told about the piece, and guidance: how strongly that is followed.

logits = unsaid + guidance · (said - unsaid), from two rows of one batch for each item, with and without label, text and
chroma (classifier-free guidance, Ho & Salimans 2021, arXiv:2207.12598, equation 6; for codes of music MusicGen,
arXiv:2306.05284, section 3.1). 1 is the prior as it is and costs nothing; timing and gaps are told to both rows.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from audiovq.data.datasets import text_bytes
from audiovq.prior.conditioners import NO_GAP, Conditions
from audiovq.prior.kv_cache import KVCache, Prefix
from audiovq.prior.prior import Prior


def piece_conditions(
    prior: Prior, batch: int, n_samples: int, labels: dict[str, int], text: str = "", chroma: Tensor | None = None
) -> Conditions:
    """What is asked for, of `batch` whole pieces.

    Args:
        labels: index in the prior's vocabulary, a label name; 0 or absent is unknown.
        text: caption or lyrics; what is longer than the prior's `max_bytes` is cut.
        chroma: int64 [n_frames] of a reference, one a top code of the piece from its beginning; 0, or past the end, is unknown.
    """
    device, beside = prior.head.weight.device, prior.config.beside
    full = lambda value: torch.full((batch,), value, dtype=torch.int64, device=device)  # noqa: E731
    conditions = Conditions(
        {name: full(labels.get(name, 0)) for name in prior.spec.vocabularies}, full(n_samples), full(0)
    )
    if text and beside["text_bytes"]:
        conditions.text = text_bytes(text, beside["text_bytes"]).to(device).expand(batch, -1)
    if chroma is not None and beside["chroma"]:
        n_frames = -(-n_samples // prior.spec.hop_lengths[0])
        kept = chroma[:n_frames].to(device)
        conditions.chroma = torch.nn.functional.pad(kept, (0, n_frames + 1 - len(kept))).expand(batch, -1)
    return conditions


class GuidedPrior:
    """One level's prior while it generates a batch of pieces: each item is one row of the network's batch, or, guided, two.

    `rows` and `combine` lead from items to rows and back for whatever runs the network; `new_cache` and `logits` run it here.
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
        """Of codes [start, end) of the piece: float [n_rows, end - start, dim].

        Args:
            around: int64 [batch, level, n + 2·halo], the coarser levels of the whole piece (`coarser_at_rate_above`).
        """
        prior, now = self.prior, self.conditions
        ratio, halo = prior.spec.ratio, prior.config.halo
        window = around[:, :, start // ratio : -(-end // ratio) + 2 * halo]
        if now.chroma is not None:
            per_frame = prior.spec.hop_lengths[0] // prior.spec.hop_lengths[prior.spec.level]
            now = dataclasses.replace(now, chroma=now.chroma[:, start // per_frame :])
        now = dataclasses.replace(now, position=torch.full_like(now.position, start))
        return prior.context(self.rows(window), now, end - start).expand(self.n_rows, -1, -1)

    def prefix(self) -> Prefix | None:
        """What every code may attend to: text and the right side of a gap. None if the prior has no such conditioner."""
        return self.prior.prefix(self.conditions)

    def new_cache(self) -> KVCache:
        return self.prior.new_cache(self.n_rows, self.conditions)

    def logits(self, previous: Tensor, context: Tensor, cache: KVCache) -> Tensor:
        """int64 [batch, t] and float [n_rows, t, dim] -> guided logits, float [batch, t, codebook_size]."""
        return self.combine(self.prior(self.rows(previous), context, cache))

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
        prefix = self.prefix()
        if cache is not None and prefix is not None:
            cache.write_prefix(prefix)


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
