"""The prior: codes so far, coarser codes and conditions -> logits of the next code. One class for all levels. Levels
are generated from coarse to fine (VQ-VAE-2, arXiv:1906.00446, section 3.2; Jukebox, arXiv:2005.00341, section 4). A
prior sees the codes of all coarser levels, a few of them ahead of its own time, and a window of its own."""

import functools
from typing import Any

import torch
from einops import rearrange, repeat
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config, one_of
from audiovq.distributed import rng
from audiovq.prior.conditioners import CONDITIONERS, NO_GAP, Conditions
from audiovq.prior.kv_cache import KVCache, Prefix
from audiovq.prior.spec import PriorSpec
from audiovq.prior.transformer import Transformer, TransformerConfig


class PriorConfig(Config):
    transformer: TransformerConfig = TransformerConfig()
    context_codes: int = Field(default=4, ge=0, le=1024)  # coarser codes to see on either side of the current one
    conditioners: tuple[one_of(CONDITIONERS), ...] = ()  # type: ignore[valid-type]
    # Share of training items without label, text, chroma and notes, for guidance (arXiv:2207.12598, section 3.2).
    unconditional_rate: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "PriorConfig":
        names = [f"label {c.name}" if c.kind == "label" else c.kind for c in self.conditioners]
        if len(set(names)) < len(names):
            raise ValueError(f"conditioners: expected each once, found {', '.join(names)}")
        if {"chroma", "notes"} <= set(names):
            raise ValueError("conditioners: expected chroma or notes, found both")
        if {"text", "infill"} & set(names) and self.transformer.head_dim < 4:
            found = self.transformer.dim
            raise ValueError(f"transformer.dim: text and infill need at least 4 times n_heads, found {found}")
        return self

    @property
    def label_names(self) -> list[str]:
        return [c.name for c in self.conditioners if c.kind == "label"]

    def conditioner(self, kind: str) -> Any:
        """The config of the conditioner of a kind, or None."""
        return next((c for c in self.conditioners if c.kind == kind), None)

    @property
    def extra_inputs(self) -> dict[str, Any]:
        """What the conditioners need besides codes and labels, as keyword arguments of `CodeWindows`."""
        text, infill = self.conditioner("text"), self.conditioner("infill")
        sizes = {"text_bytes": text.max_bytes if text else 0, "infill_codes": infill.n_codes if infill else 0}
        return sizes | {kind: self.conditioner(kind) is not None for kind in ("chroma", "notes")}


class SamplingConfig(Config):
    """Recommended by the recipe, saved with the prior, and overridden by the options of a command."""

    temperature: float = Field(default=1.0, ge=0)  # 0 takes the most likely code
    top_k: int = Field(default=0, ge=0, le=1 << 16)  # draw from the k most likely codes; 0 is all
    top_p: float = Field(default=1.0, gt=0, le=1)  # draw from the most likely codes with this probability
    guidance: float = Field(default=1.0, ge=0)  # strength of labels, text, chroma and notes; 1 is as trained


class UpsamplerConditioner(nn.Module):
    """Codes of all coarser levels, int64 [b, n_coarser, t + 2 · context_codes], at the rate of the next
    coarser level -> one vector for each code of this level, [b, t · ratio, dim]. The `context_codes` at both
    ends are real neighbours, not padding, so a part of a track gets the same vectors as the whole track."""

    def __init__(self, spec: PriorSpec, dim: int, context_codes: int):
        super().__init__()
        self.ratio = spec.ratio
        self.embeddings = nn.ModuleList(nn.Embedding(spec.codebook_size + 1, dim) for _ in range(spec.level))
        self.around = nn.Conv1d(dim, dim, kernel_size=2 * context_codes + 1)
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim)
        self.context_codes = context_codes
        self.phase = nn.Parameter(0.02 * torch.randn(self.ratio, dim))  # tells the `ratio` codes apart
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.5 / spec.level**0.5)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        x = torch.stack([e(codes[:, i]) for i, e in enumerate(self.embeddings)]).sum(dim=0)
        centre = x[:, self.context_codes : x.shape[1] - self.context_codes]  # [b, t, dim]
        around = rearrange(self.around(rearrange(x, "b t d -> b d t")), "b d t -> b t d")  # [b, t, dim]
        x = centre + self.mix(F.gelu(self.norm(around)))
        return repeat(x, "b t d -> b (t r) d", r=self.ratio) + self.phase.repeat(x.shape[1], 1)


