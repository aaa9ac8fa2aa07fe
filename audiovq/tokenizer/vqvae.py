"""The multi-resolution VQ-VAE: waveform ↔ one code sequence a level, coarse to fine.

Two topologies share everything below:

- `residual`: one encoder and one decoder. The top level is quantized first; each finer level quantizes what the
  coarser ones left, so any prefix of levels decodes to music (two levels: VQ-VAE-2, arXiv:1906.00446). A hop may be
  repeated: several codes at the same rate, each for what those before left (residual vector quantization, SoundStream,
  arXiv:2107.03312, section III-C), so `hop_lengths: [1024, 512, 512, 256]` has four levels, two of them at hop 512.
- `independent`: one autoencoder a level, as in Jukebox (arXiv:2005.00341, section 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from audiovq.config import Config, one_of
from audiovq.distributed import rng
from audiovq.tokenizer.blocks import Upsample
from audiovq.tokenizer.decoders import DECODERS, IstftDecoder
from audiovq.tokenizer.encoder import Encoder, EncoderConfig
from audiovq.tokenizer.normalization import BatchNorm, ZCAWhitening
from audiovq.tokenizer.quantizer import QUANTIZERS, Bypass, EMAQuantizer, Quantized, Quantizer
from audiovq.utils.microbatch import in_microbatches

MAX_LEVELS = 16


class VQVAEConfig(Config):
    sample_rate: int = Field(default=24000, ge=1000, le=384000)  # Hz
    channels: int = Field(default=1, ge=1, le=2)
    hop_lengths: tuple[int, ...] = (1024, 512, 256)  # samples a code, one a level, coarse to fine; residual: may repeat
    topology: Literal["residual", "independent"] = "residual"
    shared_codebook: bool = True
    dim: int = Field(default=256, ge=8)  # width of the features that are quantized
    whiten_latents: bool = False  # latents spread in all directions of the codebook, so that levels can share it well
    level_dropout: float = Field(
        default=0.5, ge=0, le=1
    )  # residual: chance that an item trains with a prefix of the levels
    encoder: EncoderConfig = EncoderConfig()
    quantizer: one_of(QUANTIZERS) = EMAQuantizer.Config()  # type: ignore[valid-type]
    decoder: one_of(DECODERS) = IstftDecoder.Config()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check(self) -> VQVAEConfig:
        hops = self.hop_lengths
        if not 1 <= len(hops) <= MAX_LEVELS:
            raise ValueError(f"expected 1 to {MAX_LEVELS} hop_lengths, found {len(hops)}")
        if min(hops) < 2 or any(a < b or a % b for a, b in itertools.pairwise(hops)):
            raise ValueError(
                f"hop_lengths: expected a list that never rises, each divisible by the next, found {list(hops)}"
            )
        if self.topology == "independent" and len(set(hops)) < len(hops):
            raise ValueError(
                f"hop_lengths: expected each once with topology independent (a second autoencoder at the same hop "
                f"adds nothing), found {list(hops)}; use topology residual"
            )
        return self

    @property
    def n_levels(self) -> int:
        return len(self.hop_lengths)

    @property
    def code_rates(self) -> list[float]:
        """Codes per second, a level."""
        return [self.sample_rate / hop for hop in self.hop_lengths]

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size


@dataclass
class VQVAEOutput:
    reconstructions: list[Tensor]  # float [b, channels, samples]: one (residual) or one a level (independent)
    levels: list[Quantized]

    @property
    def codes(self) -> list[Tensor]:
        """int64 [b, samples / hop], a level."""
        return [level.codes for level in self.levels]

    @property
    def losses(self) -> dict[str, Tensor]:
        """The quantizers' losses by name, unweighted, each the mean over levels."""
        names = self.levels[0].losses
        return {name: torch.stack([level.losses[name] for level in self.levels]).mean() for name in names}


