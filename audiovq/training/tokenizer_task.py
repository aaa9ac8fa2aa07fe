"""Stage 1: the VQ-VAE learns to reconstruct crops of music."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq.data.datasets import WaveformCrops
from audiovq.data.tracks import DataConfig, Scan
from audiovq.distributed import collectives
from audiovq.recipe import TokenizerStage
from audiovq.tokenizer.blocks import ConvNeXtBlock, DilatedBlock
from audiovq.tokenizer.data_init import Bypass, initialise_codebooks, initialise_statistics
from audiovq.tokenizer.decoders import ToneDecoder
from audiovq.tokenizer.losses import LossConfig, ReconstructionLoss, ToneLoss
from audiovq.tokenizer.quantizer import Quantized
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.task import Task


class TokenizerTask(Task):
    """Reconstruction and quantizers' losses, the terms of the negative ELBO (VQ-VAE, arXiv:1711.00937, section 3.2).

    Before the first step, statistics are taken from the first batch. Until `vq_start_step` the quantizers are
    bypassed, so that latents become worth coding; then the codebooks start by k-means. Until `sound_start_step`
    only the loudness of tones is learned (decoder `tones`).

    Metrics, in addition to the terms of the loss:
        reconstruction: the weighted sum of the reconstruction terms.
        kl_bits_per_second: KL(q(codes | waveform) | uniform codes), the sum over levels. For deterministic
            quantizers (ema, fsq) it is the raw bit rate, `bits_per_code` each; for gumbel the divergence.
        perplexity_i, usage_i: 2^H of level i's codes in the batch, and the fraction of the codebook in use.
        unigram_bits_per_second_i: H times the code rate: the bit rate of level i's codes at their entropy.
    Metrics of codes have no meaning before `vq_start_step`.
    """

    network: VQVAE
    shown = ("mel", "stft", "spectral_convergence", "waveform_l1", "tones")
    splits_batches = True  # statistics and codebooks are updated once per step, with all examples

    def __init__(self, stage: TokenizerStage, data: DataConfig, scan: Scan, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.has_held_out = bool(scan.tracks.of("valid"))
        self.title = self.recipe_key = "tokenizer"
        self.stage, self.data, self.scan, self.seed = stage, data, scan, seed
        self.network = VQVAE(stage.model)
        self.n_steps = nn.Buffer(torch.zeros((), dtype=torch.int64))  # without skipped steps
        self.example_seconds = stage.crop_samples / stage.model.sample_rate
        self.losses = ReconstructionLoss(stage.losses, stage.model.sample_rate)
        self.tone_loss = tone_loss(self.network, stage.losses)

    def dataset(self, split: str) -> Dataset[Tensor]:
        return waveform_crops(self.stage, self.data, self.scan, split, self.seed + (split == "valid"))

    def blocks(self) -> list[nn.Module]:
        return [block for block in self.network.modules() if isinstance(block, ConvNeXtBlock | DilatedBlock)]

    def forward_state(self) -> list[Tensor]:
        """Buffers, code vectors (by revival), and all weights in the steps in which they are initialised."""
        weights = self.network if int(self.n_steps) in {0, self.stage.vq_start_step} else self.network.codebooks
        return [self.n_steps, *self.network.buffers(), *weights.parameters()]

    def health_facts(self) -> dict[str, Any]:
        stage, model = self.stage, self.stage.model
        samples = stage.training.batch_size * stage.crop_samples
        revival = getattr(model.quantizer, "revival_fraction", 0.0)
        against_collapse = {
            "ema": f"raise tokenizer.model.quantizer.revival_fraction (now {revival:g})",
            "gumbel": f"lower tokenizer.losses.kl (now {stage.losses.kl:g})",
        }
        return {
            "codes_from": max(stage.vq_start_step, 2 * stage.losses.waveform_warmup_steps, stage.sound_start_step),
            "most_codes": tuple(min(model.codebook_size, samples // hop) for hop in model.hop_lengths),
            "against_collapse": against_collapse.get(model.quantizer.kind, ""),
        }

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # [b, channels, samples]
        step, start = int(self.n_steps), self.stage.vq_start_step
        microbatch_size = self.stage.training.device_batch_size
        # 1. Start-up from data, in the first step and in the first one that quantizes.
        if self.training and step == 0:
            initialise_statistics(self.network, batch)
        if self.training and step == start:
            initialise_codebooks(self.network, batch, microbatch_size)
        # 2. Reconstruct.
        quantizers = self.network.quantizers()
        if step < start:
            quantizers = [Bypass(quantizer) for quantizer in quantizers]
        only_tones = self.training and step < self.stage.sound_start_step
        output = self.network(batch, quantizers, microbatch_size=microbatch_size, only_tones=only_tones)
        if self.training:
            self.n_steps += 1
        # 3. Compute the losses. Those of independent autoencoders add up, as if each were trained alone.
        per_output = [self.losses(x, batch, microbatch_size) for x in output.reconstructions]
        names = per_output[0] if per_output else ()
        terms = {name: torch.stack([terms[name] for terms in per_output]).sum() for name in names}
        if self.tone_loss is not None and output.tones is not None:
            terms["tones"] = self.tone_loss(output.tones, batch)
        # Evaluations have full weights throughout, so that their losses can be compared.
        reconstruction = self.losses.weighted(terms, step if self.training else None)
        losses = output.losses
        metrics = {name: value.detach() for name, value in (terms | losses).items()}
        metrics["reconstruction"] = reconstruction.detach()
        metrics |= code_metrics(output.levels, self.stage.model)
        return reconstruction + self.losses.weighted(losses), metrics

    def describe(self, metrics: dict[str, float]) -> str:
        perplexities = "/".join(f"{metrics[f'perplexity_{i}']:.0f}" for i in range(self.stage.model.n_levels))
        return f"{super().describe(metrics)} perplexity {perplexities}"


def tone_loss(network: VQVAE, losses: LossConfig) -> ToneLoss | None:
    """The loss of the decoder's tones, if it has some and the loss has a weight."""
    decoder = network.groups[0].decoder
    if not isinstance(decoder, ToneDecoder) or not losses.tones:
        return None
    return ToneLoss(network.config.sample_rate, decoder.hop_length, decoder.pitches)


