"""Conditioners: what a prior knows besides codes. A new one is one class and one line in `CONDITIONERS`.

Each turns `Conditions` into vectors that are added at the transformer's input, or into tokens of a prefix
that every code attends to. In training a conditioner is dropped for a random share of the items (`dropout`),
so that the prior also learns music without it, which guidance needs. A dropout of 1 silences it.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from audiovq.config import Config as BaseConfig
from audiovq.distributed import rng
from audiovq.prior.spec import PriorSpec

N_CLASSES = 12  # pitch classes
N_CHROMA = 13  # and silence
NO_GAP = -1


@dataclass
class Conditions:
    """The conditions of a batch of items. In labels, text and chroma, 0 stands for "unknown"."""

    # Per label name: int64 [b], or a mixture of its values, float [b, n_values]; what is missing to 1 is unknown.
    labels: dict[str, Tensor]
    n_samples: Tensor  # int64 [b], length of the whole piece
    position: Tensor  # int64 [b], index in the piece of the first code of this window
    text: Tensor | None = None  # int64 [b, n_bytes], UTF-8 bytes plus one, 0 after the end
    # int64 [b, n_frames], from the first code's frame on: pitch class plus one, or a frame of `data/notes.py`
    chroma: Tensor | None = None
    right: Tensor | None = None  # int64 [b, n], codes after a gap; `codebook_size` outside the track, -1 unknown
    timing_end: Tensor | None = None  # int64 [b], index in the piece where timing stands still
    gap_end: Tensor | None = None  # int64 [b], index in the piece of the first code of `right`, or NO_GAP

    def only_where(self, keep: Tensor) -> "Conditions":
        """Drop labels, text and chroma, which guidance strengthens, where `keep` (bool [b]) is false."""
        labels = {name: index * keep.view(-1, *[1] * (index.ndim - 1)) for name, index in self.labels.items()}
        text, chroma = (None if x is None else x * keep[:, None] for x in (self.text, self.chroma))
        return dataclasses.replace(self, labels=labels, text=text, chroma=chroma)


class Conditioner(nn.Module):
    """Base of all kinds: `forward` gives vectors to add at the input, `prefix` gives `n_prefix` tokens."""

    n_prefix = 0
    dropout = 0.0

    def keep(self, n: int, device: torch.device) -> Tensor:
        """Which of `n` items keep this condition, bool [n]: all, except for a random share in training."""
        if not self.training:
            return torch.full((n,), self.dropout < 1, device=device)
        return rng.rand_per_item(n, device) >= self.dropout

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:
        """Vectors [1 or b, 1 or n_codes, dim] to add at the input; zero for a kind that is all prefix."""
        return torch.zeros(1, 1, 1, device=conditions.position.device)

    def prefix(self, conditions: Conditions) -> Tensor:
        """Tokens [b, n_prefix, dim]."""
        raise NotImplementedError


class LabelConditioner(Conditioner):
    """The value of a label, such as a genre (Jukebox, arXiv:2005.00341, section 4.2)."""

    class Config(BaseConfig):
        kind: Literal["label"] = "label"
        name: str = "genre"
        dropout: float = Field(default=0.1, ge=0, le=1)

    def __init__(self, config: Config, dim: int, spec: PriorSpec):
        super().__init__()
        self.config, self.dropout = config, config.dropout
        self.embedding = nn.Embedding(len(spec.vocabularies[config.name]) + 1, dim)
        # As large as a code's: a small one would learn slowly, because only a piece's first codes need the label.
        nn.init.normal_(self.embedding.weight, std=0.5)

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, 1, dim]
        index = conditions.labels[self.config.name]
        keep = self.keep(index.shape[0], index.device)
        if index.is_floating_point():
            shares = index * keep[:, None]
            return (torch.cat([1 - shares.sum(dim=1, keepdim=True), shares], dim=1) @ self.embedding.weight)[:, None]
        return self.embedding(index * keep)[:, None]


class TimingConditioner(Conditioner):
    """Total length, time passed, time left and fraction passed, at every code, as sines (Jukebox, section 4.2)."""

    class Config(BaseConfig):
        kind: Literal["timing"] = "timing"
        dropout: float = Field(default=0.1, ge=0, le=1)

    def __init__(self, config: Config, dim: int, spec: PriorSpec):
        super().__init__()
        self.dropout, self.sample_rate = config.dropout, spec.sample_rate
        self.seconds_per_code = spec.hop_length / spec.sample_rate
        self.periods = nn.Buffer(2.0 ** torch.arange(3, 13), persistent=False)  # 8 s to an hour
        self.waves = nn.Buffer(math.pi * torch.arange(1.0, 5.0), persistent=False)
        self.project = nn.Linear(2 * (3 * 10 + 4), dim, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, n_codes, dim]
        index = torch.arange(n_codes, device=conditions.position.device) + conditions.position[:, None]
        if conditions.timing_end is not None:
            index = index.minimum(conditions.timing_end[:, None])
        passed = index.float() * self.seconds_per_code
        total = (conditions.n_samples.float() / self.sample_rate)[:, None].expand_as(passed)
        times = torch.stack([total, passed, total - passed], dim=-1)  # [b, n_codes, 3]
        angles = (times[..., None] * (2 * math.pi / self.periods)).flatten(-2)
        angles = torch.cat([angles, (passed / total.clamp(min=1e-3))[..., None] * self.waves], dim=-1)
        vectors = self.project(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return vectors * self.keep(index.shape[0], index.device)[:, None, None].to(vectors.dtype)


class TextConditioner(Conditioner):
    """A caption or lyrics as a prefix of the codes. No text, dropped text and empty text are the same. Source: DALL-E,
    arXiv:2102.12092, section 2.2. Differs: bytes, which need no vocabulary; one embedding of padding."""

    class Config(BaseConfig):
        kind: Literal["text"] = "text"
        max_bytes: int = Field(default=128, ge=1, le=1 << 16)  # longer texts of the training tracks are cut
        dropout: float = Field(default=0.1, ge=0, le=1)

    def __init__(self, config: Config, dim: int, spec: PriorSpec):
        super().__init__()
        self.n_prefix, self.dropout = config.max_bytes, config.dropout
        self.embedding = nn.Embedding(256 + 1, dim)
        self.positions = nn.Parameter(0.1 * torch.randn(config.max_bytes, dim))
        nn.init.normal_(self.embedding.weight, std=0.5)

    def prefix(self, conditions: Conditions) -> Tensor:
        batch, device = conditions.position.shape[0], conditions.position.device
        empty = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        text = empty if conditions.text is None else conditions.text
        text = nn.functional.pad(text, (0, self.n_prefix - text.shape[1])) * self.keep(batch, device)[:, None]
        return self.embedding(text) + self.positions


class ChromaConditioner(Conditioner):
    """The strongest pitch class of a reference recording at the time of each code; see `data/conditions.py`."""

    class Config(BaseConfig):
        kind: Literal["chroma"] = "chroma"
        dropout: float = Field(default=0.2, ge=0, le=1)

    def __init__(self, config: Config, dim: int, spec: PriorSpec):
        super().__init__()
        self.dropout, self.codes_per_frame = config.dropout, spec.top_ratio
        self.embedding = nn.Embedding(N_CHROMA + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def frames(self, conditions: Conditions, n_codes: int) -> Tensor:
        """The frame of each code, int64 [b, n_codes], or [b, 1] if all are unknown."""
        batch, device = conditions.position.shape[0], conditions.position.device
        if (chroma := conditions.chroma) is None:
            return torch.zeros(batch, 1, dtype=torch.int64, device=device)
        ahead = torch.arange(n_codes, device=device) + conditions.position[:, None] % self.codes_per_frame
        return chroma.gather(1, ahead // self.codes_per_frame) * self.keep(batch, device)[:, None]

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, n_codes, dim]
        return self.embedding(self.frames(conditions, n_codes))


class NotesConditioner(ChromaConditioner):
    """The pitch classes that sound at the time of each code, and the bass; see `data/notes.py`."""

    class Config(BaseConfig):
        kind: Literal["notes"] = "notes"
        dropout: float = Field(default=0.2, ge=0, le=1)

    def __init__(self, config: Config, dim: int, spec: PriorSpec):
        super().__init__(config, dim, spec)  # type: ignore[arg-type]
        self.embedding = nn.Embedding(N_CLASSES + 2, dim)  # of the bass; 0 is unknown
        self.classes = nn.Parameter(0.1 * torch.randn(N_CLASSES, dim))
        self.powers = nn.Buffer(2 ** torch.arange(N_CLASSES), persistent=False)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, n_codes, dim]
        frames = self.frames(conditions, n_codes)
        sounds = frames[..., None] // self.powers % 2  # [b, n_codes, 12]
        return sounds.to(self.classes.dtype) @ self.classes + self.embedding(frames // 2**N_CLASSES)


class InfillConditioner(Conditioner):
    """The codes that follow a gap, as a prefix, and at each code the distance to the gap's end. (Bavarian
    2022, arXiv:2207.14255, moves these codes to the front; here a gap may have any length.)"""

    class Config(BaseConfig):
        kind: Literal["infill"] = "infill"
        n_codes: int = Field(default=16, ge=1, le=4096)  # codes after a gap that the prior sees
        reach: int = Field(default=512, ge=8, le=1 << 24)  # codes; all larger distances to the gap's end look the same
        rate: float = Field(default=0.5, ge=0, le=1)  # share of the training windows with a gap

    def __init__(self, config: Config, dim: int, spec: PriorSpec):
        super().__init__()
        self.n_prefix, self.reach = config.n_codes, config.reach
        self.unknown = spec.codebook_size + 1
        self.embedding = nn.Embedding(spec.codebook_size + 2, dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        periods = 4.0 * (config.reach / 2) ** (torch.arange(16) / 15)  # codes: 4 to twice the reach
        self.frequencies = nn.Buffer(2 * math.pi / periods, persistent=False)
        self.project = nn.Linear(32, dim, bias=False)
        nn.init.normal_(self.project.weight, std=0.1)

    def _distance(self, codes: Tensor) -> Tensor:
        """Codes until the gap's end, negative after it, [...] -> [..., dim]."""
        angles = codes.clamp(max=self.reach).float()[..., None] * self.frequencies
        return self.project(torch.cat([angles.sin(), angles.cos()], dim=-1))

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, n_codes, dim]
        if conditions.gap_end is None:
            return super().forward(conditions, n_codes)
        index = torch.arange(n_codes, device=conditions.position.device) + conditions.position[:, None]
        left = conditions.gap_end[:, None] - index
        return self._distance(left) * (left > 0)[..., None]

    def prefix(self, conditions: Conditions) -> Tensor:
        device = conditions.position.device
        right, gap_end = conditions.right, conditions.gap_end
        if right is None or gap_end is None:
            right = torch.full((conditions.position.shape[0], self.n_prefix), self.unknown, device=device)
        else:
            right = right.masked_fill((gap_end == NO_GAP)[:, None] | (right < 0), self.unknown)
        return self.embedding(right) + self._distance(-torch.arange(self.n_prefix, device=device))


CONDITIONERS = {"label": LabelConditioner, "timing": TimingConditioner, "text": TextConditioner}
CONDITIONERS |= {"chroma": ChromaConditioner, "notes": NotesConditioner, "infill": InfillConditioner}
