"""Sequences that come in blocks, cut into overlapping windows: what all streaming here is built on.

A window has `step` of new time with `context` to either side, so that whatever depends on no more than its context
comes out as it would from the whole. Which windows come depends on step, context and the total length alone, never on
the blocks: a computation that is the same for the same window gives the same bits for any block sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """Results are wanted for the times [start, end); the sequences begin at time `low`."""

    sequences: list[Tensor]  # [..., n], one a hop
    low: int
    start: int
    end: int

    def part(self, result: Tensor, hop: int) -> Tensor:
        """Of a result [..., n] with one element a `hop` of time, from `low` on: what is wanted."""
        return result[..., (self.start - self.low) // hop : -(-(self.end - self.low) // hop)]


class Windows:
    """Cuts parallel sequences, of `hops[i]` time an element, into windows.

    Args:
        step, context: multiples of all hops; times are counted from the beginning of the sequences.
    """

    def __init__(self, step: int, context: int, hops: Sequence[int] = (1,)):
        assert step > 0, f"step {step}"
        assert not any(step % hop or context % hop for hop in hops), f"{step} and {context}: not multiples of {hops}"
        self.step, self.context, self.hops = step, context, list(hops)
        self.low = self.start = 0
        self.parts: list[list[Tensor]] = [[] for _ in hops]  # from time `low` on
        self.counts = [0 for _ in hops]  # elements of each sequence so far, from the beginning

    def push(self, blocks: Sequence[Tensor]) -> Iterator[Window]:
        """Take the next blocks [..., any n], one a sequence, and give the windows that are complete."""
        for i, block in enumerate(blocks):
            self.parts[i].append(block)
            self.counts[i] += block.shape[-1]
        return self._complete()

    def _complete(self) -> Iterator[Window]:
        while min(n * hop for n, hop in zip(self.counts, self.hops, strict=True)) >= (
            high := self.start + self.step + self.context
        ):
            yield self._window(self.start + self.step, high)

    def finish(self, end: int | None = None) -> Window | None:
        """The last window, all that is left up to time `end` (default: of the shortest sequence); None if empty."""
        high = max(n * hop for n, hop in zip(self.counts, self.hops, strict=True))
        end = min(n * hop for n, hop in zip(self.counts, self.hops, strict=True)) if end is None else end
        return self._window(end, high) if end > self.start else None

    def _window(self, end: int, high: int) -> Window:
        sequences = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1) for parts in self.parts]
        cut = [x[..., : (high - self.low) // hop] for x, hop in zip(sequences, self.hops, strict=True)]
        window = Window(cut, self.low, self.start, end)
        low = max(0, end - self.context)
        self.parts = [[x[..., (low - self.low) // hop :]] for x, hop in zip(sequences, self.hops, strict=True)]
        self.low, self.start = low, end
        return window


def cut(windows: Windows, sequences: Sequence[Tensor], end: int | None = None) -> list[Window]:
    """All windows of sequences that are there as a whole, up to time `end`."""
    found = list(windows.push(sequences))
    last = windows.finish(end)
    return [*found, last] if last else found


def compute_in_batches(
    items: Sequence[Sequence[Window]], at_once: int, compute: Callable[[Sequence[Window]], list[Result]]
) -> list[list[Result]]:
    """The results of each item's windows, computed in batches of those with equal shapes, whosoever they are."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for i, windows in enumerate(items):
        for j, window in enumerate(windows):
            groups.setdefault(tuple(x.shape[-1] for x in window.sequences), []).append((i, j))
    results: dict[tuple[int, int], Result] = {}
    for places in groups.values():
        for first in range(0, len(places), at_once):
            batch = places[first : first + at_once]
            results |= zip(batch, compute([items[i][j] for i, j in batch]), strict=True)
    return [[results[i, j] for j in range(len(windows))] for i, windows in enumerate(items)]
