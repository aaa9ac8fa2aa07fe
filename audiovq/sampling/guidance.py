"""A prior with the conditions of a piece, and classifier-free guidance.

logits = unconditional + guidance · (conditional - unconditional) (Ho & Salimans 2021, arXiv:2207.12598, equation 6).
With guidance, each item is two rows of the network's batch: one with and one without label, text, chroma and notes.
Timing and gaps are in both. A guidance of 1 is the prior as it was trained, and needs one row.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from audiovq.data.conditions import text_bytes
from audiovq.prior.conditioners import NO_GAP, Conditions
from audiovq.prior.kv_cache import KVCache
from audiovq.prior.prior import Prior


@dataclass
class Request:
    """The items `items` of a seed, each `n_samples` long. An item's codes do not depend on the others."""

    n_samples: int
    items: list[int]
    seed: int
    # Per label name: index in the prior's vocabulary plus one, 0 or absent is unknown; or the shares of all values.
    labels: dict[str, int | list[float]]
    text: str = ""  # caption or lyrics
    chroma: Tensor | None = None  # int64 [n_frames], pitch classes of a reference, one per code of level 0
    precision: str = "auto"  # of the prior's arithmetic, see `engine.precisions`
    notes: Tensor | None = None  # int64 [n_frames], for priors with notes, see `data/notes.py`


def piece_conditions(prior: Prior, request: Request, batch: int, start: int = 0, endless: bool = False) -> Conditions:
    """The conditions that a request has and the prior knows, for `batch` pieces from the code `start` on. A text
    longer than the prior's `max_bytes` is cut. Chroma and notes past their end are unknown. In an endless piece they
    begin again, and timing stands still in the middle."""
    device, inputs = prior.head.weight.device, prior.config.extra_inputs
    full = lambda value: torch.tensor([value] * batch, device=device)  # noqa: E731
    labels = {name: full(request.labels.get(name, 0)) for name in prior.spec.vocabularies}
    conditions = Conditions(labels, full(request.n_samples), full(start))
    if request.text and inputs["text_bytes"]:
        conditions.text = text_bytes(request.text, inputs["text_bytes"]).to(device).expand(batch, -1)
    frames = request.chroma if inputs["chroma"] else request.notes if inputs["notes"] else None
    if endless:
        conditions.timing_end = conditions.n_samples // (2 * prior.spec.hop_length)
    elif frames is not None:
        n_frames = -(-request.n_samples // prior.spec.hop_lengths[0])
        frames = torch.nn.functional.pad(frames[:n_frames], (0, max(1, n_frames + 1 - len(frames))))
    if frames is not None:
        conditions.chroma = frames.to(device).expand(batch, -1)
    return conditions


class GuidedPrior:
    """A prior with the conditions of a batch; `rows` and `combine` lead from items to rows and back."""

    def __init__(self, prior: Prior, conditions: Conditions, guidance: float = 1.0):
        self.prior, self.guidance = prior, guidance
        batch, device = len(conditions.position), conditions.position.device
        labelled = any(bool(index.any()) for index in conditions.labels.values())
        self.guided = guidance != 1 and (labelled or conditions.text is not None or conditions.chroma is not None)
        self.n_rows = 2 * batch if self.guided else batch
        if self.guided:
            tensors = {name: torch.cat([x, x]) for name, x in vars(conditions).items() if isinstance(x, Tensor)}
            labels = {name: torch.cat([index, index]) for name, index in conditions.labels.items()}
            conditions = dataclasses.replace(conditions, labels=labels, **tensors)
        self.conditions = conditions.only_where(torch.arange(self.n_rows, device=device) < batch)

    def rows(self, items: Tensor) -> Tensor:
        """[batch, ...] -> [n_rows, ...]."""
        return torch.cat([items, items]) if self.guided else items

    def combine(self, logits: Tensor) -> Tensor:
        """[n_rows, ...] -> [batch, ...]."""
        if not self.guided:
            return logits
        conditional, unconditional = logits.float().chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def context(self, window: Tensor, start: int, end: int) -> Tensor:
        """`Prior.context` of codes [start, end) of each row, with the window that `coarser_at_rate_above` gives."""
        prior, conditions, spec = self.prior, self.conditions, self.prior.spec
        position, chroma = conditions.position + start, conditions.chroma
        if chroma is not None:
            frames = torch.arange((end - start) // spec.top_ratio + 2, device=position.device)
            frames = position[:, None] // spec.top_ratio + frames
            n, endless = chroma.shape[1], conditions.timing_end is not None
            chroma = chroma.gather(1, frames % n if endless else frames.clamp(max=n - 1))  # the last one is unknown
        conditions = dataclasses.replace(conditions, position=position, chroma=chroma)
        return prior.context(self.rows(window), conditions, end - start).expand(self.n_rows, -1, -1)

    def write_prefix(self, cache: KVCache) -> None:
        """Put text and the codes after a gap into a cache of `n_rows`, if the prior has such conditioners."""
        if (prefix := self.prior.prefix(self.conditions)) is not None:
            cache.write_prefix(prefix)

    def set_gap(self, codes: Tensor, gap_end: int | None) -> None:
        """Set the gap that the prior fills, for later contexts and prefixes: the codes of the whole piece,
        int64 [batch, n_codes], and the index of the first code after the gap; None if there is none."""
        n, outside = self.prior.config.extra_inputs["infill_codes"], self.prior.spec.codebook_size
        assert n, "the prior has no infill conditioner"
        right = codes[:, gap_end : gap_end + n] if gap_end is not None else codes[:, :0]
        right = torch.nn.functional.pad(right, (0, n - right.shape[1]), value=outside)
        end = torch.full((self.n_rows,), NO_GAP if gap_end is None else gap_end, device=codes.device)
        self.conditions = dataclasses.replace(self.conditions, right=self.rows(right), gap_end=end)


def gap_end_after(given: Tensor, start: int) -> int | None:
    """Where the first gap that is open at `start` or later ends: the first position after it where all items
    have a code. None if there is none. `given` is int64 [batch, n_codes], -1 where a code is drawn."""
    is_given = (given >= 0).all(dim=0).tolist()
    if False not in is_given[start:]:
        return None
    first = is_given.index(False, start)
    return is_given.index(True, first) if True in is_given[first:] else None