class ResidualAutoencoder(nn.Module):
    """Levels that are quantized one after the other within one encoder and decoder.

    Works on feature sequences; the codebooks belong to the `VQVAE` and are handed in.
    """

    def __init__(self, config: VQVAEConfig, hop_lengths: list[int]):
        super().__init__()
        self.hop_lengths = hop_lengths
        dim, codebook_dim = config.dim, config.quantizer.codebook_dim
        self.encoder = Encoder(config.channels, hop_lengths, dim, config.encoder, config.sample_rate)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in hop_lengths)
        self.projections_in = nn.ModuleList(nn.Linear(dim, codebook_dim) for _ in hop_lengths)
        self.standardise = nn.ModuleList(
            nn.Sequential(BatchNorm(codebook_dim), ZCAWhitening(codebook_dim)) if config.whiten_latents else BatchNorm(codebook_dim)
            for _ in hop_lengths
        )  # fmt: skip
        self.projections_out = nn.ModuleList(nn.Linear(codebook_dim, dim) for _ in hop_lengths)
        ratios = [a // b for a, b in itertools.pairwise(hop_lengths)]
        self.ups = nn.ModuleList(Upsample(dim, dim, ratio) if ratio > 1 else nn.Identity() for ratio in ratios)
        self.decoder = DECODERS[config.decoder.kind](dim, config.channels, hop_lengths[-1], config.decoder)
        up_radius = sum(getattr(up, "radius", 0) * hop for up, hop in zip(self.ups, hop_lengths, strict=False))
        self.encoder_radius = self.encoder.radius_samples + up_radius
        self.decoder_radius = self.decoder.radius * hop_lengths[-1] + up_radius

    def quantize(
        self, features: list[Tensor], quantizers: Sequence[Quantizer | Bypass]
    ) -> tuple[list[Quantized], list[Tensor]]:
        """Quantize each level's features minus the sum of the coarser levels.

        Returns each level's `Quantized` and its contribution [b, dim, t].
        """
        total, results, steps = None, [], []
        for i, feature in enumerate(features):
            total = self.ups[i - 1](total) if total is not None else None
            left = feature if total is None else feature - total
            latents = self.projections_in[i](self.norms[i](rearrange(left, "b d t -> b t d")))
            latents = self.standardise[i](latents)
            quantized = quantizers[i](latents)
            step = self.expand(quantized.vectors, i)
            total = step if total is None else total + step
            results.append(quantized)
            steps.append(step)
        return results, steps

    def expand(self, vectors: Tensor, i: int) -> Tensor:  # [b, t, codebook_dim] -> [b, dim, t]
        components = vectors * vectors.shape[-1] ** 0.5  # of a vector of about unit length, brought to about 1
        return rearrange(self.projections_out[i](components), "b t d -> b d t")

    def decode(self, steps: list[Tensor]) -> Tensor:
        """Contributions of a prefix of the levels -> waveform. Levels that are absent add nothing."""
        total = steps[0]
        for i, up in enumerate(self.ups, start=1):
            total = up(total)
            if i < len(steps):
                total = total + steps[i]
        return self.decoder(total)


def encode_features(group: ResidualAutoencoder, waveform: Tensor, microbatch_size: int | None) -> list[Tensor]:
    """Each level's features [b, dim, t], some items at a time."""
    return [torch.cat(level) for level in zip(*in_microbatches(group.encoder, microbatch_size, waveform), strict=True)]


class VQVAE(nn.Module):
    """Pure network: no resampling, files or chunks here (see `audiovq.Tokenizer`)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        hops = list(config.hop_lengths)
        groups = [hops] if config.topology == "residual" else [[hop] for hop in hops]
        self.groups = nn.ModuleList(ResidualAutoencoder(config, group) for group in groups)
        n_codebooks = 1 if config.shared_codebook else config.n_levels
        self.codebooks = nn.ModuleList(QUANTIZERS[config.quantizer.kind](config.quantizer) for _ in range(n_codebooks))

    @property
    def encoder_radius(self) -> int:
        """Samples to either side that a code depends on."""
        return max(group.encoder_radius for group in self.groups)  # type: ignore[type-var]

    @property
    def decoder_radius(self) -> int:
        """Samples to either side, in codes' time, that a decoded sample depends on."""
        return max(group.decoder_radius for group in self.groups)  # type: ignore[type-var]

    @property
    def period(self) -> int:
        """Samples; a stretch that is decoded apart must begin at a multiple of it (and of the top hop) in the track."""
        groups: list[Any] = list(self.groups)
        return math.lcm(self.config.hop_lengths[0], *(g.decoder.period * g.hop_lengths[-1] for g in groups))

    def quantizers(self) -> list[Quantizer]:
        """The codebook module of each level; one and the same for all if shared."""
        codebooks: list[Any] = list(self.codebooks)
        return codebooks * self.config.n_levels if self.config.shared_codebook else codebooks

    def level_groups(self) -> list[tuple[Any, list[int]]]:
        """Each group with the indexes of its levels."""
        if self.config.topology == "residual":
            return [(self.groups[0], list(range(self.config.n_levels)))]
        return [(group, [i]) for i, group in enumerate(self.groups)]

    def forward(
        self,
        waveform: Tensor,
        quantizers: Sequence[Quantizer | Bypass] | None = None,
        drop_levels: bool | None = None,
        microbatch_size: int | None = None,
    ) -> VQVAEOutput:
        """Reconstruct a waveform; in training mode, update each codebook once.

        Args:
            waveform: float [b, channels, samples], samples a multiple of the top hop.
            quantizers: one for each level; default: the network's own.
            drop_levels: whether an item may be reconstructed from a prefix of its levels; default in training mode.
            microbatch_size: items that go through encoder and decoder together, to save memory; the result is the same.
        """
        self._check_waveform(waveform)
        drop_levels = self.training if drop_levels is None else drop_levels
        quantizers = self.quantizers() if quantizers is None else quantizers
        reconstructions: list[Tensor] = []
        results: list[Quantized] = []
        for group, levels in self.level_groups():
            features = encode_features(group, waveform, microbatch_size)
            quantized, steps = group.quantize(features, [quantizers[i] for i in levels])
            if drop_levels and len(levels) > 1 and self.config.level_dropout > 0:
                steps = self._drop_levels(steps)
            reconstructions.append(torch.cat(in_microbatches(lambda *s, g=group: g.decode(list(s)), microbatch_size, *steps)))
            results += quantized
        if self.training:
            for codebook in dict.fromkeys(quantizers):  # a shared one once, with the latents of all its levels
                mine = [result for q, result in zip(quantizers, results, strict=True) if q is codebook]
                codebook.update([r.latents.detach() for r in mine], [r.codes for r in mine])
        return VQVAEOutput(reconstructions, results)

    def _drop_levels(self, steps: list[Tensor]) -> list[Tensor]:
        """Per item, keep all levels or a random prefix (SoundStream, arXiv:2107.03312, section III-C)."""
        batch, device, n = len(steps[0]), steps[0].device, len(steps)
        prefix = 1 + (rng.rand_per_item(batch, device) * (n - 1)).long()
        kept = torch.where(rng.rand_per_item(batch, device) < self.config.level_dropout, prefix, n)
        return [step * (kept > i).to(step.dtype)[:, None, None] for i, step in enumerate(steps)]

    def encode(self, waveform: Tensor) -> list[Tensor]:
        """Quantize audio into one code sequence a level, coarse to fine.

        Args:
            waveform: float [batch, channels, samples], in [-1, 1], at `config.sample_rate` Hz; padded here with zeros
                to a multiple of the top hop.
        Returns:
            int64 [batch, ceil(samples / hop_lengths[i])] for level i, in [0, codebook_size).
        Raises:
            ValueError: wrong shape or channel count; the message has expected and received.
        """
        samples = waveform.shape[-1]
        waveform = nn.functional.pad(waveform, (0, -samples % self.config.hop_lengths[0]))
        self._check_waveform(waveform)
        quantizers, codes = self.quantizers(), []
        for group, levels in self.level_groups():
            results, _ = group.quantize(group.encoder(waveform), [quantizers[i] for i in levels])
            codes += [result.codes for result in results]
        hops = self.config.hop_lengths
        return [level[:, : -(-samples // hop)] for level, hop in zip(codes, hops, strict=True)]

    def decode(self, codes: list[Tensor], n_samples: int | None = None) -> Tensor:
        """Codes of the first k levels -> waveform; k = all, or fewer for a coarser rendering.

        Args:
            codes: int64 [batch, ceil(n_samples / hop)] a level.
            n_samples: length of the result; default is the top level's length times its hop.
        Returns:
            float [batch, channels, n_samples].
        Raises:
            ValueError: no level or too many, codes out of range, or lengths that do not belong together.
        """
        n_samples = codes[0].shape[1] * self.config.hop_lengths[0] if n_samples is None and codes else n_samples
        assert n_samples is not None or not codes
        self._check_codes(codes, n_samples or 0)
        quantizers, hops = self.quantizers(), self.config.hop_lengths
        if self.config.topology == "independent":  # the finest level at hand says it all
            level = len(codes) - 1
            group = self.groups[level]
            steps = [group.expand(quantizers[level].embed(codes[level]), 0)]  # type: ignore[operator]
        else:
            group, steps = self.groups[0], []
            for i, level_codes in enumerate(codes):
                step = group.expand(quantizers[i].embed(level_codes), i)  # type: ignore[operator]
                full = codes[0].shape[1] * (hops[0] // hops[i])
                steps.append(nn.functional.pad(step, (0, full - step.shape[-1])))  # past the end: nothing to add
        return group.decode(steps)[..., :n_samples]  # type: ignore[operator]

    def _check_waveform(self, waveform: Tensor) -> None:
        c = self.config
        if waveform.ndim != 3 or waveform.shape[1] != c.channels or waveform.shape[-1] < 1:
            raise ValueError(
                f"waveform: expected [batch, {c.channels} channels, samples > 0], found {list(waveform.shape)}"
            )
        if waveform.shape[-1] % c.hop_lengths[0]:
            raise ValueError(f"waveform: expected a multiple of {c.hop_lengths[0]} samples, found {waveform.shape[-1]}")

    def _check_codes(self, codes: list[Tensor], n_samples: int) -> None:
        hops = self.config.hop_lengths
        if not 1 <= len(codes) <= len(hops):
            raise ValueError(f"codes: expected 1 to {len(hops)} levels, found {len(codes)}")
        for i, (level, hop) in enumerate(zip(codes, hops, strict=False)):
            expected = -(-n_samples // hop)
            if level.ndim != 2 or level.shape[1] != expected:
                raise ValueError(
                    f"codes of level {i}: expected [batch, {expected}] for {n_samples} samples, found {list(level.shape)}"
                )
            low, high = torch.aminmax(level)
            if low < 0 or high >= self.config.codebook_size:
                raise ValueError(
                    f"codes of level {i}: expected 0 to {self.config.codebook_size - 1}, found {int(low)} to {int(high)}"
                )
