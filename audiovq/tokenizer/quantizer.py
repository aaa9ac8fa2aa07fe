"""Quantizers: latent vectors ↔ integer codes. A new one is a class and a line in `QUANTIZERS`."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config as BaseConfig
from audiovq.distributed import collectives
from audiovq.tokenizer.codebook import start_codebook, update_counts

MAX_CODES = 65536  # codes of a codebook: one fits into 16 bits


@dataclass
class Quantized:
    vectors: Tensor  # float32 [b, time, codebook_dim]: what the decoder gets, with a gradient to the latents
    codes: Tensor  # int64 [b, time]
    latents: Tensor  # float32 [b, time, codebook_dim]: what was quantized
    losses: dict[str, Tensor]  # unweighted scalars by name


class Quantizer(nn.Module):
    """Base of all quantizers. Vectors are float [..., codebook_dim], codes int64 [...] in [0, codebook_size).
    Everything is computed in float32 even under autocast: in bfloat16 other codes would be nearest."""

    Config: Any  # has `kind`, `codebook_size`, `codebook_dim`
    loss_names: tuple[str, ...] = ()  # keys of `Quantized.losses`

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.codebook_size: int = config.codebook_size
        self.codebook_dim: int = config.codebook_dim

    def normalise(self, x: Tensor) -> Tensor:
        """Any vectors -> latents, where code vectors are: here on the unit sphere."""
        return F.normalize(x.float(), dim=-1)

    def encode(self, latents: Tensor) -> Tensor:
        """Latents -> codes. `encode(embed(codes))` gives `codes`."""
        raise NotImplementedError

    def embed(self, codes: Tensor) -> Tensor:
        """Codes -> code vectors."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Quantized:
        """Any vectors [b, time, codebook_dim] -> codes and code vectors, with gradients and losses."""
        raise NotImplementedError

    def initialise(self, latents: list[Tensor]) -> None:
        """Start the codebook, once, from a batch of latents [b, time, codebook_dim] per level."""

    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """Update the codebook, once per training step, with the latents and codes of all its levels."""


def straight_through(latents: Tensor, nearest: Tensor) -> Tensor:
    """The values of `nearest`, the gradient of `latents` (van den Oord 2017, arXiv:1711.00937, section 3.2)."""
    return latents + (nearest - latents).detach()


def rotation(latents: Tensor, nearest: Tensor) -> Tensor:
    """The values of `nearest` as a rotation of `latents`; for gradients the rotation is a constant. Fifty 2024,
    arXiv:2410.06424, section 4.2: R = 1 - 2 r rᵀ + 2 q eᵀ with r = (e + q) / |e + q|, for unit vectors [..., dim] e
    and q. A gradient that points away from the code then points away from the latent, too."""
    e, q = latents.detach(), nearest.detach()
    r = F.normalize(e + q, dim=-1)
    along_r, along_e = (latents * r).sum(-1, keepdim=True), (latents * e).sum(-1, keepdim=True)
    return latents - 2 * along_r * r + 2 * along_e * q


GRADIENTS = {"straight_through": straight_through, "rotation": rotation}


