"""The state of one level while its codes are drawn; it hides gaps, guidance and noise."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior
from audiovq.sampling.engine import new_engine
from audiovq.sampling.guidance import GuidedPrior, Request, gap_end_after, piece_conditions
from audiovq.sampling.next_code import gumbel_noise

BLOCK = 256  # codes whose context and noise are computed at once; the largest pass through a network
SHORT_BLOCK = 16  # of several levels together: each is a block ahead of the next finer one, so that sound begins early


class Stretch(NamedTuple):
    """Positions [start, end) of a block: given to all rows, or to be drawn for some."""

    start: int
    end: int
    given: bool
    block: range


class DecodeState:
    """The codes of a level, a row for each item.

    Args:
        coarser: int64 [items, n_codes] per coarser level. They may be views of codes that are still drawn.
        given: int64 [items, n_codes], -1 where a code is to be drawn.
        block: codes whose context is computed at once; default `BLOCK`.
        endless: codes of level 0 in a block of a piece without end, whose timing stands still in the middle of
            `request.n_samples`, see `move`; 0 for one with an end.
    """

    def __init__(
        self, prior: Prior, coarser: Sequence[Tensor], given: Tensor, request: Request, guidance: float = 1.0,
        block: int | None = None, endless: int = 0,
    ):  # fmt: skip
        spec = prior.spec
        self.prior, self.request, self.coarser, self.endless = prior, request, list(coarser), endless > 0
        self.start = 0  # the piece's position of the first of these codes
        self.given, (self.n_items, self.n_codes) = given, given.shape
        is_given = (given >= 0).all(dim=0).tolist()
        self.is_given = is_given[: max((t + 1 for t, found in enumerate(is_given) if not found), default=0)]
        self.block = endless * spec.top_ratio if endless else -(-(block or BLOCK) // spec.ratio) * spec.ratio
        self.guided = GuidedPrior(prior, self.conditions(request), guidance)
        self.engine = new_engine(prior, self.guided.n_rows, request.precision)
        self.cache = self.engine.cache
        self.guided.write_prefix(self.cache)
        # int64 [items, 1 + n_codes]: codes[:, t] precedes position t; the first one means "outside the track".
        self.codes = F.pad(self.given, (1, 0), value=spec.codebook_size)
        self.n_done = 0  # positions that have been through the network and whose codes are final
        self.overwritten: deque[Tensor] = deque(maxlen=self.n_codes if endless else 0)  # by steps, for `rewind`
        self.sum = torch.zeros((), device=given.device)  # of all logits; it is looked at seldom, as a GPU must wait

    def conditions(self, request: Request) -> Conditions:
        return piece_conditions(self.prior, request, self.n_items, self.start, self.endless)

    @property
    def finished(self) -> bool:
        return self.n_done >= len(self.is_given)

    @property
    def n_known(self) -> int:
        """Codes from the first on that will not change: those done, and after the last drawn one all."""
        return self.n_codes if self.finished else self.n_done

    def stretches(self) -> Iterator[Stretch]:
        """What is left for the network, in order: given codes in one pass per block, the others one by one."""
        n = len(self.is_given)
        for begin in range(self.n_done // self.block * self.block, n, self.block):
            block = range(begin, min(begin + self.block, n))
            for key, group in itertools.groupby(block, key=self.is_given.__getitem__):
                positions = list(group)
                if positions[-1] >= self.n_done:
                    yield Stretch(positions[0], positions[-1] + 1, key, block)

    def context(self, stretch: Stretch) -> Tensor:
        """Everything known besides the level's own codes, [rows, n, dim]; with guidance, twice the rows."""
        if self.prior.config.extra_inputs["infill_codes"]:
            known = self.given.masked_fill(self.given < 0, self.prior.spec.codebook_size)
            self.guided.set_gap(known, gap_end_after(self.given, stretch.start))
            self.guided.write_prefix(self.cache)
        block = stretch.block
        place = self.n_items, self.n_codes, block.start, block.stop
        window = coarser_at_rate_above(self.prior, self.coarser, *place)
        context = self.guided.context(window, block.start, block.stop)
        return context[:, stretch.start - block.start : stretch.end - block.start]

    def noise(self, stretch: Stretch) -> Tensor:
        """Gumbel noise [rows, n, codebook_size]."""
        seed, spec = self.request.seed, self.prior.spec
        start, end = self.start + stretch.start, self.start + stretch.end
        rows = [gumbel_noise(seed, item, spec.level, start, end, spec.codebook_size) for item in self.request.items]
        return torch.stack(rows).to(self.codes.device)

    def prefill(self, stretch: Stretch, context: Tensor) -> None:
        self.engine.prefill(self.guided.rows(self.codes[:, stretch.start : stretch.end]), context)
        self.n_done = stretch.end

    def step(self, t: int, context: Tensor) -> Tensor:
        """Logits [rows, codebook_size] of position t; `context` is [rows, dim]."""
        if self.endless:
            self.overwritten.append(self.cache.both[..., self.cache.slot, :].clone())
        logits = self.guided.combine(self.engine.step(self.guided.rows(self.codes[:, t]), context))
        self.sum += logits.sum()
        return self.prior.possible(logits, self.guided.conditions.position[:1] + t)

    def check_finite(self) -> None:
        """Raises ValueError if the prior has computed NaN or infinity."""
        if not self.sum.isfinite():
            advice = "choose precision fp32, or train the prior again"
            raise ValueError(f"prior {self.prior.spec.level}: expected finite logits, found NaN or infinity; {advice}")

    def put(self, t: int, drawn: Tensor) -> None:
        """Set the codes of position t, int64 [rows], except where they are given."""
        self.codes[:, t + 1] = torch.where(self.given[:, t] < 0, drawn, self.given[:, t])
        self.n_done = t + 1

    def move(self, n: int) -> None:
        """Forget the first n codes, for a piece without end: position n becomes 0, and `start` rises."""
        kept = self.codes[:, n:].clone()
        self.codes.fill_(-1)[:, : kept.shape[1]] = kept
        self.start, self.n_done = self.start + n, self.n_done - n
        self.guided.conditions.position += n

    def rewind(self, n: int) -> None:
        """Take back the codes from position n on; the network is as it was before them, to the bit."""
        for _ in range(n, self.n_done):
            self.cache.advance(-1)
            self.cache.both[..., self.cache.slot, :] = self.overwritten.pop()
        self.n_done = n

    def change(self, request: Request, guidance: float) -> None:
        """Other conditions and another guidance from the next code on. What is without conditions in a new
        guidance has no past of its own, and takes that of the piece."""
        self.request, old = request, self.cache
        self.overwritten.clear()
        self.guided = GuidedPrior(self.prior, self.conditions(request), guidance)
        n_times = self.guided.n_rows // self.n_items
        if self.guided.n_rows != old.both.shape[2]:
            self.engine = new_engine(self.prior, self.guided.n_rows, request.precision)
            self.cache = self.engine.cache
            self.cache.both.copy_(old.both[:, :, : self.n_items].repeat(1, 1, n_times, 1, 1, 1))
            self.cache.advance(old.length)
        self.guided.write_prefix(self.cache)


