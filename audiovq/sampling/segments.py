"""A finer level in several segments at once: all segments of all pieces are one batch.

Once the coarser codes are there, a far-away part of a finer level depends on the rest only through its attention window.
Each segment but the first therefore begins early, without a past, and what it draws in this warm-up is thrown away. The
noise is that of the positions, so in the warm-up a segment is drawn towards what its neighbour has there. The first
segment is what sequential sampling gives; the others are other draws from nearly the same distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiovq.prior.stepper import Stepper

BLOCK = 256  # codes, of all segments together, whose context and noise are prepared at once
Part = Callable[[int, int], Tensor]  # start, end -> what is known of these positions, [b, end - start, ...]


@dataclass(frozen=True)
class Plan:
    """Segment k draws positions [k · stride, k · stride + length) and, if k > 0, throws `overlap` of them away."""

    n_codes: int
    n_segments: int
    stride: int
    overlap: int

    @property
    def starts(self) -> list[int]:
        return [k * self.stride for k in range(self.n_segments)]

    @property
    def seams(self) -> list[int]:
        """The positions where what is kept of one segment follows another."""
        return [start + self.overlap for start in self.starts[1:]]

    @property
    def length(self) -> int:
        """Steps to take: the positions of a segment, its warm-up included. The last may reach past the end."""
        return self.stride + self.overlap

    def join(self, segments: Sequence[Tensor]) -> Tensor:
        """[b, length] a segment -> [b, n_codes]."""
        kept = [segments[0], *(segment[:, self.overlap :] for segment in segments[1:])]
        return torch.cat(kept, dim=1)[:, : self.n_codes]


def plan_segments(n_codes: int, n_segments: int, window: int, ratio: int) -> Plan:
    """At most `n_segments` of equal length, each with at least an attention window of warm-up, all beginning with a code
    of the next coarser level. Fewer where a segment would be shorter than its warm-up, which would save nothing."""
    overlap = -(-window // ratio) * ratio
    n_segments = max(1, min(n_segments, n_codes // overlap - 1))
    if n_segments == 1:
        return Plan(n_codes, 1, n_codes, 0)
    stride = -(-(n_codes - overlap) // (n_segments * ratio)) * ratio
    return Plan(n_codes, -(-(n_codes - overlap) // stride), stride, overlap)


def draw_segments(
    stepper: Stepper, plan: Plan, starts: Sequence[int], given: Tensor, context: Part, noise: Part,
    draw: Callable[[Tensor, Tensor], Tensor], on_codes: Callable[[int], None], outside: int, ratio: int = 1,
) -> Tensor:  # fmt: skip
    """The segments of a plan that begin at `starts`, in step: int64 [segments, b, plan.length].

    Args:
        stepper: with room for segments · b sequences.
        given: int64 [b, n_codes], -1 where the model draws.
        context, noise: of positions; asked for blocks that begin with a multiple of `ratio`, and past the end.
        draw: logits and noise -> codes, as `next_code`.
        outside: the code that stands for none.
    """
    n_rows = len(starts) * len(given)
    past_end = given.new_full((len(given), max(starts) + plan.length), -1)
    past_end[:, : given.shape[1]] = given[:, : past_end.shape[1]]
    told = torch.cat([past_end[:, s : s + plan.length] for s in starts])  # [segments · b, length]
    codes = told.new_full((n_rows, plan.length + 1), outside)
    block = -(-BLOCK // (len(starts) * ratio)) * ratio
    for first in range(0, plan.length, block):
        end = min(first + block, plan.length)
        contexts = torch.cat([context(s + first, s + end) for s in starts])
        noises = torch.cat([noise(s + first, s + end) for s in starts])
        for t in range(end - first):
            logits = stepper.step(codes[:, first + t], contexts[:, t])
            here = told[:, first + t]
            codes[:, first + t + 1] = torch.where(here < 0, draw(logits, noises[:, t]), here)
            on_codes(1)
    return codes[:, 1:].unflatten(0, (len(starts), len(given)))
