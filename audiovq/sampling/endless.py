"""The codes of a piece without end, at constant memory. Each level has a short buffer of codes. When that of level 0
is full, all forget what is before the context of the next codes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.decode_state import DecodeState
from audiovq.sampling.generate import draw_levels
from audiovq.sampling.guidance import Request


class EndlessCodes:
    """Draws all levels of one item in the order of time; in fp32 the codes are those of `generate`. Only
    timing differs: it stands still from the middle of a piece of `request.n_samples` on. So many codes of level 0 make a
    `block`: their context is computed at once, and finer levels wait for whole blocks. The buffer has `n_codes` of level 0."""

    def __init__(
        self, priors: Sequence[Prior], settings: Sequence[SamplingConfig], request: Request, block: int = 1,
        n_codes: int = 0,
    ):  # fmt: skip
        self.block = block
        self.keep = max(prior.config.context_codes for prior in priors) + block  # codes of level 0 before the next one
        self.n_codes = n_codes or 64 + 4 * sum(self.keep + prior.config.context_codes + 2 for prior in priors)
        self.per_top = [prior.spec.top_ratio for prior in priors]
        self.n_out = 0  # codes of level 0 in the buffer that `read` has given
        self.states: list[DecodeState] = []
        for prior, setting, n in zip(priors, settings, self.per_top, strict=True):
            coarser = [state.codes[:, 1:] for state in self.states]
            given = torch.full((1, self.n_codes * n), -1, device=prior.head.weight.device)
            self.states.append(DecodeState(prior, coarser, given, request, setting.guidance, endless=block))
        self.change(settings, request)

    def change(self, settings: Sequence[SamplingConfig], request: Request) -> None:
        """Other settings, conditions or another seed, from the first codes on that `read` has not given yet: those
        that were drawn ahead are drawn again."""
        self.settings = list(settings)
        for state, setting, n in zip(self.states, settings, self.per_top, strict=True):
            state.rewind(self.n_out * n)
            state.change(request, setting.guidance)
        self._begin()

    def keep_levels(self, n: int) -> None:
        """Draw no more than the first n levels from here on."""
        self.states, self.per_top, self.settings = self.states[:n], self.per_top[:n], self.settings[:n]
        self._begin()

    def _begin(self) -> None:
        self.passes = draw_levels(dict(enumerate(self.states)), self.settings)

    def draw(self) -> bool:
        """One pass through the network of one level; whether `read` has something now."""
        if self.states[0].n_done == self.n_codes - 1:
            self._move()
        next(self.passes)
        return all(state.n_done >= (self.n_out + 1) * n for state, n in zip(self.states, self.per_top, strict=True))

    def read(self) -> list[Tensor]:
        """The codes of the next code of level 0, once `draw` says so: int64 [n] per level."""
        spans = [(1 + self.n_out * n, 1 + (self.n_out + 1) * n) for n in self.per_top]
        self.n_out += 1
        return [state.codes[0, start:end].clone() for state, (start, end) in zip(self.states, spans, strict=True)]

    def _move(self) -> None:
        slowest = min(state.n_done // n for state, n in zip(self.states, self.per_top, strict=True))
        distance = (min(slowest, self.n_out) - self.keep) // self.block * self.block
        for state, n in zip(self.states, self.per_top, strict=True):
            state.move(distance * n)
        self.n_out -= distance
        self._begin()

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors and as numbers, for `load`."""
        tensors, numbers = {}, {"n_out": self.n_out, "start": self.states[0].start, "n_done": []}
        numbers["sizes"] = {"block": self.block, "n_codes": self.n_codes}
        for level, state in enumerate(self.states):
            tensors[f"codes.{level}"] = state.codes[:, : state.n_done + 1].clone()
            tensors[f"cache.{level}"] = state.cache.both.clone()
            if state.overwritten:
                tensors[f"overwritten.{level}"] = torch.stack(list(state.overwritten))
            numbers["n_done"].append(state.n_done)
        return tensors, numbers

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue what was saved; settings and request must be those of that time."""
        self.n_out = numbers["n_out"]
        for level, (state, n) in enumerate(zip(self.states, self.per_top, strict=True)):
            state.move(numbers["start"] * n)
            state.n_done = numbers["n_done"][level]
            state.codes[:, : state.n_done + 1] = tensors[f"codes.{level}"]
            state.cache.both.copy_(tensors[f"cache.{level}"])
            state.overwritten.extend(tensors.get(f"overwritten.{level}", torch.zeros(0)).to(state.codes.device))
            state.cache.advance(state.start + state.n_done)
        self._begin()
