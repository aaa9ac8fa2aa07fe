"""The VQ-VAE: a waveform becomes one sequence of codes per level, coarse to fine, and a waveform again.

There are three topologies:

- `residual`: one encoder and one decoder. The coarsest level is quantized first; each finer level quantizes what
  the coarser ones leave, so that every prefix of the levels decodes to music (with two levels: VQ-VAE-2,
  arXiv:1906.00446). A hop may be repeated, as in `hop_lengths: [1024, 512, 512]`: several levels then have codes
  at one rate (residual vector quantization, SoundStream, arXiv:2107.03312, section III-C).
- `independent`: one autoencoder per level, as in Jukebox (arXiv:2005.00341, section 3).
- `bands`: one encoder and one decoder; each level has the codes of some bands of frequencies (see `bands.py`).

The way of the data within one autoencoder, with time = samples / hop:

    waveform  [batch, channels, samples]
    features  [batch, dim, time]           per level, by the encoder
    latents   [batch, time, codebook_dim]  per level: what the coarser levels leave of the features, projected
    codes     [batch, time]                per level, by the quantizer
    residual  [batch, dim, time]           per level: what it adds to the sum; its code vectors, projected back
    waveform  [batch, channels, samples]   by the decoder, from the sum of the residuals
"""

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config, one_of
from audiovq.distributed import rng
from audiovq.tokenizer.bands import BandCombiner, BandEncoder, BandsConfig, check_bands
from audiovq.tokenizer.blocks import Upsample
from audiovq.tokenizer.decoders import DECODERS, IstftDecoder, ToneDecoder
from audiovq.tokenizer.encoder import Encoder, EncoderConfig
from audiovq.tokenizer.input_checks import check_codes, check_hop_lengths, check_waveform
from audiovq.tokenizer.normalization import latent_norm
from audiovq.tokenizer.patches import PatchQuantizer
from audiovq.tokenizer.quantizer import QUANTIZERS, EMAQuantizer, Quantized, Quantizer
from audiovq.utils.chunking import in_microbatches

ALL_QUANTIZERS = QUANTIZERS | {"patches": PatchQuantizer}


class VQVAEConfig(Config):
    sample_rate: int = Field(default=24000, ge=1000, le=384000)  # Hz
    channels: int = Field(default=1, ge=1, le=2)
    # Samples per code, coarse to fine; residual: may repeat.
    hop_lengths: tuple[Annotated[int, Field(le=1 << 16)], ...] = (1024, 512, 256)
    topology: Literal["residual", "independent", "bands"] = "residual"
    bands: BandsConfig = BandsConfig()  # of topology bands
    shared_codebook: bool = True
    causal: bool = False  # convolutions look back only, so that live sound needs little of the future
    dim: int = Field(default=256, ge=8, le=1 << 16)  # channels of the features
    whiten_latents: bool = False  # uncorrelated channels, with which levels share a codebook better
    level_dropout: float = Field(default=0.5, ge=0, le=1)  # residual: part of the items that train with fewer levels
    encoder: EncoderConfig = EncoderConfig()
    quantizer: one_of(ALL_QUANTIZERS) = EMAQuantizer.Config()  # type: ignore[valid-type]
    decoder: one_of(DECODERS) = IstftDecoder.Config()  # type: ignore[valid-type]
    # A published codec in place of the networks: kind, source, licence, and its own settings; `from_pretrained` sets it.
    codec: dict[str, str] | None = None

    @model_validator(mode="after")
    def _check(self) -> "VQVAEConfig":
        check_hop_lengths(self.hop_lengths, self.topology)
        if self.causal and (self.topology == "bands" or self.decoder.kind == "tones"):
            raise ValueError("causal: expected topology residual or independent and decoder istft or conv")
        check_bands(self)
        return self

    @property
    def n_levels(self) -> int:
        return len(self.hop_lengths)

    @property
    def code_rates(self) -> list[float]:
        """Codes per second of each level."""
        return [self.sample_rate / hop for hop in self.hop_lengths]

    @property
    def multiple(self) -> int:
        """Samples: waveforms are padded to whole codes of level 0, or whole patches."""
        return self.hop_lengths[0] * self.slots

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def slots(self) -> int:
        """Codes in a row that have parts of the codebook of their own, always the same ones."""
        return self.quantizer.slots if self.topology == "bands" else 1

    def highest_pitch(self, level: int) -> float | None:
        """MIDI pitch where the bands of a level end, of topology `bands`."""
        if self.topology != "bands":
            return None
        return self.bands.low + (level + 1) * self.quantizer.bands * self.bands.semitones

    @property
    def bits_per_code(self) -> float:
        return math.log2(self.codebook_size / self.slots)


