"""Stage 1b: the decoder learns from discriminators, with the encoder and the codebooks as they are.

Codes stay the same ones: shards and priors that were made of them remain valid.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.data.tracks import DataConfig, Scan
from audiovq.recipe import DecoderStage, DecoderTrainingConfig, TokenizerStage, TrainingConfig
from audiovq.tokenizer.discriminators import (
    Discriminators,
    Judgement,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    frozen,
)
from audiovq.tokenizer.losses import ReconstructionLoss
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.loop import Part, Task
from audiovq.training.tokenizer_task import waveform_crops


class DecoderTask(Task):
    """The tokenizer's reconstruction losses and the discriminators' judgement, for the decoder's weights alone.

    Only what comes after the sum of all levels is tuned: projections and upsampling of coarser levels decide what finer
    ones quantize. Differs from HiFi-GAN: decoder and discriminators step at once, by gradients of one pass.
    """

    def __init__(
        self, stage: DecoderStage, tokenizer_stage: TokenizerStage, data: DataConfig, scan: Scan, tokenizer: VQVAE,
        seed: int,
    ):  # fmt: skip
        super().__init__()
        torch.manual_seed(seed)
        self.stage, self.tokenizer_stage, self.data, self.scan, self.seed = stage, tokenizer_stage, data, scan, seed
        discriminators = Discriminators(tokenizer.config.channels, stage.adversarial)
        tokenizer.requires_grad_(False)
        for group in tokenizer.groups:
            group.decoder.requires_grad_(True)  # type: ignore[union-attr]
        self.network = nn.ModuleDict({"tokenizer": tokenizer, "discriminators": discriminators})
        self.losses = ReconstructionLoss(tokenizer_stage.losses, tokenizer.config.sample_rate)

    @property
    def tokenizer(self) -> VQVAE:
        return cast(VQVAE, cast(nn.ModuleDict, self.network)["tokenizer"])

    @property
    def discriminators(self) -> Discriminators:
        return cast(Discriminators, cast(nn.ModuleDict, self.network)["discriminators"])

    def train(self, mode: bool = True) -> DecoderTask:
        super().train(mode)
        self.tokenizer.eval()  # codebooks, statistics and the count of steps stand still
        return self

    def parts(self, config: TrainingConfig) -> list[Part]:
        assert isinstance(config, DecoderTrainingConfig)
        alone = config.discriminator_steps
        mine = config.model_copy(update={"steps": config.steps - alone})
        theirs = config.model_copy(update={"learning_rate": config.discriminator_learning_rate})
        return [Part(self.tokenizer, mine, alone), Part(self.discriminators, theirs, suffix="_discriminators")]

    def dataset(self, split: str) -> Dataset[Tensor]:
        """Other training crops than the tokenizer had, and the same held-out ones, to compare."""
        seed = self.seed + (1 if split == "valid" else 2)
        return waveform_crops(self.tokenizer_stage, self.data, self.scan, split, seed)

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        reconstructions = self.tokenizer(batch, drop_levels=self.training).reconstructions
        real = self.discriminators(batch)
        theirs = self.discriminator_loss(real, reconstructions)
        mine, terms = self.decoder_loss(batch, real, reconstructions)
        metrics = {name: value.detach() for name, value in terms.items()}
        metrics["discriminator"] = theirs.detach()
        return mine + theirs, metrics

    def discriminator_loss(self, real: list[Judgement], reconstructions: list[Tensor]) -> Tensor:
        """For the discriminators alone: music against each reconstruction."""
        kind = self.stage.adversarial.loss
        losses = [discriminator_loss(real, self.discriminators(x.detach()), kind) for x in reconstructions]
        return torch.stack(losses).mean()

    def decoder_loss(
        self, batch: Tensor, real: list[Judgement], reconstructions: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """For the decoder alone: the weighted sum and its terms, those of independent autoencoders added up."""
        c = self.stage.adversarial
        per_output = []
        for reconstruction in reconstructions:
            with frozen(self.discriminators):
                fake = self.discriminators(reconstruction)
            terms = self.losses(reconstruction, batch)
            terms["adversarial"] = adversarial_loss(fake, c.loss)
            terms["feature_matching"] = feature_matching_loss(real, fake)
            per_output.append(terms)
        terms = {name: torch.stack([terms[name] for terms in per_output]).sum() for name in per_output[0]}
        weights = self.tokenizer_stage.losses.model_dump() | c.model_dump()
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum(), terms

    def describe(self, metrics: dict[str, float]) -> str:
        names = ("mel", "stft", "waveform_l1", "adversarial", "feature_matching", "discriminator")
        terms = " ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
        return f"loss {metrics['loss']:.3f} {terms}"
