"""Settings for drawing a code from a prior's logits."""

from pydantic import Field

from audiovq.config import Config


class SamplingConfig(Config):
    """Recommended by the recipe, saved with the prior, and overridden by the options of a command."""

    temperature: float = Field(default=1.0, ge=0)  # 0 takes the most likely code
    top_k: int = Field(default=0, ge=0, le=1 << 16)  # draw from the k most likely codes; 0 is all
    top_p: float = Field(default=1.0, gt=0, le=1)  # draw from the most likely codes with this probability
    guidance: float = Field(default=1.0, ge=0)  # strength of labels, text, chroma and notes; 1 is as trained
