"""What a prior must know about the codes that it models."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field


@dataclass(frozen=True)
class PriorSpec:
    """The tokenizer's facts and the data set's labels; saved with the prior's weights. Limits hold for files."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    level: Annotated[int, Field(ge=0, lt=16)]
    hop_lengths: Annotated[list[Annotated[int, Field(ge=2, le=1 << 16)]], Field(min_length=1, max_length=16)]
    sample_rate: Annotated[int, Field(ge=1000, le=384000)]
    codebook_size: Annotated[int, Field(ge=2, le=1 << 16)]
    tokenizer_hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    # The values of each label; index 0 of its embedding is "unknown".
    vocabularies: dict[str, Annotated[list[str], Field(max_length=1 << 20)]]
    slots: Annotated[int, Field(ge=1, le=1 << 16)] = 1  # parts of the codebook that take turns, see `VQVAEConfig.slots`

    @property
    def hop_length(self) -> int:
        """Samples per code of this level."""
        return self.hop_lengths[self.level]

    @property
    def code_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @property
    def ratio(self) -> int:
        """Codes of this level per code of the next coarser level."""
        return self.hop_lengths[self.level - 1] // self.hop_length if self.level else 1

    @property
    def top_ratio(self) -> int:
        """Codes of this level per code of level 0. Chroma and notes have one frame per code of level 0."""
        return self.hop_lengths[0] // self.hop_length
