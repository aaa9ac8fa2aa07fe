"""What a prior must know about the codes that it models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PriorSpec:
    """The tokenizer's facts and the data set's labels; saved with the prior's weights."""

    level: int
    hop_lengths: list[int]
    sample_rate: int
    codebook_size: int
    tokenizer_hash: str
    vocabularies: dict[str, list[str]]  # the values of each label; index 0 of its embedding is "unknown"

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
