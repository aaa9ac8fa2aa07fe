"""The state of one level while its codes are drawn; it hides segments, gaps, guidance and noise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.prior import Prior
from audiovq.sampling.engine import new_engine
from audiovq.sampling.guidance import GuidedPrior, gap_end_after, piece_conditions
from audiovq.sampling.noise import gumbel_noise
from audiovq.sampling.request import Request
from audiovq.sampling.segments import SegmentLayout, lay_out_segments

BLOCK = 256  # codes whose context and noise are computed at once; the largest pass through a network


class Stretch(NamedTuple):
    """Positions [start, end) of a block: given to all rows, or to be drawn for some."""

    start: int
    end: int
    given: bool
    block: range


class DecodeState:
    """The codes of a level, a row for each item or, with segments, for each item of each segment.

    Args:
        coarser: int64 [items, n_codes] per coarser level, complete.
        given: int64 [items, n_codes], -1 where a code is to be drawn.
        layout: of segments; default `request.segments`, and one for level 0.

    Attributes:
        codes: int64 [rows, 1 + n]. codes[:, t] precedes position t; the first one means "outside the track".
        n_done: positions that have been through the network and whose codes are final.
        in_prefill: whether the cache is incomplete, in the middle of `prefill`.
    """

    def __init__(
        self,
        prior: Prior,
        coarser: Sequence[Tensor],
        given: Tensor,
        request: Request,
        guidance: float = 1.0,
        layout: SegmentLayout | None = None,
    ):
        spec, (self.n_items, n_codes) = prior.spec, given.shape
        n_segments = request.segments if spec.level else 1
        self.prior, self.request = prior, request
        window = prior.config.transformer.window
        self.layout = layout or lay_out_segments(n_codes, n_segments, window, spec.ratio)
        starts, length = self.layout.starts, self.layout.length
        end = max(n_codes, starts[-1] + length)  # the last segment may reach beyond the level's end
        padded = F.pad(given, (0, end - n_codes), value=-1)
        self.given = torch.cat([padded[:, s : s + length] for s in starts])
        around = coarser_at_rate_above(prior, coarser, self.n_items, end)
        n_around = -(-length // spec.ratio) + 2 * prior.config.context_codes
        self.around = torch.cat([around[:, :, s // spec.ratio :][:, :, :n_around] for s in starts])
        self.guided = GuidedPrior(prior, piece_conditions(prior, request, self.n_items, starts), guidance)
        self.engine = new_engine(prior, self.guided.n_rows, request.precision)
        self.cache = self.engine.cache
        self.guided.write_prefix(self.cache)
        self.codes = F.pad(self.given, (1, 0), value=spec.codebook_size)
        self.n_done, self.in_prefill = 0, False
        self.sum = torch.zeros((), device=given.device)  # of all logits; it is looked at seldom, as a GPU must wait

    @property
    def final_codes(self) -> Tensor:
        """int64 [items, n_done]; with segments, those of the first segment."""
        return self.codes[: self.n_items, 1 : self.n_done + 1]

    def stretches(self) -> Iterator[Stretch]:
        """What remains to go through the network, in order; nothing after the last code to be drawn.

        Given codes go through in one pass per block. The passes depend on `given` alone, never on where a
        run was interrupted: a pass over many positions and one over a single position differ in the last
        bits, which can change a draw. So a resumed run gets the same codes.
        """
        is_given = (self.given >= 0).all(dim=0).tolist()
        n = max((t + 1 for t, found in enumerate(is_given) if not found), default=0)
        ratio = self.prior.spec.ratio
        size = -(-BLOCK // (len(self.layout.starts) * ratio)) * ratio
        for begin in range(0, n, size):
            block = range(begin, min(begin + size, n))
            for key, group in itertools.groupby(block, key=is_given.__getitem__):
                positions = list(group)
                if positions[-1] >= self.n_done:
                    yield Stretch(positions[0], positions[-1] + 1, key, block)

    def context(self, stretch: Stretch) -> Tensor:
        """Everything known besides the level's own codes, [rows, n, dim]; with guidance, twice the rows."""
        if len(self.layout.starts) == 1 and self.prior.config.extra_inputs["infill_codes"]:
            known = self.given.masked_fill(self.given < 0, self.prior.spec.codebook_size)
            self.guided.set_gap(known, gap_end_after(self.given, stretch.start))
            self.guided.write_prefix(self.cache)
        block = stretch.block
        context = self.guided.context(self.around, block.start, block.stop)
        return context[:, stretch.start - block.start : stretch.end - block.start]

    def noise(self, stretch: Stretch) -> Tensor:
        """Gumbel noise [rows, n, codebook_size]."""
        seed, spec = self.request.seed, self.prior.spec
        rows = [
            gumbel_noise(seed, item, spec.level, start + stretch.start, start + stretch.end, spec.codebook_size)
            for start in self.layout.starts
            for item in self.request.items
        ]
        return torch.stack(rows).to(self.codes.device)

    def prefill(self, stretch: Stretch, context: Tensor) -> None:
        """Put a stretch of given codes through the network."""
        self.in_prefill = True
        self.engine.prefill(self.guided.rows(self.codes[:, stretch.start : stretch.end]), context)
        self.n_done, self.in_prefill = stretch.end, False

    def step(self, t: int, context: Tensor) -> Tensor:
        """Logits [rows, codebook_size] of position t; `context` is [rows, dim]."""
        logits = self.guided.combine(self.engine.step(self.guided.rows(self.codes[:, t]), context))
        self.sum += logits.sum()
        return logits

    def check_finite(self) -> None:
        """Raises ValueError if the prior has computed NaN or infinity."""
        if not self.sum.isfinite():
            raise ValueError(
                f"prior {self.prior.spec.level}: expected finite logits, found NaN or infinity; "
                "choose precision fp32, or train the prior again"
            )

    def put(self, t: int, drawn: Tensor) -> None:
        """Set the codes of position t, int64 [rows], except where they are given."""
        self.codes[:, t + 1] = torch.where(self.given[:, t] < 0, drawn, self.given[:, t])
        self.n_done = t + 1

    def joined(self) -> Tensor:
        """The finished level, int64 [items, n_codes]."""
        return self.layout.join(list(self.codes[:, 1:].split(self.n_items)))


def coarser_at_rate_above(prior: Prior, coarser: Sequence[Tensor], batch: int, n_codes: int) -> Tensor:
    """All coarser levels at the rate of the next coarser one, with `context_codes` "outside the track" at
    both ends: int64 [batch, level, ceil(n_codes / ratio) + 2 · context_codes]."""
    spec, context_codes = prior.spec, prior.config.context_codes
    n = -(-n_codes // spec.ratio)
    rows = []
    for level in range(spec.level):
        repeats = spec.hop_lengths[level] // spec.hop_lengths[spec.level - 1]
        row = repeat(coarser[level], "b t -> b (t r)", r=repeats)[:, :n]
        rows.append(F.pad(row, (context_codes, n - row.shape[1] + context_codes), value=spec.codebook_size))
    if not rows:
        return torch.zeros(batch, 0, 0, dtype=torch.int64, device=prior.head.weight.device)
    return torch.stack(rows, dim=1)
