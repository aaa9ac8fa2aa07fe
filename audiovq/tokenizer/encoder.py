"""The encoder: a front from the waveform to features at the finest hop, then strided convolutions."""

from pydantic import Field
from torch import Tensor, nn

from audiovq.config import Config, one_of
from audiovq.tokenizer.blocks import BlockKind, Downsample, Stack
from audiovq.tokenizer.fronts import FRONTS, StftFront


class EncoderConfig(Config):
    front: one_of(FRONTS) = StftFront.Config()  # type: ignore[valid-type]
    block: BlockKind = "convnext"
    n_blocks: int = Field(default=4, ge=0, le=256)  # residual blocks at each level's own rate


class Encoder(nn.Module):
    """Waveform [b, channels, samples] -> features [b, dim, samples / hop] for every hop, coarse to fine. The front
    leads to the finest hop, strided convolutions to each coarser one. Levels of one hop share features."""

    def __init__(
        self, channels: int, hop_lengths: list[int], dim: int, config: EncoderConfig, sample_rate: int, causal: bool
    ):
        super().__init__()
        rate = hop_lengths[-1]  # samples per frame of the features so far
        self.front = FRONTS[config.front.kind](channels, rate, dim, config.front, sample_rate, causal)
        self.radius_samples = self.front.radius_samples
        self.downs, self.stacks = nn.ModuleList(), nn.ModuleList()  # one per hop, fine to coarse
        hops = sorted(set(hop_lengths))
        self.n_levels = [hop_lengths.count(hop) for hop in hops]
        for hop in hops:
            down = Downsample(dim, dim, hop // rate, causal) if hop > rate else nn.Identity()
            stack = Stack(config.block, dim, config.n_blocks, causal)
            self.radius_samples += getattr(down, "radius", 0) * rate + stack.radius * hop
            self.downs.append(down)
            self.stacks.append(stack)
            rate = hop

    def forward(self, waveform: Tensor) -> list[Tensor]:
        x = self.front(waveform)  # [b, dim, samples / finest hop]
        features = []
        for down, stack, n_levels in zip(self.downs, self.stacks, self.n_levels, strict=True):
            x = stack(down(x))  # [b, dim, samples / hop]
            features += [x] * n_levels
        return features[::-1]
