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

from audiovq.prior.prior import Prior
from audiovq.recipe import PickConfig
from audiovq.sampling.journal import Journal
from audiovq.sampling.next_code import next_code
from audiovq.sampling.noise import gumbel_noise
from audiovq.sampling.steps import Steps

BLOCK = 256  # codes whose context and noise are prepared at once, and the most that are fed in one pass
Listener = Callable[[int, Tensor, int], None]  # a level, its codes [items, n_codes], how many of them are final


@dataclass
class Request:
    """What is to be generated: items `items` of seed `seed`, each `n_samples` long."""

    n_samples: int
    items: list[int]
    seed: int
    labels: dict[str, int]  # index in the prior's vocabulary, a label name
    text: str = ""  # caption or lyrics
    chroma: Tensor | None = None  # int64 [n_frames], a reference's pitch classes, one a top code


def nobody(level: int, codes: Tensor, n_done: int) -> None:
    """The listener that does not listen."""


def generate(
    priors: Sequence[Prior], picks: Sequence[PickConfig], request: Request, given: Sequence[Tensor] | None = None,
    on_codes: Listener = nobody, journal: Journal | None = None,
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
        levels.append(generate_level(prior, levels, told, pick, request, on_codes, journal))
    return levels


@torch.inference_mode()
def generate_level(
    prior: Prior, coarser: list[Tensor], given: Tensor, pick: PickConfig, request: Request, on_codes: Listener = nobody,
    journal: Journal | None = None,
) -> Tensor:  # fmt: skip
    """Draw what is -1 in `given` [b, n_codes], given the complete coarser levels.

    Which positions go through the network together depends on `given` alone, never on where a run was interrupted: a
    pass over many positions and one over a single one differ in the last bits, which can tip a draw. So a resumed run
    repeats the passes after its last saved cache as they were, and ends in the same codes.
    """
    batch, n_codes = given.shape
    level, device = prior.spec.level, given.device
    codes = torch.full((batch, n_codes + 1), prior.spec.codebook_size, dtype=torch.int64, device=device)
    codes[:, 1:] = given  # one later, so that codes[:, t] is what comes before position t
    steps = Steps(prior, batch)
    n_known, fed = journal.resume(level, codes[:, 1:], steps.cache) if journal else (0, 0)
    around = coarser_at_rate_above(prior, coarser, batch, n_codes)

    def tell(n_done: int) -> None:
        on_codes(level, codes[:, 1:], n_done)
        if journal:
            journal.note(level, codes[:, 1:], n_done, steps.cache)

    for block, runs in _passes(given, n_known, -(-BLOCK // prior.spec.ratio) * prior.spec.ratio):
        if block.stop <= fed:
            continue
        context = level_context(prior, around, request, batch, block.start, block.stop)
        for start, end, told in runs:
            here = context[:, start - block.start : end - block.start]
            if told and start >= fed:
                steps.prefill(codes[:, start:end], here)
                tell(end)
            elif not told:
                first = min(max(start, n_known), end)  # to be drawn; what is known is only fed
                noise = _noise(prior, request, first, end).to(device)
                mixed = bool((given[:, start:end] >= 0).any())  # given to some items and not to others
                for t in range(max(start, fed), end):
                    logits = steps.step(codes[:, t], here[:, t - start])
                    if t >= first:
                        drawn = next_code(logits, noise[:, t - first], pick.temperature, pick.top_k, pick.top_p)
                        codes[:, t + 1] = torch.where(given[:, t] < 0, drawn, given[:, t]) if mixed else drawn
                    tell(t + 1)
    on_codes(level, codes[:, 1:], n_codes)
    if journal:
        journal.write(level, codes[:, 1:], n_codes)
    return codes[:, 1:]


def _passes(given: Tensor, n_known: int, block: int) -> Iterator[tuple[range, list[tuple[int, int, bool]]]]:
    """What is fed when: block after block, and in each the runs (start, end, whether all their codes are given).

    Stretches that are given to all items go through the network in one pass; after the last code to be drawn nothing is
    fed. Time order is all that a causal prior can use: the codes after a gap are kept, not heard.
    """
    told = (given >= 0).all(dim=0).tolist()
    n_fed = max((t + 1 for t, is_told in enumerate(told) if not is_told), default=0)
    for start in range(0, n_fed if n_fed > n_known else 0, block):
        end = min(start + block, n_fed)
        groups = [(key, list(group)) for key, group in itertools.groupby(range(start, end), key=told.__getitem__)]
        yield range(start, end), [(group[0], group[-1] + 1, key) for key, group in groups]


def coarser_at_rate_above(prior: Prior, coarser: list[Tensor], batch: int, n_codes: int) -> Tensor:
    """All coarser levels at the rate of the next coarser one, with `halo` codes of "outside" at both ends."""
    spec, halo = prior.spec, prior.config.halo
    n = -(-n_codes // spec.ratio)
    rows = []
    for level in range(spec.level):
        repeats = spec.hop_lengths[level] // spec.hop_lengths[spec.level - 1]
        rows.append(repeat(coarser[level], "b t -> b (t r)", r=repeats)[:, :n])
    if not rows:
        return torch.zeros(batch, 0, 0, dtype=torch.int64, device=prior.head.weight.device)
    return torch.nn.functional.pad(torch.stack(rows, dim=1), (halo, halo), value=spec.codebook_size)


def level_context(prior: Prior, around: Tensor, request: Request, batch: int, start: int, end: int) -> Tensor:
    """What the prior is told at positions [start, end) besides the codes before: [batch, end - start, dim].

    `around` is of `coarser_at_rate_above`; `start` is a multiple of the prior's ratio.
    """
    ratio, halo, device = prior.spec.ratio, prior.config.halo, around.device
    window = around[:, :, start // ratio : -(-end // ratio) + 2 * halo]
    labels = {
        name: torch.full((batch,), request.labels.get(name, 0), dtype=torch.int64, device=device)
        for name in prior.spec.vocabularies
    }
    conditions = Conditions(
        labels,
        torch.full((batch,), request.n_samples, dtype=torch.int64, device=device),
        torch.full((batch,), start, dtype=torch.int64, device=device),
    )
    return prior.context(window, conditions, end - start).expand(batch, -1, -1)


def _noise(prior: Prior, request: Request, start: int, end: int) -> Tensor:
    """[items, end - start, codebook_size]."""
    spec = prior.spec
    return torch.stack(
        [gumbel_noise(request.seed, i, spec.level, start, end, spec.codebook_size) for i in request.items]
    )
