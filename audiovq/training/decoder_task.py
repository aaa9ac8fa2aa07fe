"""Stage 1b: the decoder learns from discriminators, with the encoder and the codebooks as they are.

Codes stay the same ones: shards and priors that were made of them remain valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.data.tracks import DataConfig, Scan
from audiovq.distributed import collectives
from audiovq.recipe import DecoderStage, DecoderTrainingConfig, TokenizerStage, TrainingConfig
from audiovq.tokenizer.discriminators import (
    DiscriminatorOutput,
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    frozen,
)
from audiovq.tokenizer.losses import ReconstructionLoss
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.task import Part, Task
from audiovq.training.tokenizer_task import level_metrics, waveform_crops


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
        self.recipe_key = "decoder_tuning"
        self.stage, self.tokenizer_stage, self.data, self.scan, self.seed = stage, tokenizer_stage, data, scan, seed
        discriminators = Discriminators(tokenizer.config.channels, stage.adversarial, tokenizer.config.sample_rate)
        tokenizer.requires_grad_(False)
        for group in tokenizer.groups:
            group.decoder.requires_grad_(True)  # type: ignore[union-attr]
        self.network = nn.ModuleDict({"tokenizer": tokenizer, "discriminators": discriminators})
        self.losses = ReconstructionLoss(tokenizer_stage.losses, tokenizer.config.sample_rate)
        self.example_seconds = tokenizer_stage.crop_samples / tokenizer.config.sample_rate

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
        terms = self.decoder_terms(batch, real, reconstructions)
        mine = self.decoder_loss(terms)
        metrics = {name: value.detach() for name, value in terms.items()}
        metrics |= {"discriminator": theirs.detach(), **level_metrics(batch, reconstructions)}
        return mine + theirs, metrics

    def discriminator_loss(self, real: list[DiscriminatorOutput], reconstructions: list[Tensor]) -> Tensor:
        """For the discriminators alone: music against each reconstruction."""
        kind = self.stage.adversarial.loss
        losses = [discriminator_loss(real, self.discriminators(x.detach()), kind) for x in reconstructions]
        return torch.stack(losses).mean()

    def decoder_terms(self, batch: Tensor, real: list[DiscriminatorOutput], reconstructions: list[Tensor]) -> dict[str, Tensor]:
        """Unweighted, for the decoder alone; those of independent autoencoders added up, as if tuned apart."""
        per_output = []
        for reconstruction in reconstructions:
            with frozen(self.discriminators):
                fake = self.discriminators(reconstruction)
            terms = self.losses(reconstruction, batch)
            terms["adversarial"] = adversarial_loss(fake, self.stage.adversarial.loss)
            terms["feature_matching"] = feature_matching_loss(real, fake)
            per_output.append(terms)
        return {name: torch.stack([terms[name] for terms in per_output]).sum() for name in per_output[0]}

    def decoder_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum, with a gradient in which each adversarial term is as long as its weight times that of all
        reconstruction terms together, over all weights of the decoder (VQGAN, arXiv:2012.09841, eq. 7, has the ratio at
        the last layer). Discriminators' gradients grow by orders of magnitude while they learn: no fixed factor would do."""
        weights = {name: getattr(self.stage.adversarial, name) for name in ("adversarial", "feature_matching")}
        reconstruction = self.losses.weighted({k: v for k, v in terms.items() if k not in weights})
        loss = reconstruction + sum(weight * terms[name] for name, weight in weights.items())
        if not torch.is_grad_enabled():
            return loss
        parameters = [p for p in self.tokenizer.parameters() if p.requires_grad]
        total = torch.autograd.grad(reconstruction, parameters, retain_graph=True)
        length = norm(total)
        for name, weight in weights.items():
            if weight == 0:
                continue
            gradient = torch.autograd.grad(terms[name], parameters, retain_graph=True)
            scale = collectives.mean_(weight * length / norm(gradient).clamp(min=1e-12))
            total = [a + scale * b for a, b in zip(total, gradient, strict=True)]
        # Its derivative by each weight is what was found above, so the backward pass need not find it again.
        linear = torch.stack([(p * g).sum() for p, g in zip(parameters, total, strict=True)]).sum()
        return loss.detach() + (linear - linear.detach())

    def describe(self, metrics: dict[str, float]) -> str:
        names = ("mel", "stft", "spectral_convergence", "waveform_l1", "adversarial", "feature_matching", "discriminator")
        terms = " ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
        return f"loss {metrics['loss']:.3f} {terms}"


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all gradients as one vector."""
    return torch.stack([gradient.norm() for gradient in gradients]).norm()