@dataclass
class VQVAEOutput:
    reconstructions: list[Tensor]  # [b, channels, samples]: one (residual) or one per level (independent)
    levels: list[Quantized]
    tones: Tensor | None = None  # decoder tones: log loudness of each step of pitch [b, channels, steps, time]

    @property
    def losses(self) -> dict[str, Tensor]:
        """The quantizers' losses by name, unweighted, each the mean over levels."""
        names = self.levels[0].losses
        return {name: torch.stack([level.losses[name] for level in self.levels]).mean() for name in names}


class ResidualAutoencoder(nn.Module):
    """One encoder and one decoder with the levels between them, which are quantized one after the other. The
    quantizers belong to the `VQVAE`, because autoencoders may share them, and are arguments here."""

    encoder: Any  # Encoder, or BandEncoder

    def __init__(self, config: VQVAEConfig, hop_lengths: list[int]):
        super().__init__()
        dim, codebook_dim, whiten = config.dim, config.quantizer.codebook_dim, config.whiten_latents
        n, finest = len(hop_lengths), hop_lengths[-1]
        rate, causal, self.combiner = config.sample_rate, config.causal, None
        if config.topology == "bands":
            self.encoder = BandEncoder(config.multiple, config.bands, n, config.quantizer.bands, rate)
            self.combiner = BandCombiner(dim, config.bands, n, config.quantizer.bands)
            # The latents are the spectra.
            self.norms = self.projections_in = self.standardise = [nn.Identity()] * n
            finest = self.encoder.hop_length
        else:
            self.encoder = Encoder(config.channels, hop_lengths, dim, config.encoder, rate, causal)
            # Per level: into the space of the codebook, and back.
            self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in hop_lengths)
            self.projections_in = nn.ModuleList(nn.Linear(dim, codebook_dim) for _ in hop_lengths)
            self.standardise = nn.ModuleList(latent_norm(codebook_dim, whiten) for _ in hop_lengths)
            self.projections_out = nn.ModuleList(nn.Linear(codebook_dim, dim) for _ in hop_lengths)
        # From each level's rate to the next finer one's.
        ratios = [a // b for a, b in itertools.pairwise(hop_lengths)]
        self.ups = nn.ModuleList(Upsample(dim, dim, r, causal) if r > 1 else nn.Identity() for r in ratios)
        self.decoder_hop = finest  # samples of a frame of the decoder
        self.decoder = DECODERS[config.decoder.kind](dim, config.channels, finest, config.decoder, rate, causal)
        # Receptive fields to one side, in samples: of a code, and of a decoded sample.
        ups_radius = sum(hop for ratio, hop in zip(ratios, hop_lengths, strict=False) if ratio > 1)
        combiner_radius = self.combiner.radius * finest if self.combiner else 0
        self.encoder_radius = self.encoder.radius_samples + ups_radius
        self.decoder_radius = self.decoder.radius * finest + ups_radius + combiner_radius
        # As far as they look ahead: back and ahead alike, or hardly ahead and twice as far back.
        self.encoder_ahead, self.decoder_ahead = self.encoder_radius, self.decoder_radius
        if causal:
            self.encoder_ahead, self.decoder_ahead = self.encoder.front.ahead_samples, self.decoder.ahead * finest
            self.encoder_radius, self.decoder_radius = 2 * self.encoder_radius, 2 * self.decoder_radius
        self.period = self.decoder.period * finest  # samples

    def features(self, waveform: Tensor, microbatch_size: int | None = None) -> list[Tensor]:
        """[b, channels, samples] -> [b, dim, time] per level, computed for `microbatch_size` items at a time."""
        pieces = in_microbatches(self.encoder, microbatch_size, waveform)
        return [torch.cat(level) for level in zip(*pieces, strict=True)]

    def quantize(self, features: list[Tensor], quantizers: list[Quantizer]) -> tuple[list[Quantized], list[Tensor]]:
        """Quantize the features [b, dim, time] of each level, coarse to fine: `Quantized`, and residual [b, dim, time]."""
        results, residuals = [], []
        total = None  # the sum of the coarser levels' residuals
        for i, feature in enumerate(features):
            # 1. Take the features minus the sum of the coarser levels, at the rate of this level. (Bands do not add up.)
            if total is not None:
                total = self.ups[i - 1](total)  # [b, dim, time]
            left = feature if total is None else feature - total
            # 2. Project into the space of the codebook, with channels of equal size, so that all codes are used.
            latents = self.projections_in[i](self.norms[i](rearrange(left, "b d t -> b t d")))
            latents = self.standardise[i](latents)  # [b, time, codebook_dim]
            # 3. Quantize, and project the code vectors back into the space of the features.
            quantized = quantizers[i](latents)
            residual = self.residual(quantized.vectors, i)  # [b, dim, time]
            if self.combiner is None:
                total = residual if total is None else total + residual
            results.append(quantized)
            residuals.append(residual)
        return results, residuals

    def residual(self, vectors: Tensor, i: int) -> Tensor:
        """What level i adds to the sum: code vectors [b, time, codebook_dim] -> [b, dim, time]."""
        if self.combiner is not None:
            return rearrange(vectors, "b t d -> b d t")
        components = vectors * vectors.shape[-1] ** 0.5  # of vectors of about unit length, brought to about 1
        return rearrange(self.projections_out[i](components), "b t d -> b d t")

    def total(self, *residuals: Tensor) -> Tensor:
        """Residuals [b, dim, time] of the first k levels -> what the decoder gets, [b, dim, time] at its
        rate; the other levels add nothing."""
        if self.combiner is not None:
            return self.combiner(*residuals)
        total = residuals[0]
        for i, up in enumerate(self.ups, start=1):
            total = up(total)
            if i < len(residuals):
                total = total + residuals[i]
        return total

    def render(self, *residuals: Tensor, only_tones: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """As `total` -> waveform, and the loudness of the tones if the decoder gives it; or that alone."""
        total = self.total(*residuals)
        if only_tones:
            return None, self.decoder.tones(total)
        return self.decoder.render(total) if isinstance(self.decoder, ToneDecoder) else (self.decoder(total), None)


def random_prefixes(residuals: list[Tensor], probability: float) -> list[Tensor]:
    """With `probability`, set all but a random prefix of an item's levels to 0 (arXiv:2107.03312, section III-C)."""
    n, batch, device = len(residuals), len(residuals[0]), residuals[0].device
    prefix = 1 + (rng.rand_per_item(batch, device) * (n - 1)).long()  # int64 [b] in 1 … n - 1
    n_left = torch.where(rng.rand_per_item(batch, device) < probability, prefix, n)
    return [residual * (n_left > i).to(residual.dtype)[:, None, None] for i, residual in enumerate(residuals)]


class VQVAE(nn.Module):
    """The network alone: resampling, files and chunks are elsewhere (see `audiovq.Tokenizer`)."""

    groups: Any  # nn.ModuleList of ResidualAutoencoder: one (residual), or one per level (independent)
    codebooks: Any  # nn.ModuleList of Quantizer: one (shared), or one per level

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        hops = list(config.hop_lengths)
        groups = [[hop] for hop in hops] if config.topology == "independent" else [hops]
        self.groups = nn.ModuleList(ResidualAutoencoder(config, group) for group in groups)
        n_codebooks = 1 if config.shared_codebook else config.n_levels
        kind = ALL_QUANTIZERS[config.quantizer.kind]
        self.codebooks = nn.ModuleList(kind(config.quantizer) for _ in range(n_codebooks))
        # Receptive fields of a code and of a decoded sample to one side, and ahead of them, in samples.
        self.encoder_radius: int = max(autoencoder.encoder_radius for autoencoder in self.groups)
        self.decoder_radius: int = max(autoencoder.decoder_radius for autoencoder in self.groups)
        self.encoder_ahead: int = max(autoencoder.encoder_ahead for autoencoder in self.groups)
        self.decoder_ahead: int = max(autoencoder.decoder_ahead for autoencoder in self.groups)
        # Samples: where a chunk may begin, also one to encode; and after how many the decoder's reference
        # phases repeat, so that chunks which begin at multiples of it can be decoded in one batch.
        self.grid = config.multiple
        self.encoder_period = config.multiple if config.topology == "bands" else 1
        self.period = math.lcm(config.multiple, *(autoencoder.period for autoencoder in self.groups))

    def level_groups(self) -> list[tuple[ResidualAutoencoder, list[int]]]:
        """Each autoencoder with the indexes of its levels."""
        if self.config.topology == "independent":
            return [(autoencoder, [i]) for i, autoencoder in enumerate(self.groups)]
        return [(self.groups[0], list(range(self.config.n_levels)))]

    def quantizers(self) -> list[Quantizer]:
        """The quantizer of each level, the same module for all if the codebook is shared."""
        codebooks = list(self.codebooks)
        return codebooks * self.config.n_levels if self.config.shared_codebook else codebooks

    def quantize(
        self, waveform: Tensor, quantizers: list[Quantizer], microbatch_size: int | None = None
    ) -> list[tuple[ResidualAutoencoder, list[Quantized], list[Tensor]]]:
        """Encode and quantize, as in `forward`: each autoencoder, with `Quantized` and residuals [b, dim, time] a level."""
        results = []
        for autoencoder, levels in self.level_groups():
            features = autoencoder.features(waveform, microbatch_size)
            quantized, residuals = autoencoder.quantize(features, [quantizers[i] for i in levels])
            results.append((autoencoder, quantized, residuals))
        return results

    def forward(
        self, waveform: Tensor, quantizers: list[Quantizer] | None = None, drop_levels: bool | None = None,
        microbatch_size: int | None = None, only_tones: bool = False,
    ) -> VQVAEOutput:  # fmt: skip
        """Reconstruct a waveform. In training mode, also update each codebook once.

        Args:
            waveform: float [b, channels, samples]; samples are a multiple of the coarsest hop.
            quantizers: one per level; default: the network's own.
            drop_levels: whether items may lose finer levels (`level_dropout`); default: in training mode.
            microbatch_size: items that are encoded and decoded at a time; the result is the same.
            only_tones: return the loudness of the tones and no waveforms (decoder `tones`).
        """
        check_waveform(waveform, self.config.channels, self.config.multiple)
        quantizers = self.quantizers() if quantizers is None else quantizers
        drop_levels = self.training if drop_levels is None else drop_levels
        reconstructions, quantized, tones = [], [], None
        for autoencoder, results, residuals in self.quantize(waveform, quantizers, microbatch_size):
            if drop_levels and len(residuals) > 1 and self.config.level_dropout > 0:
                residuals = random_prefixes(residuals, self.config.level_dropout)
            render = partial(autoencoder.render, only_tones=only_tones)
            waveforms, loudness = zip(*in_microbatches(render, microbatch_size, *residuals), strict=True)
            reconstructions += [] if only_tones else [torch.cat(waveforms)]  # [b, channels, samples]
            tones = None if loudness[0] is None else torch.cat(loudness)
            quantized += results
        if self.training:
            for quantizer in dict.fromkeys(quantizers):  # a shared one once, with all its levels
                mine = [level for q, level in zip(quantizers, quantized, strict=True) if q is quantizer]
                quantizer.update([level.latents.detach() for level in mine], [level.codes for level in mine])
        return VQVAEOutput(reconstructions, quantized, tones)

    def encode(self, waveform: Tensor) -> list[Tensor]:
        """Quantize audio into one code sequence per level, coarse to fine.

        Args:
            waveform: float [batch, channels, samples] in [-1, 1] at `config.sample_rate` Hz. It is padded with
                zeros to a multiple of the coarsest hop.
        Returns:
            int64 [batch, ceil(samples / hop_lengths[i])] for level i, in [0, codebook_size).
        Raises:
            ValueError: wrong shape or channel count; the message has expected and received.
        """
        hops, samples = self.config.hop_lengths, waveform.shape[-1]
        waveform = F.pad(waveform, (0, -samples % self.config.multiple))
        check_waveform(waveform, self.config.channels, self.config.multiple)
        codes = [level.codes for _, levels, _ in self.quantize(waveform, self.quantizers()) for level in levels]
        return [level[:, : -(-samples // hop)] for level, hop in zip(codes, hops, strict=True)]

    def decode(self, codes: list[Tensor], n_samples: int | None = None, start: int = 0) -> Tensor:
        """Codes of the first k levels -> waveform; with fewer than all levels it is a coarser rendering.

        Args:
            codes: int64 [batch, ceil(n_samples / hop)] per level.
            n_samples: length of the result; default: that of the coarsest level's codes.
            start: sample of a longer piece at which these codes begin, below `period`; a multiple of the longest hop.
        Returns:
            float [batch, channels, n_samples].
        Raises:
            ValueError: no level or too many, codes out of range, or lengths that do not belong together.
        """
        hops, quantizers = self.config.hop_lengths, self.quantizers()
        if n_samples is None:
            n_samples = codes[0].shape[1] * hops[0] if codes else 0
        check_codes(codes, hops, self.config.codebook_size, n_samples)
        # The last autoencoder with codes: the only one (residual), or that of the finest level (independent).
        autoencoder, levels = self.level_groups()[len(codes) - 1 if self.config.topology == "independent" else 0]
        first = levels[0]
        length = codes[first].shape[1] * hops[first]  # samples of the padded waveform
        residuals = []
        for i in levels[: len(codes)]:
            residual = autoencoder.residual(quantizers[i].embed(codes[i]), i - first)  # [b, dim, time]
            # The coarsest level may reach further than a finer one, which adds nothing there.
            n_missing = 0 if self.config.topology == "bands" else length // hops[i] - residual.shape[-1]
            residuals.append(F.pad(residual, (0, n_missing)))
        return autoencoder.decoder(autoencoder.total(*residuals), start // autoencoder.decoder_hop)[..., :n_samples]
