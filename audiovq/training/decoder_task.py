"""Stage 1b: the decoder is tuned against discriminators. Encoder and codebooks do not change, so codes stay the same,
and encoded music and priors remain valid."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import Dataset

from audiovq.data.tracks import Scan
from audiovq.distributed import collectives
from audiovq.recipe import DecoderTrainingConfig, Recipe, TrainingConfig
from audiovq.tokenizer import discriminators as adversary
from audiovq.tokenizer.discriminators import DiscriminatorOutput, Discriminators
from audiovq.tokenizer.losses import ReconstructionLoss
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.task import Part, Task
from audiovq.training.tokenizer_task import TokenizerTask, tone_loss, waveform_crops


class DecoderTask(Task):
    """Reconstruction and adversarial losses for the decoder's weights alone. Only what follows the sum of all levels
    is tuned, because projections and upsampling of coarser levels influence what finer ones quantize. Decoder and
    discriminators step together."""

    shown = (*TokenizerTask.shown, "adversarial", "feature_matching", "discriminator")

    def __init__(self, recipe: Recipe, scan: Scan, tokenizer: VQVAE):
        super().__init__()
        assert recipe.decoder_tuning is not None, "without decoder_tuning there is nothing to do"
        torch.manual_seed(recipe.seed)
        self.has_held_out = bool(scan.tracks.of("valid"))
        self.title, self.recipe_key = "decoder", "decoder_tuning"
        self.recipe, self.stage, self.scan, self.seed = recipe, recipe.decoder_tuning, scan, recipe.seed
        model = tokenizer.config
        tokenizer.requires_grad_(False)
        for autoencoder in tokenizer.groups:
            autoencoder.decoder.requires_grad_(True)
        self.tokenizer = tokenizer
        self.discriminators = Discriminators(model.channels, self.stage.adversarial, model.sample_rate)
        self.network = nn.ModuleDict({"tokenizer": tokenizer, "discriminators": self.discriminators})
        self.losses = ReconstructionLoss(recipe.tokenizer.losses, model.sample_rate)
        self.tone_loss = tone_loss(tokenizer, recipe.tokenizer.losses)
        self.example_seconds = recipe.tokenizer.crop_samples / model.sample_rate

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.tokenizer.eval()  # codebooks and statistics must not change
        return self

    def parts(self, config: TrainingConfig) -> list[Part]:
        assert isinstance(config, DecoderTrainingConfig)
        first_step = config.discriminator_steps  # until then the discriminators train alone
        for_decoder = config.model_copy(update={"steps": config.steps - first_step})
        for_discriminators = config.model_copy(update={"learning_rate": config.discriminator_learning_rate})
        discriminators = Part(self.discriminators, for_discriminators, suffix="_discriminators")
        return [Part(self.tokenizer, for_decoder, first_step), discriminators]

    def dataset(self, split: str) -> Dataset[Tensor]:
        """Other crops than the tokenizer was trained on, but the same held-out ones, for comparison."""
        seed = self.seed + (1 if split == "valid" else 2)
        return waveform_crops(self.recipe.tokenizer, self.recipe.data, self.scan, split, seed)

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # [b, channels, samples]
        output = self.tokenizer(batch, drop_levels=self.training)
        reconstructions = output.reconstructions
        real = self.discriminators(batch)
        # Each loss reaches the weights of one network only, so that one backward pass serves both.
        for_discriminators = self.discriminator_loss(real, reconstructions)
        terms = self.decoder_terms(batch, real, reconstructions)
        if self.tone_loss is not None:
            terms["tones"] = self.tone_loss(output.tones, batch)
        for_decoder = self.decoder_loss(terms)
        terms["discriminator"] = for_discriminators
        return for_decoder + for_discriminators, {name: value.detach() for name, value in terms.items()}

    def discriminator_loss(self, real: list[DiscriminatorOutput], reconstructions: list[Tensor]) -> Tensor:
        """The loss of the discriminators: music against each reconstruction [b, channels, samples]."""
        kind = self.stage.adversarial.loss
        losses = [adversary.discriminator_loss(real, self.discriminators(x.detach()), kind) for x in reconstructions]
        return torch.stack(losses).mean()

    def decoder_terms(
        self, batch: Tensor, real: list[DiscriminatorOutput], reconstructions: list[Tensor]
    ) -> dict[str, Tensor]:
        """The unweighted terms of the decoder's loss; those of independent autoencoders add up."""
        per_output = []
        for reconstruction in reconstructions:
            with adversary.frozen(self.discriminators):
                fake = self.discriminators(reconstruction)
            terms = self.losses(reconstruction, batch)
            terms["adversarial"] = adversary.adversarial_loss(fake, self.stage.adversarial.loss)
            terms["feature_matching"] = adversary.feature_matching_loss(real, fake)
            per_output.append(terms)
        return {name: torch.stack([terms[name] for terms in per_output]).sum() for name in per_output[0]}

    def decoder_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms, with balanced gradients. The gradient of an adversarial term grows by orders
        of magnitude while the discriminators learn, so its norm is scaled to the term's weight times that of all
        reconstruction terms. Differs from VQGAN (arXiv:2012.09841, eq. 7): norms are over all weights of the decoder,
        not over its last layer."""
        weights = {name: getattr(self.stage.adversarial, name) for name in ("adversarial", "feature_matching")}
        reconstruction = self.losses.weighted({k: v for k, v in terms.items() if k not in weights})
        loss = reconstruction + sum(weight * terms[name] for name, weight in weights.items())
        if not torch.is_grad_enabled():
            return loss
        parameters = [p for p in self.tokenizer.parameters() if p.requires_grad]
        total = torch.autograd.grad(reconstruction, parameters, retain_graph=True)
        total_norm = get_total_norm(total)
        for name, weight in weights.items():
            if weight == 0:
                continue
            gradient = torch.autograd.grad(terms[name], parameters, retain_graph=True)
            scale = collectives.mean_(weight * total_norm / get_total_norm(gradient).clamp(min=1e-12))
            total = [a + scale * b for a, b in zip(total, gradient, strict=True)]
        # A function whose gradient is `total`, so that the backward pass does not compute it again.
        linear = torch.stack([(p * g).sum() for p, g in zip(parameters, total, strict=True)]).sum()
        return loss.detach() + (linear - linear.detach())
