"""The order of time: which level is drawn next, so that music is complete as early as possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiovq.sampling.decode_state import DecodeState


def interleave(states: Mapping[int, DecodeState], runs: Mapping[int, Iterator[None]]) -> Iterator[int]:
    """Fill in the codes of several levels together; yields the level of each pass.

    The next pass is of the finest level whose coarser codes are there, so music is complete as early as the
    upsamplers' look-ahead allows.

    Args:
        runs: of each level, the passes through its network.
    """
    while unfinished := [level for level in sorted(states, reverse=True) if not states[level].finished]:
        level = next(level for level in unfinished if _can_go_on(level, states))
        next(runs[level])
        yield level


def _can_go_on(level: int, states: Mapping[int, DecodeState]) -> bool:
    """Whether all coarser codes are there that the next pass of a level needs."""
    spec, needed = states[level].prior.spec, states[level].n_needed()
    return all(
        other.finished or other.n_known * spec.hop_lengths[at] >= needed * spec.hop_lengths[level - 1]
        for at, other in states.items()
        if at < level
    )
