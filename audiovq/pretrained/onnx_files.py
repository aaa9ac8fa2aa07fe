"""A tokenizer as two ONNX files, which run without torch and audiovq; needs the extra `audiovq[onnx]`.

encode.onnx: waveform float32 [batch, channels, samples] -> codes_0, codes_1, …, coarse to fine, each
             int64 [batch, samples / hop]
decode.onnx: codes_0, codes_1, … -> waveform float32 [batch, channels, samples]
The metadata of both files has all rules (rate, padding, pieces of long recordings), as JSON under `audiovq`.

The graphs have operations that every runtime has: Fourier transforms are convolutions without complex numbers. No branch
depends on data or lengths, so that lengths are free.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.onnx_write import TRY_OTHERS, times, write_graph
from audiovq.tokenizer.decoders import IstftDecoder, ToneDecoder
from audiovq.tokenizer.fronts import LEAST_MEL, LEAST_POWER, MelFront, StftFront
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.progress import say

ENCODE, DECODE = "encode.onnx", "decode.onnx"
CHECKED_SECONDS = 3.0


def rules(network: VQVAE) -> dict[str, Any]:
    """All that is needed to use the files: the JSON in their metadata."""
    c = network.config
    left_out = "only if it is not the finest: that alone is decoded"
    if c.topology == "residual":
        left_out = "(levels are residual: leave out the finest first)"
    names = ("sample_rate", "channels", "hop_lengths", "codebook_size", "topology")
    facts = {name: getattr(c, name) for name in names} | {"samples_multiple": c.hop_lengths[0]}
    facts |= {"encode_context": network.encoder_radius, "decode_context": network.decoder_radius}
    facts |= {"tokenizer_hash": tokenizer_hash(network), "decode_period": network.period}
    return facts | {
        "padding": "Append zeros up to a multiple of samples_multiple; keep the first "
        "ceil(samples / hop_lengths[i]) codes of level i. To decode, append codes of -1 to "
        "n · hop_lengths[0] / hop_lengths[i] codes a level, and keep the first samples of the waveform. "
        f"A level of -1 alone is left out {left_out}.",
        "pieces": "A piece of a long recording must begin at a multiple of decode_period samples and have "
        "encode_context (or decode_context) samples of its neighbours to either side, whose results are "
        "dropped; so it gives what the whole gives.",
    }


@torch.no_grad()
def export_onnx(folder: Path, network: VQVAE) -> dict[str, float]:
    """Write encode.onnx and decode.onnx, and compare them with torch: `codes_equal` is the share of equal codes
    (rounding decides some), `waveform_error` the largest difference of a sample. ValueError if it is large."""
    network = network.cpu().eval()
    hops, c = network.config.hop_lengths, network.config
    names = [f"codes_{i}" for i in range(len(hops))]
    folder.mkdir(parents=True, exist_ok=True)
    batch, n, facts = torch.export.Dim("batch", min=1), torch.export.Dim("n", min=1), rules(network)
    waveform = 0.1 * torch.randn(2, c.channels, 4 * hops[0])
    say("onnx: writing the encoder (about half a minute)")
    shapes: Any = {"waveform": {0: batch, 2: times(hops[0], n)}}
    encode = write_graph(folder / ENCODE, EncodeGraph(network), {"waveform": waveform}, shapes, names, facts)
    say("onnx: writing the decoder")
    shapes = (tuple({0: batch, 1: times(hops[0] // hop, n)} for hop in hops),)
    codes = network.encode(waveform)
    inputs = dict(zip(names, codes, strict=True))
    decode = write_graph(folder / DECODE, DecodeGraph(network), inputs, shapes, ["waveform"], facts)

    waveform = decaying_tone(c.sample_rate, c.channels, hops[0])
    codes = network.encode(waveform)
    found = encode.run(None, {"waveform": waveform.numpy()})
    n_equal = sum(int((a.numpy() == b).sum()) for a, b in zip(codes, found, strict=True))
    equal = n_equal / sum(level.numel() for level in codes)
    decoded = decode.run(None, {name: level.numpy() for name, level in zip(names, codes, strict=True)})[0]
    error = float((network.decode(codes) - torch.from_numpy(decoded)).abs().max())
    if equal < 0.98 or error > 1e-3:
        found = f"{equal:.1%} of the codes equal and samples that differ by {error:.1g}"
        raise ValueError(f"onnx: expected the results of torch, found {found}; {TRY_OTHERS}")
    return {"codes_equal": equal, "waveform_error": error}


def decaying_tone(sample_rate: int, channels: int, multiple: int) -> Tensor:
    """A signal to compare with: a rising tone that decays into silence, float [1, channels, samples]."""
    n = -(-int(CHECKED_SECONDS * sample_rate) // multiple) * multiple
    time = torch.arange(n) / sample_rate
    tone = torch.sin(2 * math.pi * (110 + 200 * time) * time) * torch.exp(-2 * time)
    return (0.5 * tone * (time < 0.85 * CHECKED_SECONDS)).expand(1, channels, -1).contiguous()


# --- the graphs -----------------------------------------------------------------------------------


def fourier_basis(n_fft: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π k n / n_fft for bin k and sample n, float64 [n_fft / 2 + 1, n_fft]."""
    turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) % n_fft  # exact in integers
    angles = turns * (2 * math.pi / n_fft)
    return angles.double().cos(), angles.double().sin()


