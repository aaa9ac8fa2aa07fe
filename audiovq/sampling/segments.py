"""A finer level in several segments at once: all segments of all pieces are one batch.

Once the coarser codes are there, a far-away part of a finer level depends on the rest only through its attention window.
Each segment but the first therefore begins early, without a past, and what it draws in this warm-up is thrown away. The
noise is that of the positions, so that in the warm-up a segment is drawn towards what its neighbour has there. The
first segment is what sequential sampling gives; the others are other draws from nearly the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.prior import Prior
from audiovq.prior.stepper import new_stepper
from audiovq.recipe import PickConfig
from audiovq.sampling.generate import BLOCK, Request, coarser_at_rate_above, context_of, noise_of
from audiovq.sampling.next_code import next_code


@dataclass(frozen=True)
class Plan:
    """Segment k draws positions [k · stride, k · stride + overlap + stride) and, if k > 0, throws `overlap` of them away."""

    n_codes: int
    n_segments: int
    stride: int
    overlap: int

    @property
    def starts(self) -> list[int]:
        return [k * self.stride for k in range(self.n_segments)]

    @property
    def length(self) -> int:
        """Steps to take: the positions of one segment, warm-up included."""
        return min(self.stride + self.overlap, self.n_codes)

    def join(self, segments: list[Tensor]) -> Tensor:
        """[b, length] a segment -> [b, n_codes]."""
        kept = [segments[0], *(segment[:, self.overlap :] for segment in segments[1:])]
        return torch.cat(kept, dim=1)[:, : self.n_codes]


def plan_segments(n_codes: int, n_segments: int, window: int, ratio: int) -> Plan:
    """At most `n_segments` of equal length, each with at least an attention window of warm-up, all beginning with a code
    of the next coarser level. Fewer where a segment would be shorter than its warm-up, which would save nothing."""
    overlap = -(-window // ratio) * ratio
    n_segments = max(1, min(n_segments, n_codes // overlap - 1))
    stride = -(-max(n_codes - overlap, 1) // (n_segments * ratio)) * ratio if n_segments > 1 else n_codes
    return Plan(n_codes, n_segments, stride, overlap if n_segments > 1 else 0)


@torch.inference_mode()
def generate_level_in_segments(
    prior: Prior, coarser: list[Tensor], begun: Tensor, n_codes: int, pick: PickConfig, request: Request,
    on_codes: Callable[[int], None],
) -> Tensor:  # fmt: skip
    """As `generate_level`, in `request.parallel` segments; codes that `begun` [b, t] gives are taken wherever they lie."""
    plan = plan_segments(n_codes, request.parallel, prior.config.transformer.window, prior.spec.ratio)
    rows = draw_segments(prior, coarser, begun, plan, plan.starts, pick, request, on_codes)
    return plan.join(list(rows))


def draw_segments(
    prior: Prior, coarser: list[Tensor], begun: Tensor, plan: Plan, starts: list[int], pick: PickConfig, request: Request,
    on_codes: Callable[[int], None],
) -> Tensor:  # fmt: skip
    """The segments that begin at `starts`, in step: int64 [segments, b, plan.length]."""
    batch, device, outside = begun.shape[0], begun.device, prior.spec.codebook_size
    n_rows, ratio = len(starts) * batch, prior.spec.ratio
    around = coarser_at_rate_above(prior, coarser, batch, plan.n_codes)
    beyond = (max(starts) + plan.length - plan.n_codes) // ratio + 1  # the last segment may reach past the end
    around = F.pad(around, (0, max(beyond, 0)), value=outside)
    given = torch.full((len(starts), batch, plan.length), -1, dtype=torch.int64, device=device)
    for k, start in enumerate(starts):
        n = min(max(begun.shape[1] - start, 0), plan.length)
        given[k, :, :n] = begun[:, start : start + n]
    codes = torch.full((n_rows, plan.length + 1), outside, dtype=torch.int64, device=device)
    stepper = new_stepper(prior, n_rows, request.precision)
    block = -(-BLOCK // (len(starts) * ratio)) * ratio
    for first in range(0, plan.length, block):
        end = min(first + block, plan.length)
        context = torch.cat([context_of(prior, around, request, batch, s + first, s + end) for s in starts])
        noise = torch.cat([noise_of(prior, request, s + first, s + end) for s in starts]).to(device)
        told = given[:, :, first:end].reshape(n_rows, -1)
        for t in range(end - first):
            logits = stepper.step(codes[:, first + t], context[:, t])
            drawn = next_code(logits, noise[:, t], pick.temperature, pick.top_k, pick.top_p)
            codes[:, first + t + 1] = torch.where(told[:, t] >= 0, told[:, t], drawn)
            on_codes(1)
    return codes[:, 1:].unflatten(0, (len(starts), batch))
