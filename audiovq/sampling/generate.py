"""Ancestral sampling: level 0 first, then each finer level given all coarser ones. Any length. Either a level
is finished before the next begins, or all grow together in the order of time.

All tasks are a mask of given codes: none for a new piece, its beginning for a continued one, all codes
outside the gap for an edited one, the coarser levels for a new rendering.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.decode_state import SHORT_BLOCK, DecodeState, can_go_on
from audiovq.sampling.guidance import Request
from audiovq.sampling.next_code import next_code
from audiovq.utils import signals
from audiovq.utils.device import torch_defaults

CodesCallback = Callable[[int, Tensor], None]  # a level and its final codes so far, int64 [items, n]


def ignore_codes(level: int, codes: Tensor) -> None:
    """The callback that does nothing."""


@torch_defaults()
def generate(
    priors: Sequence[Prior], settings: Sequence[SamplingConfig], request: Request,
    given: Sequence[Tensor] | None = None, on_codes: CodesCallback = ignore_codes, in_time_order: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Generate the codes of the first len(priors) levels.

    Args:
        settings: temperature, top-k, top-p and guidance of each level.
        given: int64 [1 or items, n_codes] per level; -1 where a code is to be drawn, all others stay.
        on_codes: called after each pass through a prior, and at the end of each level.
        in_time_order: draw each finer code as soon as the coarser ones around it are there, instead of one
            level after the other. The codes are the same.
    Returns:
        int64 [items, ceil(n_samples / hop_length)] per level, the given codes included.
    """
    levels: list[Tensor] = []  # of a level at work, a view of the codes that are being drawn
    together: dict[int, DecodeState] = {}  # the levels at work
    for level, prior in enumerate(priors):
        shape = len(request.items), -(-request.n_samples // prior.spec.hop_length)
        mask = (given[level] if given else torch.full((1, shape[1]), -1)).to(prior.head.weight.device).expand(shape)
        if bool((mask >= 0).all()):
            levels.append(mask)
            on_codes(level, mask)
        else:
            block = SHORT_BLOCK if in_time_order else None
            together[level] = DecodeState(prior, levels, mask, request, settings[level].guidance, block)
            levels.append(together[level].codes[:, 1:])
        if in_time_order and level + 1 < len(priors):
            continue
        for at in draw_levels(together, settings):
            signals.poll()
            on_codes(at, levels[at][:, : together[at].n_known])
        for at, state in together.items():
            state.check_finite()
            on_codes(at, levels[at])
        together = {}
    return levels


def draw_levels(states: Mapping[int, DecodeState], settings: Sequence[SamplingConfig]) -> Iterator[int]:
    """Fill in the codes of several levels together; yields the level of each pass through a network: the
    finest one whose coarser codes are there, so music is complete as early as possible."""
    runs = {level: draw_level(state, settings[level]) for level, state in states.items()}
    while unfinished := [level for level in sorted(states, reverse=True) if not states[level].finished]:
        level = next(level for level in unfinished if can_go_on(level, states))
        next(runs[level])
        yield level


def draw_level(state: DecodeState, setting: SamplingConfig) -> Iterator[None]:
    """Fill in the codes of a level from left to right; yields after each pass through the network."""
    for stretch in state.stretches():
        context = state.context(stretch)  # [rows, n, dim]: coarser levels, labels, text, the next gap
        state.check_finite()
        if stretch.given:  # known codes go through the network together
            state.prefill(stretch, context)
            yield
            continue
        noise = state.noise(stretch)  # [rows, n, codebook_size]
        for t in range(max(stretch.start, state.n_done), stretch.end):
            i = t - stretch.start
            logits = state.step(t, context[:, i])  # [rows, codebook_size]
            state.put(t, next_code(logits, noise[:, i], setting.temperature, setting.top_k, setting.top_p))
            yield