def stft_kernels(window: Tensor) -> Tensor:
    """Kernels of a Fourier transform, float32 [2 · bins, 1, n_fft], in units in which `LEAST_POWER` is 1. onnxscript
    0.7 leaves out the addition of a number as small as 1e-9, which changes half of the codes of quiet music."""
    cos, sin = fourier_basis(len(window))
    scale = window.cpu().double() * (len(window) * LEAST_POWER) ** -0.5
    return (torch.cat([cos, -sin]) * scale)[:, None].float()


def transform(waveform: Tensor, kernels: Tensor, hop_length: int, ahead: int) -> Tensor:
    """[b, channels, samples] -> real and imaginary parts [2, b, channels, bins, samples / hop]."""
    side = kernels.shape[-1] - hop_length
    padded = rearrange(F.pad(waveform, (side - ahead, ahead)), "b c n -> (b c) 1 n")
    parts = F.conv1d(padded, kernels, stride=hop_length)
    return rearrange(parts, "(b c) (part f) t -> part b c f t", c=waveform.shape[1], part=2)


class ConvStftFront(nn.Module):
    """`StftFront` with a strided convolution as its Fourier transform."""

    def __init__(self, front: StftFront):
        super().__init__()
        self.mix, self.mean, self.scale = front.mix, front.mean, front.scale
        self.hop_length, self.ahead = front.hop_length, front.ahead_samples
        self.kernels = nn.Buffer(stft_kernels(front.window))

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        parts = transform(waveform, self.kernels, self.hop_length, self.ahead)
        power = parts.square().sum(dim=0) + 1
        log_magnitude = power.log() / (4 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
        compressed = parts * power**-0.35 * LEAST_POWER**0.15
        features = torch.stack([log_magnitude, compressed[0], compressed[1]], dim=2)
        return self.mix((rearrange(features, "b c part f t -> b (c part f) t") - self.mean) * self.scale)


class ConvMelFront(nn.Module):
    """`MelFront` with strided convolutions as its Fourier transforms."""

    def __init__(self, front: MelFront):
        super().__init__()
        self.mix, self.mean, self.scale = front.mix, front.mean, front.scale
        self.hop_length, self.ahead, self.n_windows = front.hop_length, front.ahead, len(front.n_ffts)
        for i in range(self.n_windows):
            self.register_buffer(f"kernels_{i}", stft_kernels(front.get_buffer(f"window_{i}")))
            self.register_buffer(f"filters_{i}", front.get_buffer(f"filters_{i}"))

    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        features = []
        for i in range(self.n_windows):
            parts = transform(waveform, self.get_buffer(f"kernels_{i}"), self.hop_length, self.ahead[i])
            magnitude = rearrange((parts.square().sum(dim=0) + 1).sqrt(), "b c f t -> b c t f")
            mel = (magnitude @ self.get_buffer(f"filters_{i}")).clamp(min=LEAST_MEL * LEAST_POWER**-0.5).log()
            scaled = mel / (2 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
            features.append(rearrange(scaled, "b c t m -> b (c m) t"))
        return self.mix((torch.cat(features, dim=1) - self.mean) * self.scale)


class ConvIstftDecoder(nn.Module):
    """`IstftDecoder` with a transposed convolution as inverse Fourier transform, window and overlap-add."""

    def __init__(self, decoder: IstftDecoder):
        super().__init__()
        self.decoder = decoder
        window = decoder.window.cpu().double()
        cos, sin = fourier_basis(decoder.n_fft)
        weights = torch.full((decoder.n_fft // 2 + 1, 1), 2.0, dtype=torch.float64)
        weights[0] = weights[-1] = 1  # the others count for their conjugates, too
        kernels = torch.cat([cos * weights, -sin * weights]) * window / decoder.n_fft
        self.kernels = nn.Buffer(kernels[:, None].float())  # [2 bins, 1, n_fft]
        self.squares = nn.Buffer(window.square()[None, None].float())

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, t] -> [b, channels, t * hop]
        parts = [rearrange(part, "b c t f -> (b c) f t") for part in self.decoder.spectrum(self.decoder.trunk(x))]
        summed = self._overlap_add(torch.cat(parts, dim=1), self.kernels)
        envelope = self._overlap_add(torch.ones_like(x[:1, :1]), self.squares)
        return rearrange(summed / envelope, "(b c) 1 n -> b c n", c=self.decoder.channels)

    def _overlap_add(self, frames: Tensor, kernels: Tensor) -> Tensor:  # [b, n, t] -> [b, 1, t * hop]
        hop, n_fft = self.decoder.hop_length, self.decoder.n_fft
        start = (n_fft - hop) // 2
        total = F.conv_transpose1d(frames, kernels, stride=hop)  # [b, 1, (t - 1) * hop + n_fft]
        return total[..., start : total.shape[-1] - (n_fft - hop - start)]


CONV_FRONTS: dict[type, Any] = {StftFront: ConvStftFront, MelFront: ConvMelFront}


class SpectrumDecoder(nn.Module):
    """`IstftDecoder` up to the spectra of its frames: real and imaginary parts, [b, channels, 2, t, bins]. The inverse
    Fourier transform as a convolution takes 32 · hop² bytes of kernels, which a fast one does not need."""

    def __init__(self, decoder: IstftDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:  # [b, dim, t] -> [b, channels, 2, t, bins]
        return torch.stack(self.decoder.spectrum(self.decoder.trunk(x)), dim=2)


def _exportable(network: VQVAE) -> VQVAE:
    if any(isinstance(group.decoder, ToneDecoder) or group.combiner is not None for group in network.groups):
        raise ValueError("expected a tokenizer without topology bands and decoder tones, which have no ONNX graph yet")
    return copy.deepcopy(network).eval()


class EncodeGraph(nn.Module):
    """Waveform [b, channels, n · hops[0]] -> codes, int64 [b, n · hops[0] / hops[i]] per level."""

    def __init__(self, network: VQVAE):
        super().__init__()
        self.network = _exportable(network)
        for autoencoder in self.network.groups:
            front = autoencoder.encoder.front
            autoencoder.encoder.front = CONV_FRONTS.get(type(front), nn.Sequential)(front)

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        results = self.network.quantize(waveform, self.network.quantizers())
        return tuple(level.codes for _, levels, _ in results for level in levels)


class DecodeGraph(nn.Module):
    """Codes of all or the first levels, int64 [b, t · hops[0] / hops[i]] -> waveform [b, channels, t · hops[0]], or
    with `spectra`, where the decoder ends in an inverse STFT, see `SpectrumDecoder`. A code of -1 adds nothing: after
    the end of a track, and in finer levels that are left out. With independent levels only the finest one is
    decoded."""

    def __init__(self, network: VQVAE, n_levels: int | None = None, spectra: bool = False):
        super().__init__()
        self.network = _exportable(network)
        self.n_levels = n_levels or network.config.n_levels
        for autoencoder in self.network.groups:
            if isinstance(autoencoder.decoder, IstftDecoder):
                kind = SpectrumDecoder if spectra else ConvIstftDecoder
                autoencoder.decoder = kind(autoencoder.decoder)

    def forward(self, *codes: Tensor) -> Tensor:
        quantizers, groups = self.network.quantizers(), self.network.level_groups()
        # The only autoencoder, or that of the finest level.
        autoencoder, levels = groups[self.n_levels - 1 if len(groups) > 1 else 0]
        residuals = []
        for i in levels[: self.n_levels]:
            residual = autoencoder.residual(quantizers[i].embed(codes[i].clamp(min=0)), i - levels[0])
            residuals.append(residual * (codes[i] >= 0).to(residual.dtype)[:, None])
        return autoencoder.decode(*residuals)
