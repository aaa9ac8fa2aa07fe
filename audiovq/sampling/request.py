"""What is to be generated."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Request:
    """The items `items` of a seed, each `n_samples` long. An item's codes do not depend on the others."""

    n_samples: int
    items: list[int]
    seed: int
    labels: dict[str, int]  # index in the prior's vocabulary per label name; 0 or absent is unknown
    text: str = ""  # caption or lyrics
    chroma: Tensor | None = None  # int64 [n_frames], pitch classes of a reference, one per code of level 0
    precision: str = "auto"  # of the prior's arithmetic, see `engine.precisions`
