"""How a code is drawn from a prior's logits."""

from __future__ import annotations

from pydantic import Field

from audiovq.config import Config


class SamplingConfig(Config):
    """The recipe recommends these values, a prior's folder keeps them, and the command line may override each."""

    temperature: float = Field(default=1.0, ge=0)  # 0 takes the most likely code
    top_k: int = Field(default=0, ge=0)  # draw from the k most likely codes; 0 is all
    top_p: float = Field(default=1.0, gt=0, le=1)  # draw from the most likely codes that make up this probability
    guidance: float = Field(default=1.0, ge=0)  # strength of label, text and chroma; 1 is as trained
