"""Discriminators between music and its reconstruction, and the losses between them and the decoder. A new kind is a
class and a line in `DISCRIMINATORS`. Each gives a `DiscriminatorOutput` for every view that it takes (a period, a
window size). Padding is with zeros, because the gradient of reflection is not deterministic on a GPU."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from audiovq.config import Config as BaseConfig, Window, one_of
from audiovq.tokenizer.losses import LOG_FLOOR, MelSpectrogram

Widths = tuple[Annotated[int, Field(ge=1, le=1 << 16)], ...]


@dataclass
class DiscriminatorOutput:
    scores: Tensor  # [b, 1, height, width], one per patch: high for music, low for a reconstruction
    features: list[Tensor]  # the output of each layer, [b, dim, height, width]


def conv(dim_in: int, dim_out: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> nn.Module:
    """Convolution with weight normalization; without a stride the size stays."""
    return weight_norm(nn.Conv2d(dim_in, dim_out, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2)))


def features_of(layers: Any, x: Tensor) -> list[Tensor]:
    """The output of each layer in turn, after its activation."""
    return list(itertools.accumulate(layers, lambda x, layer: F.leaky_relu(layer(x), 0.1), initial=x))[1:]


class PatchDiscriminator(nn.Module):
    """Base of the discriminators with one stack of convolutions, and a head that scores patches, for each view."""

    def __init__(self, n_views: int, dims: Sequence[int], kernels: Sequence[tuple[int, int]], stride: tuple[int, int]):
        """Kernels are those of the strided layers, of a last layer without a stride, and of the head."""
        super().__init__()
        self.stacks, self.heads = nn.ModuleList(), nn.ModuleList()
        for _ in range(n_views):
            layers = [conv(a, b, kernels[0], stride) for a, b in itertools.pairwise(dims)]
            self.stacks.append(nn.ModuleList([*layers, conv(dims[-1], dims[-1], kernels[1])]))
            self.heads.append(conv(dims[-1], 1, kernels[2]))

    def views(self, waveform: Tensor) -> list[Tensor]:
        """[b, channels, samples] -> [b, channels, height, width] per view."""
        raise NotImplementedError

    def forward(self, waveform: Tensor) -> list[DiscriminatorOutput]:
        outputs = []
        for view, layers, head in zip(self.views(waveform), self.stacks, self.heads, strict=True):
            features = features_of(layers, view)
            outputs.append(DiscriminatorOutput(head(features[-1]), features))
        return outputs


class MultiPeriodDiscriminator(PatchDiscriminator):
    """Views with every p-th sample, for some prime numbers p (HiFi-GAN, arXiv:2010.05646, section 2.3)."""

    class Config(BaseConfig):
        kind: Literal["multi_period"] = "multi_period"
        periods: Widths = Field(default=(2, 3, 5, 7, 11), min_length=1)  # samples
        dims: Widths = Field(default=(32, 128, 512, 1024), min_length=1)  # width after each stride of 3

    def __init__(self, channels: int, config: Config, sample_rate: int):
        dims, kernels = (channels, *config.dims), ((5, 1), (5, 1), (3, 1))
        super().__init__(len(config.periods), dims, kernels, stride=(3, 1))
        self.periods = config.periods

    def views(self, waveform: Tensor) -> list[Tensor]:
        """[b, channels, samples] -> [b, channels, samples / p, p] per period."""
        padded = [F.pad(waveform, (0, -waveform.shape[-1] % p)) for p in self.periods]
        return [rearrange(x, "b c (t p) -> b c t p", p=p) for x, p in zip(padded, self.periods, strict=True)]


class MultiResolutionDiscriminator(nn.Module):
    """Spectrograms of several window sizes (UnivNet, arXiv:2106.07889), with a network for each band of frequencies
    (DAC, arXiv:2306.06546, section 3.3). `complex` gives real and imaginary parts, as in DAC, so that phase counts;
    `magnitude` does not, as in UnivNet."""

    class Config(BaseConfig):
        kind: Literal["multi_resolution"] = "multi_resolution"
        windows: tuple[Window, ...] = Field(default=(2048, 1024, 512), min_length=1)  # samples
        spectrum: Literal["complex", "magnitude"] = "complex"
        bands: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)  # their borders, as parts of half the sample rate
        dim: int = Field(default=32, ge=1, le=1 << 16)
        n_strides: int = Field(default=3, ge=0)  # layers that halve the number of frequencies

        @model_validator(mode="after")
        def _check(self) -> "MultiResolutionDiscriminator.Config":
            borders = (0.0, *self.bands, 1.0)
            if any(a >= b for a, b in itertools.pairwise(borders)):
                raise ValueError(f"bands: expected rising numbers between 0 and 1, found {list(self.bands)}")
            widths = [b - a for a, b in itertools.pairwise(self.edges(min(self.windows)))]
            if min(widths) < 1:
                found = f"found bands of {widths} frequencies with a window of {min(self.windows)}"
                raise ValueError(f"bands: expected a frequency in each, {found}; use fewer bands or longer windows")
            return self

        def edges(self, window: int) -> list[int]:
            """The first bin of each band, and the number of bins."""
            n_bins = window // 2 + 1
            return [0, *(round(border * n_bins) for border in self.bands), n_bins]

    def __init__(self, channels: int, config: Config, sample_rate: int):
        super().__init__()
        self.config = config
        dim, dim_in = config.dim, channels * (2 if config.spectrum == "complex" else 1)
        self.stacks, self.heads = nn.ModuleList(), nn.ModuleList()
        for window in config.windows:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            bands = nn.ModuleList()
            for _ in range(len(config.bands) + 1):
                strided = [conv(dim, dim, (3, 9), (1, 2)) for _ in range(config.n_strides)]
                bands.append(nn.ModuleList([conv(dim_in, dim, (3, 9)), *strided, conv(dim, dim, (3, 3))]))
            self.stacks.append(bands)
            self.heads.append(conv(dim, 1, (3, 3)))

    def forward(self, waveform: Tensor) -> list[DiscriminatorOutput]:
        """[b, channels, samples] -> one output per window."""
        outputs = []
        for window, stacks, head in zip(self.config.windows, self.stacks, self.heads, strict=True):
            spectrum = self.spectrum(waveform, window)
            edges = itertools.pairwise(self.config.edges(window))
            pairs = zip(stacks, edges, strict=True)  # type: ignore[arg-type]
            bands = [features_of(stack, spectrum[..., low:high]) for stack, (low, high) in pairs]
            scores = head(torch.cat([features[-1] for features in bands], dim=-1))
            outputs.append(DiscriminatorOutput(scores, list(itertools.chain.from_iterable(bands))))
        return outputs

    def spectrum(self, waveform: Tensor, window: int) -> Tensor:
        """[b, channels, samples] -> float32 [b, channels (· 2), frames, bins]; the hop is a quarter window."""
        options = {"pad_mode": "constant", "normalized": True, "return_complex": True}
        with torch.autocast(waveform.device.type, enabled=False):
            flat = rearrange(waveform.float(), "b c t -> (b c) t")
            spectrum = torch.stft(flat, window, window // 4, window=self.get_buffer(f"window_{window}"), **options)
            parts = torch.view_as_real(spectrum)  # [b · channels, bins, frames, 2]
            if self.config.spectrum == "magnitude":
                parts = (parts.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt()
        return rearrange(parts, "(b c) f t part -> b (c part) t f", c=waveform.shape[1])


class MelDiscriminator(PatchDiscriminator):
    """Patches of logarithmic mel spectrograms (PatchGAN, arXiv:1611.07004, section 3.2.2). They show how sharp
    partials are, without phase, and cost little."""

    class Config(BaseConfig):
        kind: Literal["mel"] = "mel"
        windows: tuple[Window, ...] = Field(default=(4096,), min_length=1)  # samples; hops are a quarter
        n_mels: int = Field(default=256, ge=8, le=4096)  # bands, at most
        dims: Widths = Field(default=(16, 32, 64), min_length=1)  # widths; each layer halves the bands

    def __init__(self, channels: int, config: Config, sample_rate: int):
        dims, kernels = (channels, *config.dims), ((3, 7), (3, 3), (3, 3))
        super().__init__(len(config.windows), dims, kernels, stride=(1, 2))
        self.mels = nn.ModuleList(MelSpectrogram(sample_rate, n, config.n_mels) for n in config.windows)

    def views(self, waveform: Tensor) -> list[Tensor]:
        """[b, channels, samples] -> [b, channels, frames, bands] per window."""
        with torch.autocast(waveform.device.type, enabled=False):
            bands = [rearrange(mel(waveform.float()), "(b c) m t -> b c t m", b=len(waveform)) for mel in self.mels]
            return [(x + LOG_FLOOR).log10() / 2 + 1.5 for x in bands]  # silence is -1, loud about 1


DISCRIMINATORS = {"multi_period": MultiPeriodDiscriminator, "multi_resolution": MultiResolutionDiscriminator}
DISCRIMINATORS |= {"mel": MelDiscriminator}
DEFAULT = (MultiPeriodDiscriminator.Config(), MultiResolutionDiscriminator.Config())


class AdversarialConfig(BaseConfig):
    """The discriminators and their weights; 1 is as much gradient as all reconstruction losses together."""

    discriminators: tuple[one_of(DISCRIMINATORS), ...] = DEFAULT  # type: ignore[valid-type]
    loss: Literal["hinge", "least_squares"] = "least_squares"
    adversarial: float = Field(default=0.5, ge=0)  # high scores for the reconstruction
    feature_matching: float = Field(default=0.5, ge=0)  # features like those of the original in each layer

    @model_validator(mode="after")
    def _check(self) -> "AdversarialConfig":
        if not self.discriminators:
            raise ValueError(f"discriminators: expected at least one of {', '.join(DISCRIMINATORS)}, found none")
        if self.adversarial == 0 == self.feature_matching:
            raise ValueError("expected a weight above 0 for adversarial or feature_matching, found 0 in both")
        return self


class Discriminators(nn.Module):
    def __init__(self, channels: int, config: AdversarialConfig, sample_rate: int):
        super().__init__()
        self.each = nn.ModuleList(DISCRIMINATORS[c.kind](channels, c, sample_rate) for c in config.discriminators)

    def forward(self, waveform: Tensor) -> list[DiscriminatorOutput]:
        """[b, channels, samples] -> one output per view."""
        return [output for discriminator in self.each for output in discriminator(waveform)]


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within `with`, gradients pass through the module, and none reaches its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


# Each loss is the mean over views, so that more views do not weigh more.


def discriminator_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput], kind: str) -> Tensor:
    """For the discriminators: high scores for music, low ones for reconstructions.

    least_squares: (1 - real)² + fake² (LSGAN, arXiv:1611.04076, section 3.2).
    hinge: max(0, 1 - real) + max(0, 1 + fake) (arXiv:1705.02894).
    """
    pairs = [(r.scores.float(), f.scores.float()) for r, f in zip(real, fake, strict=True)]
    if kind == "least_squares":
        return torch.stack([(1 - r).square().mean() + f.square().mean() for r, f in pairs]).mean()
    return torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()


def adversarial_loss(fake: list[DiscriminatorOutput], kind: str) -> Tensor:
    """For the decoder: least_squares (1 - fake)², hinge -fake."""
    scores = [f.scores.float() for f in fake]
    return torch.stack([(1 - f).square().mean() if kind == "least_squares" else -f.mean() for f in scores]).mean()


def feature_matching_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Tensor:
    """Mean |Δ feature| / mean |music's feature| over layers and views (EnCodec, arXiv:2210.13438, eq. 2)."""
    losses = []
    for r, f in zip(real, fake, strict=True):
        for target, x in zip(r.features, f.features, strict=True):
            target, x = target.detach().float(), x.float()
            losses.append((x - target).abs().mean() / target.abs().mean().clamp(min=1e-6))
    return torch.stack(losses).mean()
