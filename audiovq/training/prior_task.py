"""Stage 2: a prior learns to predict the codes of its level, given those of all coarser levels."""

import contextlib
import math
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.data.datasets import CodeWindows, vocabularies
from audiovq.data.shards import Shards
from audiovq.distributed import collectives
from audiovq.prior.extend import extend_vocabularies, extended
from audiovq.prior.prior import Prior, PriorSpec
from audiovq.recipe import PriorStage
from audiovq.training.task import Task


class PriorTask(Task):
    """Cross-entropy of the codes of a level, logged as bits per code and per second of audio. A prior to
    `start` from keeps its label values, and new values of the tracks are added."""

    network: Prior

    def __init__(self, stage: PriorStage, shards: Shards, level: int, seed: int, start: Prior | None = None):
        super().__init__()
        torch.manual_seed(seed)
        self.has_held_out = bool(shards.index.tracks.of("valid"))
        self.title, self.recipe_key = f"prior-{level}", f"priors.{level}"
        self.stage, self.shards, self.level, self.seed = stage, shards, level, seed
        self.pretrained = [start] if start else []  # in a list, so that it stays off the device
        index = shards.index
        labels = vocabularies(shards, stage.model.label_names)
        labels = extend_vocabularies(start.spec.vocabularies, labels) if start else labels
        layout = index.hop_lengths, index.sample_rate, index.codebook_size, index.tokenizer_hash
        self.spec = PriorSpec(level, *layout, labels, index.slots)
        self.network = self.build()
        self.example_seconds = stage.model.transformer.context / self.spec.code_rate

    def build(self) -> Prior:
        """A new network, with the weights of the pretrained one if there is one. A network to be sharded has weights on
        rank 0 alone, which `distribute` hands out, so that the memory of a machine need not hold them several times."""
        model, start = self.stage.model, next(iter(self.pretrained), None)
        is_empty = self.stage.training.sharded and collectives.rank() and not start
        with init_empty_weights(include_buffers=False) if is_empty else contextlib.nullcontext():
            return extended(start, model, self.spec) if start else Prior(model, self.spec)

    def health_facts(self) -> dict[str, Any]:
        key, dropout = f"{self.recipe_key}.model.transformer.dropout", self.stage.model.transformer.dropout
        return {"against_overfitting": f", raise {key} (now {dropout:g}) or codes.shifts"}

    def blocks(self) -> list[nn.Module]:
        return list(self.network.transformer.layers)

    def weight(self, batch: dict[str, Any]) -> Tensor:
        """The number of codes to predict; those after the end of a track are not."""
        return (self.network.targets(batch) != self.spec.codebook_size).sum()

    def dataset(self, split: str) -> Dataset[dict[str, Tensor]]:
        model, infill = self.stage.model, self.stage.model.conditioner("infill")
        rate, seed = infill.rate if infill and split == "train" else 0.0, self.seed + (split == "valid")
        part = split if self.shards.index.tracks.of(split) else "train"
        place = self.level, model.transformer.context, model.context_codes, self.spec.vocabularies, seed
        return CodeWindows(self.shards, part, *place, **model.extra_inputs, infill_rate=rate)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        nll, n_codes = self.network.loss(batch)
        loss = nll / n_codes
        bits = loss.detach() / math.log(2)
        return loss, {"bits_per_code": bits, "bits_per_second": bits * self.spec.code_rate}

    def describe(self, metrics: dict[str, float]) -> str:
        return f"{metrics['bits_per_code']:.3f} bits per code, {metrics['bits_per_second']:.1f} bits per second"
