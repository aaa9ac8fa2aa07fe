"""Ancestral sampling: the top level first, then each finer one given all coarser codes. Any length.

Everything that is asked of it is a mask of given codes: nothing given is a new piece, a given beginning is continued, a
gap is filled, given coarser levels are rendered anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.sampling.engine import new_stepper
from audiovq.sampling.guidance import GuidedPrior, piece_conditions
from audiovq.sampling.journal import Journal
from audiovq.sampling.next_code import next_code
from audiovq.sampling.noise import gumbel_noise
from audiovq.sampling.segments import lay_out_segments
from audiovq.utils import signals

BLOCK = 256  # codes whose context and noise are prepared at once, and the most that are fed in one pass
CodesCallback = Callable[[int, Tensor, int], None]  # a level, its codes [items, n_codes], how many of them are final


@dataclass
class Request:
    """What is to be generated: items `items` of seed `seed`, each `n_samples` long."""

    n_samples: int
    items: list[int]
    seed: int
    labels: dict[str, int]  # index in the prior's vocabulary, a label name
    text: str = ""  # caption or lyrics
    chroma: Tensor | None = None  # int64 [n_frames], a reference's pitch classes, one a top code
    precision: str = "auto"  # of the prior's arithmetic: prior/stepper.py
    parallel: int = 1  # segments of a finer level that are generated at once: sampling/segments.py


def ignore_codes(level: int, codes: Tensor, n_done: int) -> None:
    """The listener that does not listen."""


def generate(
    priors: Sequence[Prior], picks: Sequence[SamplingConfig], request: Request, given: Sequence[Tensor] | None = None,
    on_codes: CodesCallback = ignore_codes, journal: Journal | None = None,
) -> list[Tensor]:  # fmt: skip
    """Generate the codes of the first len(priors) levels.

    Args:
        given: int64 [1 or items, n_codes] a level, -1 where the model draws; all other codes are kept as they are.
        on_codes: called after every pass through a prior.
        journal: what it holds is not drawn again, and what is drawn is written to it.
    Returns:
        int64 [items, ceil(n_samples / hop)] a level, the given codes included.
    """
    levels: list[Tensor] = []
    for level, (prior, pick) in enumerate(zip(priors, picks, strict=True)):
        shape = len(request.items), -(-request.n_samples // prior.spec.hop_lengths[level])
        told = given[level] if given else torch.full((1, shape[1]), -1)
        told = told.to(prior.head.weight.device).expand(shape)
        if journal is None and bool((told >= 0).all()):
            on_codes(level, told, shape[1])
            levels.append(told)
            continue
        levels.append(generate_level(prior, levels, told, pick, request, on_codes, journal))
    return levels


@torch.inference_mode()
def generate_level(
    prior: Prior, coarser: list[Tensor], given: Tensor, pick: SamplingConfig, request: Request, on_codes: CodesCallback = ignore_codes,
    journal: Journal | None = None, only: int | None = None,
) -> Tensor:  # fmt: skip
    """Draw what is -1 in `given` [b, n_codes], given the complete coarser levels.

    A finer level is drawn in `request.parallel` segments at once, whose rows [segments · b] are one batch; `only` draws
    one of them alone and returns [b, plan.length].

    Which positions go through the network together depends on `given` alone, never on where a run was interrupted: a
    pass over many positions and one over a single one differ in the last bits, which can tip a draw. So a resumed run
    repeats the passes after its last saved cache as they were, and ends in the same codes.
    """
    level, ratio, device = prior.spec.level, prior.spec.ratio, given.device
    batch, n_codes = given.shape
    plan = lay_out_segments(n_codes, request.parallel if level else 1, prior.config.transformer.window, ratio)
    starts = plan.starts if only is None else [plan.starts[only]]
    beyond = max(plan.starts[-1] + plan.length - n_codes, 0)
    given = F.pad(given, (0, beyond), value=-1)
    given = torch.cat([given[:, s : s + plan.length] for s in starts])  # a row for each item of each segment
    around = coarser_rows(prior, coarser, batch, n_codes + beyond, starts, plan.length)
    guided = GuidedPrior(prior, piece_conditions(prior, request, batch, starts), pick.guidance)
    stepper = new_stepper(prior, guided.n_rows, request.precision)
    guided.write_prefix(stepper.cache)
    codes = torch.full((len(given), plan.length + 1), prior.spec.codebook_size, dtype=torch.int64, device=device)
    codes[:, 1:] = given  # one later, so that codes[:, t] is what comes before position t
    n_known, fed = journal.resume(level, codes[:, 1:], stepper.cache) if journal else (0, 0)

    whole = codes[:, 1:] if len(starts) == 1 else given.new_full((batch, n_codes), -1)
    n_told = 0

    def tell(n_done: int) -> None:
        nonlocal n_told
        signals.poll()
        if len(starts) > 1:  # the first segment is a beginning of the whole
            whole[:, n_told:n_done] = codes[:batch, n_told + 1 : n_done + 1]
            n_told = n_done
        on_codes(level, whole, n_done)
        if journal:
            journal.note(level, codes[:, 1:], n_done, stepper.cache)

    for block, start, end, told in _passes(given, n_known, fed, -(-BLOCK // (len(starts) * ratio)) * ratio):
        if len(starts) == 1:
            guided.tell_what_follows(given, start, stepper.cache)
        context = guided.context(around, block.start, block.stop)[:, start - block.start : end - block.start]
        if told:
            stepper.prefill(guided.rows(codes[:, start:end]), context)
            tell(end)
            continue
        first = min(max(start, n_known), end)  # to be drawn; what is known is only fed
        noise = torch.cat([_noise(prior, request, s + first, s + end) for s in starts]).to(device)
        mixed = bool((given[:, start:end] >= 0).any())  # given to some items and not to others
        for t in range(max(start, fed), end):
            logits = guided.combine(stepper.step(guided.rows(codes[:, t]), context[:, t - start]))
            if t >= first:
                drawn = next_code(logits, noise[:, t - first], pick.temperature, pick.top_k, pick.top_p)
                codes[:, t + 1] = torch.where(given[:, t] < 0, drawn, given[:, t]) if mixed else drawn
            tell(t + 1)
    if journal:
        journal.write(level, codes[:, 1:], plan.length)
    if only is not None:
        return codes[:, 1:]
    whole = plan.join(list(codes[:, 1:].unflatten(0, (len(starts), batch))))
    on_codes(level, whole, n_codes)
    return whole


def _passes(given: Tensor, n_known: int, fed: int, block: int) -> Iterator[tuple[range, int, int, bool]]:
    """What goes through the network, in order: (block, start, end, whether all these codes are given).

    Stretches that are given to all rows go in one pass, block by block; after the last code to be drawn nothing is fed.
    Left out is what was `fed` before.
    """
    told = (given >= 0).all(dim=0).tolist()
    n_fed = max((t + 1 for t, is_told in enumerate(told) if not is_told), default=0)
    for begin in range(0, n_fed if n_fed > n_known else 0, block):
        within = range(begin, min(begin + block, n_fed))
        for key, group in itertools.groupby(within, key=told.__getitem__):
            positions = list(group)
            start, end = positions[0], positions[-1] + 1
            if (start if key else end - 1) >= fed:
                yield within, start, end, key


def coarser_at_rate_above(prior: Prior, coarser: list[Tensor], batch: int, n_codes: int) -> Tensor:
    """All coarser levels at the rate of the next coarser one, with `context_codes` codes of "outside" at both ends:
    int64 [batch, level, ceil(n_codes / ratio) + 2·context_codes]."""
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


def coarser_rows(
    prior: Prior, coarser: list[Tensor], batch: int, n_codes: int, starts: Sequence[int], length: int
) -> Tensor:
    """`coarser_at_rate_above` of the segments of `length` codes that begin at `starts`: [segments · batch, level, n]."""
    around, n = coarser_at_rate_above(prior, coarser, batch, n_codes), -(-length // prior.spec.ratio)
    first = [start // prior.spec.ratio for start in starts]
    return torch.cat([around[:, :, k : k + n + 2 * prior.config.context_codes] for k in first])


def _noise(prior: Prior, request: Request, start: int, end: int) -> Tensor:
    """[items, end - start, codebook_size]."""
    spec = prior.spec
    return torch.stack(
        [gumbel_noise(request.seed, i, spec.level, start, end, spec.codebook_size) for i in request.items]
    )
