"""One class for the top prior and every upsampler: codes so far, coarser codes and conditions -> logits of the next.

Ancestral order is coarse to fine (VQ-VAE-2, arXiv:1906.00446, section 3.2; Jukebox, arXiv:2005.00341, section 4).
A level sees the codes of all coarser levels, a few of them ahead of its own time, and its own codes in a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config, one_of
from audiovq.distributed import rng
from audiovq.prior.conditioners import CONDITIONERS, NO_GAP, Conditions, Stream
from audiovq.prior.kv_cache import KVCache, Prefix
from audiovq.prior.transformer import Transformer, TransformerConfig


class PriorConfig(Config):
    transformer: TransformerConfig = TransformerConfig()
    context_codes: int = Field(default=4, ge=0)  # coarser codes seen to either side of the current one
    conditioners: tuple[one_of(CONDITIONERS), ...] = ()  # type: ignore[valid-type]
    # Share of the training items that hear neither label, text nor chroma, for guidance (arXiv:2207.12598, section 3.2).
    unconditional_rate: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> PriorConfig:
        names = [f"label {c.name}" if c.kind == "label" else c.kind for c in self.conditioners]
        if len(set(names)) < len(names):
            raise ValueError(f"conditioners: each once, found {', '.join(names)}")
        if {"text", "infill"} & set(names) and self.transformer.head_dim < 4:
            raise ValueError(
                f"transformer.dim: expected at least 4 times n_heads with a text or infill conditioner, found {self.transformer.dim}"
            )
        return self

    @property
    def label_names(self) -> list[str]:
        return [c.name for c in self.conditioners if c.kind == "label"]

    def conditioner(self, kind: str) -> Any:
        """The config of the conditioner of a kind, None if there is none."""
        return next((c for c in self.conditioners if c.kind == kind), None)

    @property
    def beside(self) -> dict[str, Any]:
        """What training examples must have beside codes and labels: keyword arguments of `CodeWindows`."""
        text, infill = self.conditioner("text"), self.conditioner("infill")
        return {
            "text_bytes": text.max_bytes if text else 0,
            "chroma": self.conditioner("chroma") is not None,
            "infill_codes": infill.n_codes if infill else 0,
        }


@dataclass(frozen=True)
class PriorSpec:
    """What a prior must know of its codes; saved beside its weights."""

    level: int
    hop_lengths: list[int]
    sample_rate: int
    codebook_size: int
    tokenizer_hash: str
    vocabularies: dict[str, list[str]]

    @property
    def code_rate(self) -> float:
        return self.sample_rate / self.hop_lengths[self.level]

    @property
    def ratio(self) -> int:
        """Codes of this level for one code of the next coarser level."""
        return self.hop_lengths[self.level - 1] // self.hop_lengths[self.level] if self.level else 1


class UpsamplerConditioner(nn.Module):
    """Codes of all coarser levels -> one vector for each code of this level.

    Codes [b, n_coarser, t + 2·context_codes] at the rate of the next coarser level -> [b, t · ratio, dim]. The context_codes is real
    context, not padding, so any piece of a track gets the vectors that the whole track gets.
    """

    def __init__(self, spec: PriorSpec, dim: int, context_codes: int):
        super().__init__()
        self.ratio = spec.ratio
        self.embeddings = nn.ModuleList(nn.Embedding(spec.codebook_size + 1, dim) for _ in range(spec.level))
        self.around = nn.Conv1d(dim, dim, kernel_size=2 * context_codes + 1)
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim)
        self.context_codes = context_codes
        self.phase = nn.Parameter(0.02 * torch.randn(self.ratio, dim))  # which of the `ratio` codes it is
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.5 / spec.level**0.5)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        x = torch.stack([e(codes[:, i]) for i, e in enumerate(self.embeddings)]).sum(dim=0)
        centre = x[:, self.context_codes : x.shape[1] - self.context_codes]
        around = rearrange(self.around(rearrange(x, "b t d -> b d t")), "b d t -> b t d")
        x = centre + self.mix(F.gelu(self.norm(around)))
        return repeat(x, "b t d -> b (t r) d", r=self.ratio) + self.phase.repeat(x.shape[1], 1)


class Prior(nn.Module):
    """Pure network; `codebook_size` as an input code means "outside the track"."""

    def __init__(self, config: PriorConfig, spec: PriorSpec):
        super().__init__()
        self.config, self.spec = config, spec
        dim = config.transformer.dim
        self.embedding = nn.Embedding(spec.codebook_size + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.coarser = UpsamplerConditioner(spec, dim, config.context_codes) if spec.level else None
        hop = spec.hop_lengths[spec.level]
        stream = Stream(hop, spec.sample_rate, spec.vocabularies, spec.codebook_size, spec.hop_lengths[0] // hop)
        self.conditioners = nn.ModuleList(CONDITIONERS[c.kind](c, dim, stream) for c in config.conditioners)
        self.dropout = nn.Dropout(config.transformer.dropout)
        self.transformer = Transformer(config.transformer, sum(c.n_prefix for c in self.conditioners))  # type: ignore[arg-type,misc]
        self.head = nn.Linear(dim, spec.codebook_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.packed: dict[str, Any] = {}  # weights as prior/stepper.py wants them, a precision

    def context(self, coarser: Tensor, conditions: Conditions, n_codes: int) -> Tensor:
        """All that is known before the codes themselves: [b, n_codes, dim], to be added to their embeddings.

        Args:
            coarser: int64 [b, level, ceil(n_codes / ratio) + 2·context_codes], at the rate of the next coarser level; the first
                code of the window begins a code of that level. Ignored by the top prior.
        """
        total = torch.zeros(1, n_codes, self.config.transformer.dim, device=conditions.position.device)
        if self.coarser is not None:
            total = total + self.coarser(coarser)[:, :n_codes]
        for conditioner in self.conditioners:
            total = total + conditioner(conditions, n_codes)
        return total

    def prefix(self, conditions: Conditions) -> Prefix | None:
        """What every code may attend to: text and the codes behind a gap. None if no conditioner has any."""
        tokens = [c.prefix(conditions) for c in self.conditioners if c.n_prefix]  # type: ignore[operator]
        return self.transformer.read_prefix(torch.cat(tokens, dim=1)) if tokens else None

    def forward(
        self, previous: Tensor, context: Tensor, cache: KVCache | None = None, prefix: Prefix | None = None
    ) -> Tensor:
        """Codes before each position, int64 [b, t], and `context` [b, t, dim] -> logits [b, t, codebook_size].

        Args:
            prefix: of the items' conditions; with a cache it is in there.
        """
        x = self.dropout(self.embedding(previous) + context)
        return self.head(self.transformer(x, cache, prefix))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Summed negative log-likelihood in nats, and how many codes it is of, over an example batch of `CodeWindows`.

        Codes from a gap's end on are not counted: they are told.
        """
        labels = dict(zip(self.spec.vocabularies, batch["labels"].T, strict=True))
        told = {name: batch.get(name) for name in ("text", "chroma", "right", "gap_end")}
        conditions = Conditions(labels, batch["n_samples"], batch["position"], **told)
        if self.training and self.config.unconditional_rate:
            kept = rng.rand_per_item(len(conditions.position), conditions.position.device)
            conditions = conditions.only_where(kept >= self.config.unconditional_rate)
        codes, outside = batch["codes"], self.spec.codebook_size
        context = self.context(batch["coarser"], conditions, codes.shape[1])
        logits = self(batch["previous"], context, prefix=self.prefix(conditions))
        targets = self.targets(batch)
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=outside, reduction="sum")
        return nll, (targets != outside).sum()

    def targets(self, batch: dict[str, Any]) -> Tensor:
        """The codes [b, t] to be predicted, `codebook_size` where there is nothing to predict."""
        codes, gap_end = batch["codes"], batch.get("gap_end")
        if gap_end is None:
            return codes
        index = torch.arange(codes.shape[1], device=codes.device) + batch["position"][:, None]
        told = (index >= gap_end[:, None]) & (gap_end[:, None] != NO_GAP)
        return codes.masked_fill(told, self.spec.codebook_size)

    def new_cache(self, batch: int, conditions: Conditions | None = None) -> KVCache:
        """An empty cache for `batch` items; their conditions are needed if they have a prefix (text, a gap)."""
        weight = self.head.weight
        cache = self.transformer.new_cache(batch, weight.device, weight.dtype)
        if self.transformer.n_prefix:
            assert conditions is not None, "a prior with a prefix needs the conditions for its cache"
            prefix = self.prefix(conditions)
            assert prefix is not None
            cache.write_prefix(prefix)
        return cache