class EMAQuantizer(Quantizer):
    """Vector quantization: the nearest code, with code vectors that follow the mean of their latents.

    The means are exponential moving averages of counts and sums (VQ-VAE, arXiv:1711.00937, section 3.2 and appendix
    A.1). Differs: latents and code vectors are on the unit sphere of a low dimension, so that the nearest has the
    largest cosine (ViT-VQGAN, arXiv:2110.04627, section 3.2). Codes start by k-means (SoundStream, arXiv:2107.03312,
    section III-C), and are revived if used less than a fraction of the mean (Jukebox, arXiv:2005.00341, section 3).
    """

    class Config(BaseConfig):
        kind: Literal["ema"] = "ema"
        codebook_size: int = Field(default=1024, ge=2, le=MAX_CODES)
        codebook_dim: int = Field(default=16, ge=2, le=4096)
        gradient: Literal["straight_through", "rotation"] = "straight_through"
        decay: float = Field(default=0.99, gt=0, lt=1)
        revival_fraction: float = Field(default=0.03, ge=0, lt=1)  # of the mean usage; 0 never revives
        kmeans_iterations: int = Field(default=10, ge=0, le=1 << 16)

    loss_names = ("commitment",)

    def __init__(self, config: Config):
        super().__init__(config)
        shape = (config.codebook_size, config.codebook_dim)
        self.pass_gradient = GRADIENTS[config.gradient]
        self.embedding = nn.Buffer(F.normalize(torch.randn(shape), dim=-1))
        # Moving averages per step: how often each code is chosen, and the sum of the latents that choose it.
        self.counts = nn.Buffer(torch.ones(config.codebook_size))
        self.sums = nn.Buffer(self.embedding.clone())

    def encode(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return (latents @ self.embedding.T).argmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embedding)

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)  # [b, time, codebook_dim]
        codes = self.encode(latents)  # [b, time]
        nearest = self.embed(codes)  # [b, time, codebook_dim]
        commitment = (latents - nearest).square().sum(dim=-1).mean()
        return Quantized(self.pass_gradient(latents, nearest), codes, latents, {"commitment": commitment})

    @torch.no_grad()
    def initialise(self, latents: list[Tensor]) -> None:
        start_codebook(self.embedding, self.counts, latents, self.config.kmeans_iterations)
        self.sums.copy_(self.embedding * self.counts[:, None])

    @torch.no_grad()
    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        # 1. The sums of this step, of all levels and ranks, into the moving averages.
        x = torch.cat([rearrange(level, "b t d -> (b t) d") for level in latents])
        flat = torch.cat([level.flatten() for level in codes])
        sums = collectives.all_reduce_(torch.zeros_like(self.sums).index_add_(0, flat, x))
        self.sums.lerp_(sums, 1 - self.config.decay)
        # 2. Each code moves to the mean direction of its latents.
        means = torch.where(self.sums.norm(dim=-1, keepdim=True) > 1e-6, self.normalise(self.sums), self.embedding)
        # 3. Counts, too. A dead code moves to a latent of this batch, and is counted as one of average use.
        dead, candidates = update_counts(self.counts, codes, latents, self.config)
        self.embedding.copy_(torch.where(dead, candidates, means))
        self.sums.copy_(torch.where(dead, candidates * self.counts[:, None], self.sums))


def gumbel_like(logits: Tensor) -> Tensor:
    return -torch.empty_like(logits).exponential_().clamp_(min=torch.finfo(logits.dtype).tiny).log_()