def can_go_on(level: int, states: Mapping[int, DecodeState]) -> bool:
    """Whether all coarser codes are there that the next pass of a level needs."""
    state, spec = states[level], states[level].prior.spec
    stop = min((state.n_done // state.block + 1) * state.block, len(state.is_given))
    # How many codes, at the rate of the next coarser level, it needs of each coarser one.
    needed = min(-(-stop // spec.ratio) + state.prior.config.context_codes, -(-state.n_codes // spec.ratio))
    end = needed * spec.hop_lengths[level - 1]
    coarser = [(at, other) for at, other in states.items() if at < level and not other.finished]
    return all(other.n_known * spec.hop_lengths[at] >= end for at, other in coarser)


def coarser_at_rate_above(
    prior: Prior, coarser: Sequence[Tensor], batch: int, n_codes: int, start: int = 0, end: int | None = None
) -> Tensor:
    """All coarser levels at the rate of the next coarser one, for codes [start, end) of a level of `n_codes`,
    with the neighbours at both ends: int64 [batch, level, ceil((end - start) / ratio) + 2 · context_codes].
    `start` is a multiple of the prior's ratio."""
    spec, context_codes, device = prior.spec, prior.config.context_codes, prior.head.weight.device
    if not spec.level:
        return torch.zeros(batch, 0, 0, dtype=torch.int64, device=device)
    n, end = -(-n_codes // spec.ratio), n_codes if end is None else end
    index = torch.arange(start // spec.ratio - context_codes, -(-end // spec.ratio) + context_codes, device=device)
    rows = []
    for level in range(spec.level):
        at = index // (spec.hop_lengths[level] // spec.hop_lengths[spec.level - 1])
        outside = (index < 0) | (index >= n) | (at >= coarser[level].shape[1])
        row = coarser[level][:, at.clamp(0, coarser[level].shape[1] - 1)]
        rows.append(row.masked_fill(outside, spec.codebook_size))
    return torch.stack(rows, dim=1)
