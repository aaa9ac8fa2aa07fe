"""Ancestral sampling: the top level first, then each finer one given all coarser codes. Any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior
from audiovq.prior.stepper import new_stepper
from audiovq.recipe import PickConfig
from audiovq.sampling.next_code import next_code
from audiovq.sampling.noise import gumbel_noise
from audiovq.sampling.segments import draw_segments, plan_segments

BLOCK = 256  # codes whose context and noise are prepared at once


@dataclass
class Request:
    """What is to be generated: items `items` of seed `seed`, each `n_samples` long."""

    n_samples: int
    items: list[int]
    seed: int
    labels: dict[str, int]  # index in the prior's vocabulary, a label name
    precision: str = "auto"  # of the prior's arithmetic: prior/stepper.py
    parallel: int = 1  # segments of a finer level that are generated at once: sampling/segments.py


def generate(
    priors: Sequence[Prior], picks: Sequence[PickConfig], request: Request, prompt: list[Tensor] | None = None,
    on_codes: Callable[[int], None] = lambda n: None,
) -> list[Tensor]:  # fmt: skip
    """Generate the codes of the first len(priors) levels.

    Args:
        prompt: int64 [n_prompt_codes] a level to begin every item with; lengths are the same stretch of time.
        on_codes: called with the number of positions done since the last call.
    Returns:
        int64 [items, ceil(n_samples / hop)] a level, the prompt included.
    """
    levels: list[Tensor] = []
    for level, (prior, pick) in enumerate(zip(priors, picks, strict=True)):
        n_codes = -(-request.n_samples // prior.spec.hop_lengths[level])
        device = prior.head.weight.device
        begun = prompt[level][:n_codes].to(device) if prompt else torch.zeros(0, dtype=torch.int64, device=device)
        begun = repeat(begun, "t -> b t", b=len(request.items))
        how = generate_level_in_segments if level and request.parallel > 1 else generate_level
        levels.append(how(prior, levels, begun, n_codes, pick, request, on_codes))
    return levels


@torch.inference_mode()
def generate_level(
    prior: Prior, coarser: list[Tensor], begun: Tensor, n_codes: int, pick: PickConfig, request: Request,
    on_codes: Callable[[int], None],
) -> Tensor:  # fmt: skip
    """Continue `begun` [b, t] to [b, n_codes], given the complete coarser levels."""
    batch, device = begun.shape[0], begun.device
    codes = torch.full((batch, n_codes + 1), prior.spec.codebook_size, dtype=torch.int64, device=device)
    n_begun = begun.shape[1]
    codes[:, 1 : n_begun + 1] = begun  # one later, so that codes[:, t] is what comes before position t
    stepper = new_stepper(prior, batch, request.precision)
    around = coarser_at_rate_above(prior, coarser, batch, n_codes)
    block = -(-BLOCK // prior.spec.ratio) * prior.spec.ratio
    for start in range(0, n_codes, block):
        end = min(start + block, n_codes)
        context = level_context(prior, around, request, batch, start, end)
        told = min(max(n_begun - start, 0), end - start)  # positions whose code the prompt gives
        if told:
            stepper.prefill(codes[:, start : start + told], context[:, :told])
            on_codes(told)
        if start + told == end:
            continue
        noise = _noise(prior, request, start + told, end).to(device)
        for t in range(start + told, end):
            logits = stepper.step(codes[:, t], context[:, t - start])
            codes[:, t + 1] = next_code(logits, noise[:, t - start - told], pick.temperature, pick.top_k, pick.top_p)
            on_codes(1)
    return codes[:, 1:]


@torch.inference_mode()
def generate_level_in_segments(
    prior: Prior, coarser: list[Tensor], begun: Tensor, n_codes: int, pick: PickConfig, request: Request,
    on_codes: Callable[[int], None], only: int | None = None,
) -> Tensor:  # fmt: skip
    """As `generate_level`, in `request.parallel` segments at once; `only` one of them, alone: [b, plan.length]."""
    batch, spec = len(begun), prior.spec
    plan = plan_segments(n_codes, request.parallel, prior.config.transformer.window, spec.ratio)
    starts = plan.starts if only is None else [plan.starts[only]]
    given = torch.nn.functional.pad(begun, (0, n_codes - begun.shape[1]), value=-1)
    around = coarser_at_rate_above(prior, coarser, batch, n_codes)
    beyond = max(plan.starts[-1] + plan.length - n_codes, 0)
    around = torch.nn.functional.pad(around, (0, -(-beyond // spec.ratio)), value=spec.codebook_size)
    segments = draw_segments(
        new_stepper(prior, len(starts) * batch, request.precision), plan, starts, given,
        lambda start, end: level_context(prior, around, request, batch, start, end),
        lambda start, end: _noise(prior, request, start, end).to(begun.device),
        lambda logits, noise: next_code(logits, noise, pick.temperature, pick.top_k, pick.top_p),
        lambda n: on_codes(n if only is None else 0), spec.codebook_size, spec.ratio,
    )  # fmt: skip
    return plan.join(list(segments)) if only is None else segments[0]


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
