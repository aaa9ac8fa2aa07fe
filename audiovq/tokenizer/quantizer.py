"""Codebooks: latent vectors ↔ integers. A new quantizer is one subclass of `Quantizer` and one line in `QUANTIZERS`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config as BaseConfig
from audiovq.distributed import collectives, rng

MAX_CODES = 65536  # of a codebook: a code fits into 16 bits
LATENTS_PER_CODE = 64  # that k-means looks at, at most


@dataclass
class Quantized:
    vectors: Tensor  # float32 [b, t, codebook_dim], what the decoder gets, with a gradient towards what was quantized
    codes: Tensor  # int64 [b, t]
    latents: Tensor  # float32 [b, t, codebook_dim], what was quantized
    losses: dict[str, Tensor]  # scalars by name, unweighted: "commitment", "kl"


class Quantizer(nn.Module):
    """What every kind offers. Vectors are float [..., codebook_dim], codes int64 [...] in [0, codebook_size).

    Everything is computed in float32, whatever autocast says: bfloat16 would pick other codes.
    """

    Config: Any  # has `kind`, `codebook_size`, `codebook_dim`
    loss_names: tuple[str, ...] = ()  # the keys of `Quantized.losses`

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.codebook_size: int = config.codebook_size
        self.codebook_dim: int = config.codebook_dim

    def normalise(self, x: Tensor) -> Tensor:
        """Any vectors -> latents: where the code vectors live, here on the unit sphere."""
        return F.normalize(x.float(), dim=-1)

    def encode(self, latents: Tensor) -> Tensor:
        """Latents -> codes; `encode(embed(codes))` gives `codes`."""
        raise NotImplementedError

    def embed(self, codes: Tensor) -> Tensor:
        """Codes -> vectors, as a decoder gets them."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Quantized:
        """Both ways, with gradients and losses, [b, t, codebook_dim]."""
        raise NotImplementedError

    def initialise(self, latents: list[Tensor]) -> None:
        """Once, before the first codes: take what there is to take from a batch of latents of all levels."""

    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """Once a training step: move on, by the latents [b, t, codebook_dim] and codes [b, t] of all levels."""


class Bypass:
    """Takes the place of a quantizer while there is no codebook: latents pass unquantized, all with code 0."""

    def __init__(self, quantizer: Quantizer):
        self.quantizer = quantizer

    def __call__(self, x: Tensor) -> Quantized:  # [b, t, codebook_dim]
        latents = self.quantizer.normalise(x)
        codes = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        # Data-parallel training expects a gradient for every parameter, so each loss is 0 times all of them.
        zero = latents.new_zeros(()) + sum(0 * p.sum() for p in self.quantizer.parameters())
        return Quantized(latents, codes, latents, dict.fromkeys(self.quantizer.loss_names, zero))

    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """Nothing to update: there is no codebook yet."""


def straight_through(latents: Tensor, nearest: Tensor) -> Tensor:
    """The values of `nearest` with the gradient of `latents` (van den Oord 2017, arXiv:1711.00937, section 3.2)."""
    return latents + (nearest - latents).detach()


def rotation(latents: Tensor, nearest: Tensor) -> Tensor:
    """The values of `nearest`, as the rotation of `latents` that gives them; the rotation counts as a constant.

    Fifty 2024, arXiv:2410.06424, section 4.2: R = 1 - 2 r rᵀ + 2 q eᵀ with r = (e + q) / |e + q|, for unit vectors
    [..., dim] e and q. So a gradient that points away from the code points away from the latent, too.
    """
    e, q = latents.detach(), nearest.detach()
    r = F.normalize(e + q, dim=-1)
    along_r, along_e = (latents * r).sum(-1, keepdim=True), (latents * e).sum(-1, keepdim=True)
    return latents - 2 * along_r * r + 2 * along_e * q


GRADIENTS = {"straight_through": straight_through, "rotation": rotation}


