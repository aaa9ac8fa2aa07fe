"""The one place where generation meets a network: feed known codes in one pass, or one code for the logits of the next."""

from __future__ import annotations

from torch import Tensor

from audiovq.prior.prior import Prior


class Steps:
    """A prior and what it remembers of the codes fed so far."""

    def __init__(self, prior: Prior, batch: int):
        self.prior = prior
        self.cache = prior.new_cache(batch)

    @property
    def n_fed(self) -> int:
        return self.cache.length

    def read(self, previous: Tensor, context: Tensor) -> Tensor:
        """Feed int64 [b, t] and `context` [b, t, dim] in one pass -> logits [b, t, codebook_size]."""
        return self.prior(previous, context, self.cache)

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        """Feed int64 [b, 1] and `context` [b, 1, dim] -> logits [b, codebook_size] of the next code."""
        return self.prior(previous, context, self.cache)[:, 0]

    def state(self) -> dict[str, Tensor]:
        """All that is remembered, to be saved; with `restore` later steps give the same bits."""
        return {"keys": self.cache.keys, "values": self.cache.values}

    def restore(self, state: dict[str, Tensor], n_fed: int) -> None:
        self.cache.keys.copy_(state["keys"])
        self.cache.values.copy_(state["values"])
        self.cache.length = n_fed
