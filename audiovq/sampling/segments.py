"""A finer level in several segments at once: all segments of all items are one batch.

Once the coarser codes exist, distant parts of a finer level depend on each other only through the
attention window. Each segment but the first therefore starts early, without a past, and its first codes
are discarded (the overlap). Noise belongs to positions, so in the overlap a segment is drawn towards what
its neighbour has there. The first segment is what sequential sampling gives; the others are other draws
from nearly the same distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmentLayout:
    """Each segment has `length` positions from its start on; all but the first discard the first
    `overlap` of them. The last may reach beyond the level's end."""

    n_codes: int
    starts: list[int]
    length: int
    overlap: int

    def join(self, segments: Sequence[Tensor]) -> Tensor:
        """[items, length] per segment -> [items, n_codes]."""
        parts = [segments[0], *(segment[:, self.overlap :] for segment in segments[1:])]
        return torch.cat(parts, dim=1)[:, : self.n_codes]


def lay_out_segments(n_codes: int, n_segments: int, window: int, ratio: int) -> SegmentLayout:
    """Segments of equal length that overlap by at least an attention window and start with a code of the
    next coarser level. There are fewer than `n_segments` where a segment would be shorter than its
    overlap, which saves no time.

    Args:
        window: attention window, in codes.
        ratio: codes per code of the next coarser level.
    """
    overlap = -(-window // ratio) * ratio
    n_segments = max(1, min(n_segments, n_codes // overlap - 1))
    if n_segments == 1:
        return SegmentLayout(n_codes, [0], n_codes, 0)
    stride = -(-(n_codes - overlap) // (n_segments * ratio)) * ratio
    n_segments = -(-(n_codes - overlap) // stride)
    return SegmentLayout(n_codes, [k * stride for k in range(n_segments)], stride + overlap, overlap)