def spherical_k_means(latents: list[Tensor], size: int, iterations: int) -> Tensor:
    """`size` unit vectors amid the latents [b, t, dim] of one batch, all levels and ranks pooled; rank 0 decides.

    Of very many latents a random part is looked at.
    """
    pool = collectives.Pool([rearrange(level, "b t d -> (b t) d") for level in latents])
    n, device, chances = int(pool.size), latents[0].device, rng.generator()
    limit = size * LATENTS_PER_CODE
    seen = torch.randint(n, (limit,), generator=chances, device=device) if n > limit else torch.arange(n, device=device)
    x = pool.rows(seen)
    picks = torch.randperm(len(x), generator=chances, device=device)[:size]
    more = x[torch.randint(len(x), (size - len(picks),), generator=chances, device=device)]
    noise = torch.randn(more.shape, generator=chances, device=device)
    centres = torch.cat([x[picks], F.normalize(more + 0.1 * noise, dim=-1)])
    for _ in range(iterations):
        codes = (x @ centres.T).argmax(dim=-1)
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        empty = sums.norm(dim=-1, keepdim=True) < 1e-6
        centres = torch.where(empty, centres, F.normalize(sums, dim=-1))
    return collectives.broadcast_(centres.contiguous())


def mean_count(latents: list[Tensor], size: int) -> Tensor:
    """Choices a code, if each of `size` codes is chosen equally often; a scalar, of all levels and ranks."""
    n = sum(level[..., 0].numel() for level in latents)
    return collectives.all_reduce_(torch.tensor(float(n), device=latents[0].device)) / size


def code_counts(codes: list[Tensor], size: int) -> Tensor:
    """How often each code was chosen in this batch, of all levels and ranks: float32 [size]."""
    flat = torch.cat([level.flatten() for level in codes])
    return collectives.all_reduce_(torch.bincount(flat, minlength=size).float())


def dead_codes(counts: Tensor, latents: list[Tensor], fraction: float) -> tuple[Tensor, Tensor]:
    """Which codes are used less than `fraction` of the mean usage, bool [size], and a latent of this batch for each [size, dim].

    Latents [b, t, dim] of all levels and ranks are drawn for every code, though only the dead ones take theirs: no host
    sync, no branch that one rank takes alone.
    """
    pool = collectives.Pool([rearrange(level, "b t d -> (b t) d") for level in latents])
    drawn = torch.rand(len(counts), generator=rng.generator(), device=counts.device, dtype=torch.float64)
    return counts < fraction * counts.mean(), pool.rows((drawn * pool.size).long())


