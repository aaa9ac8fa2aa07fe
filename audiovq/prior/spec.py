"""What is saved with a prior's weights: facts about the codes that it models, and how they are best drawn."""

from dataclasses import dataclass

from pydantic import Field

from audiovq.config import Config


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
        """Codes of this level per code of level 0. Chroma has one frame per code of level 0."""
        return self.hop_lengths[0] // self.hop_length


class SamplingConfig(Config):
    """Recommended by the recipe, saved with the prior, and overridden by the options of a command."""

    temperature: float = Field(default=1.0, ge=0)  # 0 takes the most likely code
    top_k: int = Field(default=0, ge=0)  # draw from the k most likely codes; 0 is all
    top_p: float = Field(default=1.0, gt=0, le=1)  # draw from the most likely codes with this probability
    guidance: float = Field(default=1.0, ge=0)  # strength of labels, text and chroma; 1 is as trained
