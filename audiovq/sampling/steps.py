"""The one place where generation meets a network: feed known codes in one pass, or one code for the logits of the next."""

from __future__ import annotations

from torch import Tensor

from audiovq.prior.prior import Prior


class Steps:
    """A prior and, in `cache`, all it remembers of the codes fed so far."""

    def __init__(self, prior: Prior, batch: int):
        self.prior = prior
        self.cache = prior.new_cache(batch)

    def prefill(self, previous: Tensor, context: Tensor) -> Tensor:
        """Feed int64 [b, t] and `context` [b, t, dim] in one pass -> logits [b, t, codebook_size]."""
        return self.prior(previous, context, self.cache)

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        """Feed int64 [b] and `context` [b, dim] -> logits [b, codebook_size] of the next code."""
        return self.prior(previous[:, None], context[:, None], self.cache)[:, 0]
