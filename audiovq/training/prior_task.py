"""Stage 2: a prior learns the codes of its level, given all coarser ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.data.datasets import CodeWindows, vocabularies
from audiovq.data.shards import Shards
from audiovq.prior.extend import extend_vocabularies, extended
from audiovq.prior.prior import Prior, PriorSpec
from audiovq.recipe import PriorStage
from audiovq.training.adapters import add_adapters
from audiovq.training.loop import Task


class PriorTask(Task):
    """Cross-entropy, logged as bits a code and as bits a second of audio (which compares across rates).

    Args:
        start: a prior to go on from; its labels keep their values, and those of the tracks that are new follow.
    """

    network: Prior

    def __init__(self, stage: PriorStage, shards: Shards, level: int, seed: int, start: Prior | None = None):
        super().__init__()
        torch.manual_seed(seed)
        self.place = f"priors.{level}"
        self.stage, self.shards, self.level, self.seed = stage, shards, level, seed
        index = shards.index
        known = vocabularies(shards, stage.model.label_names)
        known = extend_vocabularies(start.spec.vocabularies, known) if start else known
        self.spec = PriorSpec(
            level, index.hop_lengths, index.sample_rate, index.codebook_size, index.tokenizer_hash, known
        )
        self.begin = start
        self.network = self.build()
        self.example_seconds = stage.model.transformer.context / self.spec.code_rate

    def build(self) -> Prior:
        """A new network of this kind."""
        stage, start = self.stage, self.begin
        network = extended(start, stage.model, self.spec) if start else Prior(stage.model, self.spec)
        if stage.lora is not None:
            add_adapters(network, stage.lora)
        return network

    def watched(self) -> dict[str, Any]:
        dropout = self.stage.model.transformer.dropout
        wanted = 0.1 if dropout < 0.1 else min(0.5, dropout + 0.1)
        advice = f" or {self.place}.model.transformer.dropout to {wanted:g} (now {dropout:g}), raise codes.shifts"
        return {"against_overfitting": advice}

    def blocks(self) -> list[nn.Module]:
        return list(self.network.transformer.layers)

    def recompute_activations(self, wanted: bool) -> None:
        """Whether a layer's activations are computed again in the backward pass instead of kept."""
        self.network.transformer.recompute = wanted

    def weight(self, batch: dict[str, Any]) -> Tensor:
        """Of the codes that count."""
        return (self.network.targets(batch) != self.spec.codebook_size).sum()

    def dataset(self, split: str) -> Dataset[dict[str, Tensor]]:
        model, infill = self.stage.model, self.stage.model.conditioner("infill")
        return CodeWindows(
            self.shards, split if self.shards.index.tracks.of(split) else "train", self.level, model.transformer.context, model.context_codes,
            self.spec.vocabularies, self.seed + (split == "valid"), **model.beside,
            infill_rate=infill.rate if infill and split == "train" else 0.0,
        )  # fmt: skip

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        nll, n_codes = self.network.loss(batch)
        loss = nll / n_codes
        bits = loss.detach() / math.log(2)
        return loss, {"bits_per_code": bits, "bits_per_second": bits * self.spec.code_rate}

    def describe(self, metrics: dict[str, float]) -> str:
        return f"{metrics['bits_per_code']:.3f} bits a code, {metrics['bits_per_second']:.1f} bits a second"