class GumbelQuantizer(Quantizer):
    """The discrete VAE: a distribution q over the codes, trained through the Gumbel-Softmax relaxation.

    In training, code vectors are mixed with weights softmax((logits + Gumbel noise) / temperature) (Jang 2016,
    arXiv:1611.01144, eq. 2; Maddison 2016, arXiv:1611.00712, eq. 10). The temperature falls, so that the mixture
    approaches the one vector that inference takes, that of the largest logit (DALL-E, arXiv:2102.12092,
    appendix A). The loss "kl" is KL(q | uniform) = log codebook_size - H(q) in nats, the mean per code.

    Differs from DALL-E: logits are the cosine between latent and code vector times a learned scale, so that codes
    can start by k-means and be revived as in `EMAQuantizer`; the temperature falls by an equal factor each step.
    """

    class Config(BaseConfig):
        kind: Literal["gumbel"] = "gumbel"
        codebook_size: int = Field(default=1024, ge=2, le=MAX_CODES)
        codebook_dim: int = Field(default=16, ge=2, le=4096)
        temperature_start: float = Field(default=1.0, gt=0)
        temperature_end: float = Field(default=0.0625, gt=0)
        temperature_steps: int = Field(default=1000, ge=1, le=1 << 40)  # from start to end, after `vq_start_step`
        scale: float = Field(default=30.0, gt=0)  # initial factor of the cosines
        decay: float = Field(default=0.99, gt=0, lt=1)  # of the usage by which dead codes are found
        revival_fraction: float = Field(default=0.03, ge=0, lt=1)  # of the mean usage; 0 never revives
        kmeans_iterations: int = Field(default=10, ge=0, le=1 << 16)

    loss_names = ("kl",)

    def __init__(self, config: Config):
        super().__init__(config)
        shape = (config.codebook_size, config.codebook_dim)
        self.counts = nn.Buffer(torch.ones(config.codebook_size))  # moving averages per step
        self.embedding = nn.Parameter(F.normalize(torch.randn(shape), dim=-1))
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.n_steps = nn.Buffer(torch.zeros((), dtype=torch.int64))  # updates so far

    @property
    def temperature(self) -> Tensor:
        """A scalar: from start to end by equal factors over `temperature_steps`, then constant."""
        c = self.config
        passed = (self.n_steps / c.temperature_steps).clamp(max=1)
        return c.temperature_start * (c.temperature_end / c.temperature_start) ** passed

    def vectors(self) -> Tensor:
        """All code vectors, of unit length: [codebook_size, codebook_dim]."""
        return self.normalise(self.embedding.clone())  # a copy: `update` writes before the backward pass

    def logits(self, latents: Tensor) -> Tensor:  # [..., codebook_dim] -> [..., codebook_size]
        with torch.autocast(latents.device.type, enabled=False):
            return self.log_scale.exp() * (latents @ self.vectors().T)

    def encode(self, latents: Tensor) -> Tensor:
        return self.logits(latents).argmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors())

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)  # [b, time, codebook_dim]
        logits = self.logits(latents)  # [b, time, codebook_size]
        codes = logits.argmax(dim=-1)  # [b, time]
        log_q = logits.log_softmax(dim=-1)
        kl = math.log(self.codebook_size) + (log_q.exp() * log_q).sum(dim=-1).mean()
        if not self.training:
            return Quantized(self.embed(codes), codes, latents, {"kl": kl})
        with torch.autocast(latents.device.type, enabled=False):
            weights = ((logits + gumbel_like(logits)) / self.temperature).softmax(dim=-1)
            vectors = weights @ self.vectors()  # [b, time, codebook_dim]
        return Quantized(vectors, codes, latents, {"kl": kl})

    @torch.no_grad()
    def initialise(self, latents: list[Tensor]) -> None:
        start_codebook(self.embedding, self.counts, latents, self.config.kmeans_iterations)

    @torch.no_grad()
    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """Lower the temperature, and revive dead codes; the others learn by gradient."""
        self.n_steps += 1
        dead, candidates = update_counts(self.counts, codes, latents, self.config)
        self.embedding.copy_(torch.where(dead, candidates, self.embedding))


class FSQuantizer(Quantizer):
    """Finite scalar quantization: each channel is bounded and rounded to one of a few values. Mentzer 2023,
    arXiv:2309.15505, section 3.1. Nothing is learned. A code is a number in mixed radix whose digits are the channels'
    values, the first channel's digit the lowest. Differs: values spread evenly over [-1, 1]."""

    class Config(BaseConfig):
        kind: Literal["fsq"] = "fsq"
        levels: tuple[int, ...] = (8, 5, 5, 5)  # values per channel; the paper, section 4.1, has more

        @model_validator(mode="after")
        def _check(self) -> "FSQuantizer.Config":
            if not self.levels or min(self.levels) < 2 or self.codebook_size > MAX_CODES:
                expected = f"numbers of at least 2 with a product of at most {MAX_CODES}"
                raise ValueError(f"levels: expected {expected}, found {list(self.levels)}")
            return self

        @property
        def codebook_size(self) -> int:
            return math.prod(self.levels)

        @property
        def codebook_dim(self) -> int:
            return len(self.levels)

    def __init__(self, config: Config):
        super().__init__(config)
        places = [math.prod(config.levels[:i]) for i in range(len(config.levels))]  # what each digit counts
        self.levels = nn.Buffer(torch.tensor(config.levels), persistent=False)
        self.places = nn.Buffer(torch.tensor(places), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Any vectors -> (-1, 1)."""
        return torch.tanh(x.float())

    def encode(self, latents: Tensor) -> Tensor:
        highest = self.levels - 1
        digits = ((latents + 1) / 2 * highest).round().long().clamp(min=0).minimum(highest)
        return (digits * self.places).sum(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        return 2 * (codes[..., None] // self.places % self.levels) / (self.levels - 1) - 1

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)
        codes = self.encode(latents)
        return Quantized(straight_through(latents, self.embed(codes)), codes, latents, {})


QUANTIZERS: dict[str, type[Quantizer]] = {"ema": EMAQuantizer, "gumbel": GumbelQuantizer, "fsq": FSQuantizer}
