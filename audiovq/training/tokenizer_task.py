"""Stage 1: the VQ-VAE learns to reconstruct crops of waveform."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.data.datasets import WaveformCrops
from audiovq.data.tracks import DataConfig, Scan
from audiovq.recipe import TokenizerStage
from audiovq.tokenizer.losses import ReconstructionLoss
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.loop import Task


class TokenizerTask(Task):
    """Reconstruction and commitment; logs each term and, a level, the perplexity and usage of its codes."""

    network: VQVAE

    def __init__(self, stage: TokenizerStage, data: DataConfig, scan: Scan, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.stage, self.data, self.scan, self.seed = stage, data, scan, seed
        self.network = VQVAE(stage.model)
        self.losses = ReconstructionLoss(stage.losses, stage.model.sample_rate)

    def dataset(self, split: str) -> Dataset[Tensor]:
        return waveform_crops(self.stage, self.data, self.scan, split, self.seed + (split == "valid"))

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.network(batch)
        # Independent autoencoders each have a reconstruction: their losses add up, as if trained apart.
        per_output = [self.losses(reconstruction, batch) for reconstruction in output.reconstructions]
        terms = {name: torch.stack([terms[name] for terms in per_output]).sum() for name in per_output[0]}
        terms["commitment"] = output.commitment
        metrics = {name: value.detach() for name, value in terms.items()}
        for i, codes in enumerate(output.codes):
            perplexity, usage = codebook_use(codes, self.stage.model.codebook_size)
            metrics |= {f"perplexity_{i}": perplexity, f"usage_{i}": usage}
        return self.losses.weighted(terms), metrics

    def describe(self, metrics: dict[str, float]) -> str:
        perplexities = "/".join(f"{metrics[f'perplexity_{i}']:.0f}" for i in range(self.stage.model.n_levels))
        terms = " ".join(f"{name} {metrics[name]:.4g}" for name in ("mel", "stft", "waveform_l1") if name in metrics)
        return f"loss {metrics['loss']:.3f} {terms} perplexity {perplexities}"


def waveform_crops(stage: TokenizerStage, data: DataConfig, scan: Scan, split: str, seed: int) -> WaveformCrops:
    """Crops of the tracks of a split, as the tokenizer is trained on."""
    tracks = scan.split(split) or scan.split("train")  # a single track is its own yardstick
    model = stage.model
    return WaveformCrops(
        Path(scan.folder), tracks, model.sample_rate, model.channels, stage.crop_samples, seed, data.cache_gigabytes
    )


def codebook_use(codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Perplexity 2^H of one batch's codes, and the share of the codebook that occurs in it."""
    p = torch.bincount(codes.flatten(), minlength=codebook_size).float()
    p = p / p.sum()
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return entropy.exp(), (p > 0).float().mean()
