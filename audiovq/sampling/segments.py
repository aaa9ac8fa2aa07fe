"""A finer level in several segments at once: all segments of all pieces are one batch.

Once the coarser codes are there, a far-away part of a finer level depends on the rest only through its attention window.
Each segment but the first therefore begins early, without a past, and what it draws in this warm-up is thrown away. The
noise is that of the positions, so in the warm-up a segment is drawn towards what its neighbour has there. The first
segment is what sequential sampling gives; the others are other draws from nearly the same distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmentLayout:
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


def lay_out_segments(n_codes: int, n_segments: int, window: int, ratio: int) -> SegmentLayout:
    """At most `n_segments` of equal length, each with at least an attention window of warm-up, all beginning with a code
    of the next coarser level. Fewer where a segment would be shorter than its warm-up, which would save nothing."""
    overlap = -(-window // ratio) * ratio
    n_segments = max(1, min(n_segments, n_codes // overlap - 1))
    if n_segments == 1:
        return SegmentLayout(n_codes, 1, n_codes, 0)
    stride = -(-(n_codes - overlap) // (n_segments * ratio)) * ratio
    return SegmentLayout(n_codes, -(-(n_codes - overlap) // stride), stride, overlap)