def waveform_crops(stage: TokenizerStage, data: DataConfig, scan: Scan, split: str, seed: int) -> WaveformCrops:
    """Crops of the tracks of a split, as the tokenizer is trained on."""
    tracks = scan.tracks.of(split) or scan.tracks.of("train")  # a single track is evaluated on itself
    sizes = stage.model.sample_rate, stage.model.channels, stage.crop_samples
    crops = WaveformCrops(Path(scan.folder), tracks, *sizes, seed, data.cache_gigabytes)
    if split == "train" and data.n_workers:
        crops.preload()
    return crops


@torch.no_grad()
def code_metrics(levels: list[Quantized], config: VQVAEConfig) -> dict[str, Tensor]:
    """The metrics of `TokenizerTask` that are about codes."""
    perplexities, usages = codebook_use([level.codes for level in levels], config.codebook_size)
    metrics: dict[str, Tensor] = {}
    kl_bits_per_second = torch.zeros_like(perplexities[0])
    for i, (level, rate) in enumerate(zip(levels, config.code_rates, strict=True)):
        metrics[f"perplexity_{i}"], metrics[f"usage_{i}"] = perplexities[i], usages[i]
        metrics[f"unigram_bits_per_second_{i}"] = (perplexities[i] / config.slots).log2() * rate
        kl_bits_per_second += level.losses.get("kl", config.bits_per_code * math.log(2)) * rate / math.log(2)
    return {"kl_bits_per_second": kl_bits_per_second, **metrics}


def codebook_use(codes: list[Tensor], codebook_size: int) -> tuple[Tensor, Tensor]:
    """Perplexity 2^H of the codes of all ranks, int64 [b, time] per level, and the fraction in use; [levels] each."""
    counts = [torch.bincount(level.flatten(), minlength=codebook_size) for level in codes]
    p = collectives.all_reduce_(torch.stack(counts).float())
    p = p / p.sum(dim=1, keepdim=True)
    return (-(p * p.clamp(min=1e-12).log()).sum(dim=1)).exp(), (p > 0).float().mean(dim=1)
