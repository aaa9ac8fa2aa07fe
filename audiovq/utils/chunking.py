"""Cuts long sequences into overlapping windows, and large batches into micro-batches.

A window has `step` of new time and `context` on either side, so that a result which depends on no more than
the context is the same as from the whole; with less after it (`ahead`) windows come sooner. Windows do not
depend on the sizes of the blocks, so the results have the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """Results are wanted for the times [start, end); the sequences start at time `low`."""

    sequences: list[Tensor]  # [..., n] for each hop
    low: int
    start: int
    end: int

    def part(self, result: Tensor, hop: int) -> Tensor:
        """The wanted part of a result [..., n] that has one element per `hop` of time, from `low` on."""
        return result[..., (self.start - self.low) // hop : -(-(self.end - self.low) // hop)]


class Windows:
    """Cuts parallel sequences, with `hops[i]` of time per element, into windows, which begin at multiples of
    `period`; step, context and `ahead` (default: as `context`) fit hops."""

    def __init__(self, step: int, context: int, hops: Sequence[int] = (1,), ahead: int | None = None, period: int = 1):
        ahead = context if ahead is None else ahead
        assert step > 0, f"step {step}"
        assert not any(x % hop for x in (step, context, ahead) for hop in hops), f"{step}, {context}, {ahead}: {hops}"
        self.step, self.context, self.ahead, self.period, self.hops = step, context, ahead, period, list(hops)
        self.low = self.start = 0
        self.parts: list[list[Tensor]] = [[] for _ in hops]  # blocks of each sequence, from time `low` on
        self.counts = [0 for _ in hops]  # elements of each sequence so far

    def _ends(self) -> list[int]:
        """The time up to which each sequence is known."""
        return [n * hop for n, hop in zip(self.counts, self.hops, strict=True)]

    def push(self, blocks: Sequence[Tensor]) -> list[Window]:
        """Add the next block [..., any n] of each sequence; gives the windows that are complete."""
        for i, block in enumerate(blocks):
            self.parts[i].append(block)
            self.counts[i] += block.shape[-1]
        complete, known = list[Window](), min(self._ends())
        while self.start + self.step + self.ahead <= known:
            complete.append(self._window(self.start + self.step, self.start + self.step + self.ahead))
        return complete

    def finish(self, end: int | None = None) -> list[Window]:
        """The last window, up to time `end` (default: the shortest sequence's); none if nothing is left."""
        end = min(self._ends()) if end is None else end
        return [self._window(end, max(self._ends()))] if end > self.start else []

    def _window(self, end: int, high: int) -> Window:
        sequences = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1) for parts in self.parts]
        cut = [x[..., : (high - self.low) // hop] for x, hop in zip(sequences, self.hops, strict=True)]
        window = Window(cut, self.low, self.start, end)
        low = max(0, end - self.context) // self.period * self.period
        self.parts = [[x[..., (low - self.low) // hop :]] for x, hop in zip(sequences, self.hops, strict=True)]
        self.low, self.start = low, end
        return window


def in_microbatches(function: Callable[..., Any], microbatch_size: int | None, *inputs: Tensor) -> list[Any]:
    """Apply a function to each micro-batch, of at most so many items (None: of all); a result each. The
    backward pass computes a micro-batch again when it gets there (gradient checkpointing, arXiv:1604.06174),
    so that the activations of only one are in memory. Items must not depend on each other."""
    if microbatch_size is None or microbatch_size >= len(inputs[0]):
        return [function(*inputs)]
    pieces = zip(*(x.split(microbatch_size) for x in inputs), strict=True)
    if not torch.is_grad_enabled():
        return [function(*piece) for piece in pieces]
    return [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]


def cut(windows: Windows, sequences: Sequence[Tensor], end: int | None = None) -> list[Window]:
    """All windows of whole sequences, up to time `end`."""
    return [*windows.push(sequences), *windows.finish(end)]


def compute_in_batches(
    items: Sequence[Sequence[Window]], at_once: int, compute: Callable[[Sequence[Window]], list[Result]]
) -> list[list[Result]]:
    """The results of each item's windows; windows of equal shape, of any items, are computed together."""
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