class Prior(nn.Module):
    """A pure network. As an input, the code `codebook_size` means "outside the track"."""

    def __init__(self, config: PriorConfig, spec: PriorSpec):
        super().__init__()
        self.config, self.spec = config, spec
        dim = config.transformer.dim
        self.embedding = nn.Embedding(spec.codebook_size + 1, dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.coarser = UpsamplerConditioner(spec, dim, config.context_codes) if spec.level else None
        self.conditioners = nn.ModuleList(CONDITIONERS[c.kind](c, dim, spec) for c in config.conditioners)
        self.dropout = nn.Dropout(config.transformer.dropout)
        n_prefix = sum(c.n_prefix for c in self.conditioners)  # type: ignore[misc]
        self.transformer = Transformer(config.transformer, n_prefix)  # type: ignore[arg-type]
        self.head = nn.Linear(dim, spec.codebook_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        other = torch.arange(spec.codebook_size) * spec.slots // spec.codebook_size != torch.arange(spec.slots)[:, None]
        self.other_slots = nn.Buffer(-1e9 * other, persistent=False)  # [slots, codebook_size], to add to logits

    @functools.cached_property
    def n_weights(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def context(self, coarser: Tensor, conditions: Conditions, n_codes: int) -> Tensor:
        """Everything known besides the level's own codes, [1 or b, n_codes, dim], to add to their embeddings.

        Args:
            coarser: int64 [b, level, ceil(n_codes / ratio) + 2 · context_codes], at the rate of the next
                coarser level; the window starts with a code of that level. Not used by level 0.
        """
        total = torch.zeros(1, n_codes, self.config.transformer.dim, device=conditions.position.device)
        if self.coarser is not None:
            total = total + self.coarser(coarser)[:, :n_codes]
        for conditioner in self.conditioners:
            total = total + conditioner(conditions, n_codes)
        return total

    def prefix(self, conditions: Conditions) -> Prefix | None:
        """What every code attends to: text and the codes after a gap. None if no conditioner has a prefix."""
        tokens = [c.prefix(conditions) for c in self.conditioners if c.n_prefix]  # type: ignore[operator]
        return self.transformer.read_prefix(torch.cat(tokens, dim=1)) if tokens else None

    def forward(
        self, previous: Tensor, context: Tensor, cache: KVCache | None = None, prefix: Prefix | None = None
    ) -> Tensor:
        """Logits [b, t, codebook_size] of t codes in a row.

        Args:
            previous: int64 [b, t], the code before each.
            context: float [b, t, dim], of `context`.
            cache: the codes before `previous`; it contains the prefix.
            prefix: without a cache, the prefix of the items' conditions.
        """
        return self.head(self.transformer(self.dropout(self.embedding(previous) + context), cache, prefix))

    def possible(self, logits: Tensor, position: Tensor) -> Tensor:
        """Logits [..., codebook_size] without the codes of other slots than that of a position in the track, [...]."""
        return logits + self.other_slots[position % self.spec.slots] if self.spec.slots > 1 else logits

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood in nats, summed, and the number of codes, over a batch of `CodeWindows`."""
        labels = dict(zip(self.spec.vocabularies, batch["labels"].T, strict=True))
        extra = {name: batch.get(name) for name in ("text", "chroma", "right", "gap_end")}
        conditions = Conditions(labels, batch["n_samples"], batch["position"], **extra)
        if self.training and self.config.unconditional_rate:
            random = rng.rand_per_item(len(conditions.position), conditions.position.device)
            conditions = conditions.only_where(random >= self.config.unconditional_rate)
        context = self.context(batch["coarser"], conditions, batch["codes"].shape[1])
        logits = self(batch["previous"], context, prefix=self.prefix(conditions))  # [b, t, codebook_size]
        targets, outside = self.targets(batch), self.spec.codebook_size
        position = batch["position"][:, None] + torch.arange(targets.shape[1], device=targets.device)
        logits = self.possible(logits.float(), position)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=outside, reduction="sum")
        return nll, (targets != outside).sum()

    def targets(self, batch: dict[str, Any]) -> Tensor:
        """The codes [b, t] to predict; `codebook_size` outside the track and after a gap."""
        codes, gap_end = batch["codes"], batch.get("gap_end")
        if gap_end is None:
            return codes
        index = torch.arange(codes.shape[1], device=codes.device) + batch["position"][:, None]
        return codes.masked_fill((index >= gap_end[:, None]) & (gap_end[:, None] != NO_GAP), self.spec.codebook_size)
