"""What a prior is told besides codes. A new conditioner is one class and one line in `CONDITIONERS`.

Each turns `Conditions` into vectors that are added at the transformer's input. In training each is left out at random
for some items (`dropout`), so the prior also knows what music is like when nothing is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from audiovq.config import Config as BaseConfig


@dataclass
class Conditions:
    """What is known of each item of a batch."""

    labels: dict[str, Tensor]  # int64 [b] a label name; 0 is unknown
    n_samples: Tensor  # int64 [b], length of the whole piece
    position: Tensor  # int64 [b], index of the first code of this window in the piece


@dataclass(frozen=True)
class Stream:
    """The code stream that a prior models."""

    hop_length: int
    sample_rate: int
    vocabularies: dict[str, list[str]]  # values of each label; index 0 of its embedding is unknown


class LabelConditioner(nn.Module):
    """One of the values that a label takes in the training tracks (Jukebox, arXiv:2005.00341, section 4.2)."""

    class Config(BaseConfig):
        kind: Literal["label"] = "label"
        name: str = "genre"
        dropout: float = Field(default=0.1, ge=0, le=1)

    def __init__(self, config: Config, dim: int, stream: Stream):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(len(stream.vocabularies[config.name]) + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, 1, dim]
        index = conditions.labels[self.config.name]
        if self.training:
            index = index * (torch.rand(len(index), device=index.device) >= self.config.dropout)
        return self.embedding(index)[:, None]


class TimingConditioner(nn.Module):
    """Total length, time passed, time left and fraction passed at every code (Jukebox, section 4.2, has bins;
    here each is a few sines)."""

    class Config(BaseConfig):
        kind: Literal["timing"] = "timing"
        dropout: float = Field(default=0.1, ge=0, le=1)

    def __init__(self, config: Config, dim: int, stream: Stream):
        super().__init__()
        self.config = config
        self.seconds_per_code = stream.hop_length / stream.sample_rate
        self.sample_rate = stream.sample_rate
        self.register_buffer("periods", 2.0 ** torch.arange(3, 13), persistent=False)  # 8 s to an hour
        self.register_buffer("waves", math.pi * torch.arange(1.0, 5.0), persistent=False)
        self.project = nn.Linear(2 * (3 * 10 + 4), dim, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    def forward(self, conditions: Conditions, n_codes: int) -> Tensor:  # [b, n_codes, dim]
        index = torch.arange(n_codes, device=conditions.position.device) + conditions.position[:, None]
        passed = index.float() * self.seconds_per_code
        total = (conditions.n_samples.float() / self.sample_rate)[:, None].expand_as(passed)
        times = torch.stack([total, passed, total - passed], dim=-1)  # [b, n, 3]
        angles = (times[..., None] * (2 * math.pi / self.periods)).flatten(-2)  # type: ignore[operator]
        fraction = (passed / total.clamp(min=1e-3))[..., None] * self.waves  # type: ignore[operator]
        angles = torch.cat([angles, fraction], dim=-1)
        vectors = self.project(torch.cat([angles.sin(), angles.cos()], dim=-1))
        if self.training:
            kept = torch.rand(len(index), device=index.device) >= self.config.dropout
            vectors = vectors * kept[:, None, None].to(vectors.dtype)
        return vectors


CONDITIONERS = {"label": LabelConditioner, "timing": TimingConditioner}