class EMAQuantizer(Quantizer):
    """Vector quantization with a codebook that follows the mean of its latents.

    Nearest code with a straight-through or rotation gradient, codebook by exponential moving averages of counts and
    sums (van den Oord 2017, arXiv:1711.00937, section 3.2 and appendix A.1). Differs: latents and codes live on the unit
    sphere of a low dimension, so nearest means largest cosine and no code can be missed by its length
    (ViT-VQGAN, arXiv:2110.04627, section 3.2); k-means start as in SoundStream (arXiv:2107.03312, section III-C), revival of
    dead codes as in Jukebox (arXiv:2005.00341, section 3), but dead means below a fraction of mean usage, and a revived
    code starts with full counts.
    """

    class Config(BaseConfig):
        kind: Literal["ema"] = "ema"
        codebook_size: int = Field(default=1024, ge=2, le=MAX_CODES)
        codebook_dim: int = Field(default=16, ge=2)
        gradient: Literal["straight_through", "rotation"] = "straight_through"
        decay: float = Field(default=0.99, gt=0, lt=1)
        revival_fraction: float = Field(default=0.03, ge=0, lt=1)  # of the mean usage; 0 never revives
        kmeans_iterations: int = Field(default=10, ge=0)

    loss_names = ("commitment",)
    embedding: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: Config):
        super().__init__(config)
        shape = (config.codebook_size, config.codebook_dim)
        self.pass_gradient = GRADIENTS[config.gradient]
        self.register_buffer("embedding", F.normalize(torch.randn(shape), dim=-1))
        self.register_buffer("counts", torch.ones(config.codebook_size))
        self.register_buffer("sums", self.embedding.clone())

    def encode(self, latents: Tensor) -> Tensor:
        """The nearest code of each latent."""
        with torch.autocast(latents.device.type, enabled=False):
            return (latents @ self.embedding.T).argmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embedding)

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)
        codes = self.encode(latents)
        nearest = self.embed(codes)
        commitment = (latents - nearest).square().sum(dim=-1).mean()
        return Quantized(self.pass_gradient(latents, nearest), codes, latents, {"commitment": commitment})

    @torch.no_grad()
    def initialise(self, latents: list[Tensor]) -> None:
        self.embedding.copy_(spherical_k_means(latents, self.codebook_size, self.config.kmeans_iterations))
        self.counts.copy_(mean_count(latents, self.codebook_size).expand_as(self.counts))
        self.sums.copy_(self.embedding * self.counts[:, None])

    @torch.no_grad()
    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """Move the codebook once, by what all its levels have on all ranks."""
        x = torch.cat([rearrange(level, "b t d -> (b t) d") for level in latents])
        flat = torch.cat([level.flatten() for level in codes])
        sums = collectives.all_reduce_(torch.zeros_like(self.sums).index_add_(0, flat, x))
        self.counts.lerp_(code_counts(codes, self.codebook_size), 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        means = torch.where(self.sums.norm(dim=-1, keepdim=True) > 1e-6, self.normalise(self.sums), self.embedding)
        dead, candidates = dead_codes(self.counts, latents, self.config.revival_fraction)
        full = self.counts.mean()
        self.embedding.copy_(torch.where(dead[:, None], candidates, means))
        self.counts.copy_(torch.where(dead, full, self.counts))
        self.sums.copy_(torch.where(dead[:, None], candidates * full, self.sums))


def gumbel_like(logits: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `logits`."""
    return -torch.empty_like(logits).exponential_().clamp_(min=torch.finfo(logits.dtype).tiny).log_()


class GumbelQuantizer(Quantizer):
    """The discrete VAE: a distribution q over the codes, trained through the Gumbel-Softmax relaxation.

    Training mixes the code vectors with weights softmax((logits + Gumbel noise) / temperature) (Jang 2016,
    arXiv:1611.01144, eq. 2; Maddison 2016, arXiv:1611.00712, eq. 10), and the temperature falls, so that the mixture
    becomes the single vector that inference takes: the one of the largest logit (DALL-E, arXiv:2102.12092, appendix A).
    The loss "kl" is KL(q | uniform) = log codebook_size - H(q), in nats, mean a code.

    Differs from DALL-E: logits are the cosine between latent and code vector times a learned scale, not a layer of their
    own. Nearest-code look-up and this one then agree, codes can begin by k-means, those that no latent chooses can be
    revived as those of `EMAQuantizer` are, and one codebook serves all levels. The temperature falls by equal factors a
    step, not by a cosine.
    """

    class Config(BaseConfig):
        kind: Literal["gumbel"] = "gumbel"
        codebook_size: int = Field(default=1024, ge=2, le=MAX_CODES)
        codebook_dim: int = Field(default=16, ge=2)
        temperature_start: float = Field(default=1.0, gt=0)
        temperature_end: float = Field(default=0.0625, gt=0)
        temperature_steps: int = Field(default=1000, ge=1)  # from start to end, counted from `vq_start_step`
        scale: float = Field(default=30.0, gt=0)  # of the cosines, to begin with
        decay: float = Field(default=0.99, gt=0, lt=1)  # of the usage that tells which codes are dead
        revival_fraction: float = Field(default=0.03, ge=0, lt=1)  # of the mean usage; 0 never revives
        kmeans_iterations: int = Field(default=10, ge=0)

    loss_names = ("kl",)
    n_steps: Tensor
    counts: Tensor

    def __init__(self, config: Config):
        super().__init__(config)
        self.register_buffer("counts", torch.ones(config.codebook_size))  # of choices a step, moving averages
        self.embedding = nn.Parameter(F.normalize(torch.randn(config.codebook_size, config.codebook_dim), dim=-1))
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))  # updates seen

    @property
    def temperature(self) -> Tensor:
        """From start to end by equal factors over `temperature_steps`, then constant; a scalar."""
        c = self.config
        passed = (self.n_steps / c.temperature_steps).clamp(max=1)
        return c.temperature_start * (c.temperature_end / c.temperature_start) ** passed

    def vectors(self) -> Tensor:
        """Of all codes, of unit length: [codebook_size, codebook_dim]."""
        return self.normalise(self.embedding.clone())  # a copy: `update` writes before the backward pass

    def logits(self, latents: Tensor) -> Tensor:  # [..., codebook_dim] -> [..., codebook_size]
        with torch.autocast(latents.device.type, enabled=False):
            return self.log_scale.exp() * (latents @ self.vectors().T)

    def encode(self, latents: Tensor) -> Tensor:
        """The most likely code of each latent."""
        return self.logits(latents).argmax(dim=-1)

    def sample(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw a code from q for each latent: argmax(logits + Gumbel noise) (Maddison 2014, arXiv:1411.0030)."""
        logits = self.logits(latents)
        return (logits + (gumbel_like(logits) if noise is None else noise)).argmax(dim=-1)

    def relax(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Weights of the codes, [..., codebook_size], that sum to 1; nearly one-hot at a low temperature."""
        return ((logits + noise) / self.temperature).softmax(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors())

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)
        logits = self.logits(latents)
        codes = logits.argmax(dim=-1)
        log_q = logits.log_softmax(dim=-1)
        kl = math.log(self.codebook_size) + (log_q.exp() * log_q).sum(dim=-1).mean()
        if self.training:
            with torch.autocast(latents.device.type, enabled=False):
                vectors = self.relax(logits, gumbel_like(logits)) @ self.vectors()
        else:
            vectors = self.embed(codes)
        return Quantized(vectors, codes, latents, {"kl": kl})

    @torch.no_grad()
    def initialise(self, latents: list[Tensor]) -> None:
        self.embedding.copy_(spherical_k_means(latents, self.codebook_size, self.config.kmeans_iterations))
        self.counts.copy_(mean_count(latents, self.codebook_size).expand_as(self.counts))

    @torch.no_grad()
    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        """The codes learn by gradient; here the temperature falls, and the dead ones move to where latents are."""
        self.n_steps += 1
        self.counts.lerp_(code_counts(codes, self.codebook_size), 1 - self.config.decay)
        dead, candidates = dead_codes(self.counts, latents, self.config.revival_fraction)
        self.embedding.copy_(torch.where(dead[:, None], candidates, self.embedding))
        self.counts.copy_(torch.where(dead, self.counts.mean(), self.counts))


class FSQuantizer(Quantizer):
    """Finite scalar quantization: each channel is bounded and rounded to one of a few levels; nothing is learned.

    Mentzer 2023, arXiv:2309.15505, section 3.1. A code is the number whose digits, in mixed radix with the first channel
    as the lowest digit, are the channels' levels. Differs: the levels of a channel are spread evenly over [-1, 1], both
    ends included, whether their number is odd or even, where the paper moves even ones by half a level.
    """

    class Config(BaseConfig):
        kind: Literal["fsq"] = "fsq"
        levels: tuple[int, ...] = (8, 5, 5, 5)  # a channel; the paper, section 4.1, has more

        @model_validator(mode="after")
        def _check(self) -> FSQuantizer.Config:
            if not self.levels or min(self.levels) < 2 or self.codebook_size > MAX_CODES:
                raise ValueError(
                    f"levels: expected numbers of at least 2 with a product of at most {MAX_CODES}, found {list(self.levels)}"
                )
            return self

        @property
        def codebook_size(self) -> int:
            return math.prod(self.levels)

        @property
        def codebook_dim(self) -> int:
            return len(self.levels)

    levels: Tensor
    places: Tensor

    def __init__(self, config: Config):
        super().__init__(config)
        places = [math.prod(config.levels[:i]) for i in range(len(config.levels))]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Into (-1, 1)."""
        return torch.tanh(x.float())

    def encode(self, latents: Tensor) -> Tensor:
        highest = self.levels - 1
        digits = ((latents + 1) / 2 * highest).round().long().clamp(min=0).minimum(highest)
        return (digits * self.places).sum(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.places % self.levels
        return 2 * digits / (self.levels - 1) - 1

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)
        codes = self.encode(latents)
        return Quantized(straight_through(latents, self.embed(codes)), codes, latents, {})


QUANTIZERS: dict[str, type[Quantizer]] = {"ema": EMAQuantizer, "gumbel": GumbelQuantizer, "fsq": FSQuantizer}
