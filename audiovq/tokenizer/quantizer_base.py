"""What all quantizers have in common."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

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
