"""The quantizer of topology `bands` (see `bands.py`)."""

import itertools
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.config import Config as BaseConfig
from audiovq.distributed import collectives
from audiovq.tokenizer.codebook import update_counts
from audiovq.tokenizer.quantizer import MAX_CODES, Quantized, Quantizer


class PatchQuantizer(Quantizer):
    """Residual vector quantization of patches of several bands, in one sequence: a patch has `bands · stages` codes.

    First one code for each band, then one for what is left of each, and so on (SoundStream, arXiv:2107.03312, section
    III-C); of several candidates the sum that is nearest in the end is taken. Each slot has its own codes: the code at
    position n is of slot n mod slots. Code vectors follow the means of what they code, as in `EMAQuantizer`, but are of any
    length. Latents get no gradient.

    With `rate_weight` λ, codes minimise squared distance + λ · bits, where a code has -log2 of its share of use in training:
    entropy-constrained quantization (Chou 1989, doi:10.1109/29.17498). Differs: only in evaluation mode, so that
    codebooks are trained without it.
    """

    class Config(BaseConfig):
        kind: Literal["patches"] = "patches"
        codes: int = Field(default=400, ge=2, le=MAX_CODES)  # of each slot
        bands: int = Field(default=2, ge=1, le=64)  # of a level
        stages: int = Field(default=2, ge=1, le=64)  # codes of a band in a patch
        dim: int = Field(default=240, ge=1, le=1 << 16)  # of a band's patch: steps · frames
        candidates: int = Field(default=8, ge=1, le=256)  # sums of codes that the search goes on with
        rate_weight: float = Field(default=0.0, ge=0)  # the squared distance that a bit is worth
        decay: float = Field(default=0.99, gt=0, lt=1)
        revival_fraction: float = Field(default=0.03, ge=0, lt=1)  # of the mean usage; 0 never revives

        @property
        def slots(self) -> int:
            return self.bands * self.stages

        @property
        def codebook_size(self) -> int:
            return self.slots * self.codes

        @property
        def codebook_dim(self) -> int:
            return self.bands * self.dim

    def __init__(self, config: Config):
        super().__init__(config)
        shape = config.stages, config.bands, config.codes
        self.embedding = nn.Buffer(torch.zeros(*shape, config.dim))
        self.counts = nn.Buffer(torch.ones(shape))  # a mean of counts; times the code vectors it is that of sums

    def normalise(self, x: Tensor) -> Tensor:
        return x.float()

    def encode(self, latents: Tensor) -> Tensor:
        c, n = self.config, latents.shape[1]
        with torch.autocast(latents.device.type, enabled=False):
            x = rearrange(latents.float(), "b t (band d) -> band (b t) d", band=c.bands)
            bits = -F.normalize(self.counts, p=1, dim=-1).clamp(min=1e-9).log2()
            prices = bits * (0.0 if self.training else c.rate_weight)
            codes = torch.stack(list(map(self._search, x, self.embedding.unbind(1), prices.unbind(1))))
        first = torch.arange(c.slots, device=codes.device).view(c.stages, c.bands) * c.codes
        numbered = codes.movedim(2, 0) + first[:, :, None]  # [stage, band, b t]
        return rearrange(numbered, "stage band (b t) -> b (t stage band)", t=n)

    def _search(self, x: Tensor, books: Tensor, prices: Tensor) -> Tensor:
        """Vectors [n, d] of a band, its codes [stages, codes, d] and their prices -> [n, stages], by a beam search."""
        left, found = x[:, None], list[Tensor]()  # [n, candidates, d], and the codes [n, candidates] of each stage
        paid = x.new_zeros(x.shape[0], 1)  # [n, candidates]; len(x) would be a constant in ONNX graphs
        for book, price in zip(books, prices, strict=True):
            distances = left.square().sum(-1, keepdim=True) + book.square().sum(-1) - 2 * left @ book.T
            costs = (distances + (paid[..., None] + price)).flatten(1)
            best = costs.topk(min(self.config.candidates, costs.shape[1]), largest=False).indices
            candidate, code = best // len(book), best % len(book)
            paid = paid.gather(1, candidate) + price[code]
            found = [*(codes.gather(1, candidate) for codes in found), code]
            if len(found) < len(books):  # after the last code, no residual is needed
                left = left if left.shape[1] == 1 else left.take_along_dim(candidate[..., None], dim=1)
                left = left - F.embedding(code, book)
        return torch.stack([codes[:, 0] for codes in found], dim=1)

    def _parts(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [b, n] -> as numbers in their slots, and their vectors: [stage, band, b, time] and [..., d]. A patch whose
        last codes are missing has vectors of 0 for them."""
        c = self.config
        codes = F.pad(codes, (0, -codes.shape[1] % c.slots), value=-1)
        codes = rearrange(codes, "b (t stage band) -> stage band b t", stage=c.stages, band=c.bands)
        first = torch.arange(c.slots, device=codes.device).view(c.stages, c.bands, 1, 1) * c.codes
        numbers = codes % c.codes
        return numbers, F.embedding(numbers + first, self.embedding.flatten(0, 2)) * (codes >= 0)[..., None]

    def embed(self, codes: Tensor) -> Tensor:
        return rearrange(self._parts(codes)[1].sum(dim=0), "band b t d -> b t (band d)")

    def forward(self, x: Tensor) -> Quantized:
        latents = self.normalise(x)
        codes = self.encode(latents)
        return Quantized(self.embed(codes), codes, latents, {})

    @torch.no_grad()
    def initialise(self, latents: list[Tensor]) -> None:
        """All codes are dead, so the first update takes them from its latents."""
        self.counts.zero_()

    @torch.no_grad()
    def update(self, latents: list[Tensor], codes: list[Tensor]) -> None:
        c = self.config
        numbers, vectors = self._parts(torch.cat(codes))
        left = rearrange(torch.cat(latents), "b t (band d) -> band (b t) d", band=c.bands)
        for stage, band in itertools.product(range(c.stages), range(c.bands)):
            x, number = left[band], numbers[stage, band].flatten()
            counts, book = self.counts[stage, band], self.embedding[stage, band]
            found = collectives.all_reduce_(torch.zeros_like(book).index_add_(0, number, x))
            sums = torch.lerp(book * counts[:, None], found, 1 - c.decay)
            dead, candidates = update_counts(counts, [number], [x[None]], c)
            book.copy_(torch.where(dead, candidates, sums / counts.clamp(min=1e-6)[:, None]))
            left[band] = x - vectors[stage, band].flatten(0, 1)
