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
from audiovq.tokenizer import pitch
from audiovq.tokenizer.bands import BandEncoder
from audiovq.tokenizer.decoders import IstftDecoder, ToneDecoder
from audiovq.tokenizer.fronts import LEAST_MEL, LEAST_POWER, MelFront, StftFront
from audiovq.tokenizer.tones import Oscillators
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.progress import say

ENCODE, DECODE = "encode.onnx", "decode.onnx"
CHECKED_SECONDS = 3.0


def rules(network: VQVAE) -> dict[str, Any]:
    """All that is needed to use the files: the JSON in their metadata."""
    c = network.config
    left_out = {
        "residual": "(levels are residual: leave out the finest first)",
        "independent": "only if it is not the finest: that alone is decoded",
        "bands": "(levels are bands of frequencies, from low to high)",
    }[c.topology]
    names = ("sample_rate", "channels", "hop_lengths", "codebook_size", "topology")
    facts = {name: getattr(c, name) for name in names} | {"samples_multiple": c.multiple}
    facts |= {"encode_context": network.encoder_radius, "decode_context": network.decoder_radius}
    facts |= {"tokenizer_hash": tokenizer_hash(network), "decode_period": network.period}
    return facts | {
        "padding": "Append zeros up to a multiple of samples_multiple; keep the first "
        "ceil(samples / hop_lengths[i]) codes of level i. To decode, append codes of -1 to "
        "n · samples_multiple / hop_lengths[i] codes a level, and keep the first samples of the waveform. "
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
    c, hops, multiple = network.config, network.config.hop_lengths, network.config.multiple
    names = [f"codes_{i}" for i in range(len(hops))]
    folder.mkdir(parents=True, exist_ok=True)
    batch, n, facts = torch.export.Dim("batch", min=1), torch.export.Dim("n", min=1), rules(network)
    waveform = 0.1 * torch.randn(2, c.channels, 4 * multiple)
    say("onnx: writing the encoder (about half a minute)")
    shapes: Any = {"waveform": {0: batch, 2: times(multiple, n)}}
    encode = write_graph(folder / ENCODE, EncodeGraph(network), {"waveform": waveform}, shapes, names, facts)
    say("onnx: writing the decoder")
    shapes = (tuple({0: batch, 1: times(multiple // hop, n)} for hop in hops),)
    codes = network.encode(waveform)
    inputs = dict(zip(names, codes, strict=True))
    decode = write_graph(folder / DECODE, DecodeGraph(network), inputs, shapes, ["waveform"], facts)

    # Compare by a rising tone that decays into silence, [1, channels, samples].
    time = torch.arange(-(-int(CHECKED_SECONDS * c.sample_rate) // multiple) * multiple) / c.sample_rate
    tone = torch.sin(2 * math.pi * (110 + 200 * time) * time) * torch.exp(-2 * time)
    waveform = (0.5 * tone * (time < 0.85 * CHECKED_SECONDS)).expand(1, c.channels, -1).contiguous()
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


# --- The graphs. Kernels are computed from these few numbers in the graph, once when it is loaded, because files with
# them would be several times as large.


def waves(cycles: Tensor, samples: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 [n, samples], of waves with a whole number of cycles in a period; both int64."""
    angles = (cycles[:, None] * samples % period).float() * (2 * math.pi / period)  # exact up to here
    return angles.cos(), angles.sin()


def fourier_kernels(window: Tensor, n_bins: int | None = None) -> Tensor:
    """Kernels of a Fourier transform, float32 [2 · bins, 1, n_fft], in units in which `LEAST_POWER` is 1. onnxscript
    0.7 leaves out the addition of a number as small as 1e-9, which changes half of the codes of quiet music."""
    n_fft = len(window)
    cos, sin = waves(torch.arange(n_bins or n_fft // 2 + 1), torch.arange(n_fft), n_fft)
    return (torch.cat([cos, -sin]) * (window * (n_fft * LEAST_POWER) ** -0.5))[:, None]


def transform(waveform: Tensor, kernels: Tensor, hop_length: int, ahead: int | None = None) -> Tensor:
    """[b, channels, samples] -> real and imaginary parts [2, b, channels, bins, samples / hop]."""
    side = kernels.shape[-1] - hop_length
    ahead = side - side // 2 if ahead is None else ahead
    padded = rearrange(F.pad(waveform, (side - ahead, ahead)), "b c n -> (b c) 1 n")
    parts = F.conv1d(padded, kernels, stride=hop_length)
    return rearrange(parts, "(b c) (part f) t -> part b c f t", c=waveform.shape[1], part=2)


def overlap_add(frames: Tensor, kernels: Tensor, hop_length: int) -> Tensor:
    """Sum frames of weighted kernels [n, 1, n_fft], as `blocks.overlap_add`: [b, n, time] -> [b, 1, time · hop]."""
    n_fft = kernels.shape[-1]
    start = (n_fft - hop_length) // 2
    total = F.conv_transpose1d(frames, kernels, stride=hop_length)  # [b, 1, (time - 1) · hop + n_fft]
    return total[..., start : total.shape[-1] - (n_fft - hop_length - start)]


class Replacement(nn.Module):
    """Gives what `part` of a network gives, with strided convolutions as its Fourier transforms."""

    def __init__(self, part: Any):
        super().__init__()
        self.part = part


class ConvStftFront(Replacement):
    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        front = self.part
        parts = transform(waveform, fourier_kernels(front.window), front.hop_length, front.ahead_samples)
        power = parts.square().sum(dim=0) + 1
        log_magnitude = power.log() / (4 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
        compressed = parts * power**-0.35 * LEAST_POWER**0.15
        features = torch.stack([log_magnitude, compressed[0], compressed[1]], dim=2)
        return front.mix((rearrange(features, "b c part f t -> b (c part f) t") - front.mean) * front.scale)


class ConvMelFront(Replacement):
    def forward(self, waveform: Tensor) -> Tensor:  # [b, channels, samples] -> [b, dim, samples / hop]
        features, front = [], self.part
        for i, ahead in enumerate(front.ahead):
            parts = transform(waveform, fourier_kernels(front.get_buffer(f"window_{i}")), front.hop_length, ahead)
            magnitude = rearrange((parts.square().sum(dim=0) + 1).sqrt(), "b c f t -> b c t f")
            mel = (magnitude @ front.get_buffer(f"filters_{i}")).clamp(min=LEAST_MEL * LEAST_POWER**-0.5).log()
            scaled = mel / (2 * math.log(10)) + (math.log10(LEAST_POWER) / 4 + 1)
            features.append(rearrange(scaled, "b c t m -> b (c m) t"))
        return front.mix((torch.cat(features, dim=1) - front.mean) * front.scale)


class ConvPitchSpectrogram(Replacement):
    def forward(self, waveform: Tensor) -> Tensor:  # [b, samples] -> [b, steps, samples / hop]
        steps, part = [], self.part
        for i, (n_fft, factor) in enumerate(zip(part.n_ffts, part.factors, strict=True)):
            low_pass, weights = part.get_buffer(f"low_pass_{i}"), part.get_buffer(f"weights_{i}")  # [bins, steps]
            # As long as a multiple of the factor, so that no remainder makes the lengths of the graph complicated.
            filters = F.pad(low_pass, (0, factor - 1))[None, None]
            x = F.conv1d(waveform[:, None], filters, stride=factor, padding=len(low_pass) // 2)
            kernels = fourier_kernels(part.get_buffer(f"window_{i}"), len(weights))
            parts = transform(x, kernels, part.hop_length // factor)
            power = parts.square().sum(dim=0)[:, 0] * (n_fft * LEAST_POWER)
            least = torch.full((weights.shape[1],), pitch.LEAST_POWER)  # as a bias it is not left out
            steps.append(F.conv1d(power, weights.T[:, :, None], least).sqrt())
        return torch.cat(steps, dim=1)


class ConvBandEncoder(Replacement):
    def forward(self, waveform: Tensor) -> list[Tensor]:
        encoder = self.part
        power = transform(waveform, fourier_kernels(encoder.window), encoder.hop_length).square().sum(dim=0)
        magnitudes = rearrange(power.sqrt() * LEAST_POWER**0.5, "b 1 f t -> b t f")
        return encoder.patches(encoder.notes(waveform[:, 0])[1], magnitudes)


REPLACEMENTS: dict[type, type[Replacement]] = {StftFront: ConvStftFront, MelFront: ConvMelFront}
REPLACEMENTS |= {pitch.PitchSpectrogram: ConvPitchSpectrogram, BandEncoder: ConvBandEncoder}


def inverse_stft(decoder: IstftDecoder, x: Tensor) -> Tensor:
    """`IstftDecoder.waveform` with a transposed convolution as inverse Fourier transform, window and overlap-add."""
    n_fft, hop, window = decoder.n_fft, decoder.hop_length, decoder.window
    cos, sin = waves(torch.arange(n_fft // 2 + 1), torch.arange(n_fft), n_fft)
    weights = F.pad(torch.full((n_fft // 2 - 1, 1), 2.0), (0, 0, 1, 1), value=1.0)  # 2: for the conjugates, too
    kernels = torch.cat([cos * weights, -sin * weights]) * (window / n_fft)
    parts = [rearrange(part, "b c t f -> (b c) f t") for part in decoder.spectrum(x)]
    summed = overlap_add(torch.cat(parts, dim=1), kernels[:, None], hop)
    envelope = overlap_add(torch.ones_like(parts[0][:1, :1]), window.square()[None, None], hop)
    return rearrange(summed / envelope, "(b c) 1 n -> b c n", c=decoder.channels)


def oscillate(oscillators: Oscillators, loudness: Tensor) -> Tensor:
    """`Oscillators` with a transposed convolution as the sum of their waves."""
    hop, period, n_window = oscillators.hop_length, oscillators.period, oscillators.overlap * oscillators.hop_length
    samples = torch.arange(n_window) - n_window // 2 + period * hop  # above 0
    cos, sin = waves(oscillators.cycles.long(), samples, period * hop)
    kernels = torch.cat([cos, -sin]) * (torch.hann_window(n_window) * (2 / oscillators.overlap))
    parts = rearrange(oscillators.parts(loudness), "b c t n -> (b c) n t")
    return rearrange(overlap_add(parts, kernels[:, None], hop), "(b c) 1 n -> b c n", c=loudness.shape[1])


def _changeable(network: VQVAE) -> VQVAE:
    """A copy; ValueError for a published codec, which has no `groups`."""
    _ = network.groups
    return copy.deepcopy(network).eval()


class EncodeGraph(nn.Module):
    """Waveform [b, channels, n · multiple] -> codes, int64 [b, n · multiple / hops[i]] per level."""

    def __init__(self, network: VQVAE):
        super().__init__()
        self.network = _changeable(network)
        for name, part in reversed(list(self.network.named_modules())):  # what is within others first
            if kind := REPLACEMENTS.get(type(part)):
                self.network.set_submodule(name, kind(part))

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        quantizers = self.network.quantizers()
        if self.network.config.topology == "bands":  # no level needs the vectors of another
            levels = zip(quantizers, self.network.groups[0].features(waveform), strict=True)
            return tuple(quantizer.encode(rearrange(x, "b d t -> b t d")) for quantizer, x in levels)
        return tuple(level.codes for _, levels, _ in self.network.quantize(waveform, quantizers) for level in levels)


class DecodeGraph(nn.Module):
    """Codes of all or the first levels, int64 [b, t · multiple / hops[i]] -> waveform [b, channels, t · multiple]. A
    code of -1 adds nothing: after the end of a track, and in finer levels that are left out. With independent levels
    only the finest one is decoded.

    With `spectra`, decoders that end in an inverse STFT give the spectra of its frames, [b, channels, 2, frames, bins]:
    as a convolution it takes 32 · hop² bytes of kernels, which a fast one does not need. A second result is then the
    waveform of the tones, if the decoder has them."""

    def __init__(self, network: VQVAE, n_levels: int | None = None, spectra: bool = False):
        super().__init__()
        self.network = _changeable(network)
        self.n_levels, self.spectra = n_levels or network.config.n_levels, spectra

    def forward(self, *codes: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        quantizers, groups = self.network.quantizers(), self.network.level_groups()
        # The only autoencoder, or that of the finest level.
        autoencoder, levels = groups[self.n_levels - 1 if len(groups) > 1 else 0]
        residuals, bands = [], autoencoder.combiner is not None
        for i in levels[: self.n_levels]:
            vectors = quantizers[i].embed(codes[i] if bands else codes[i].clamp(min=0))
            residual = autoencoder.residual(vectors, i - levels[0])
            # The vectors of patches are 0 where a code is -1.
            residuals.append(residual if bands else residual * (codes[i] >= 0).to(residual.dtype)[:, None])
        total, decoder, tones = autoencoder.total(*residuals), autoencoder.decoder, None
        if not isinstance(decoder, IstftDecoder):
            return decoder(total)
        if isinstance(decoder, ToneDecoder):
            x, loudness = decoder.features(total)
            tones = oscillate(decoder.oscillators, loudness.exp())
        else:
            x = decoder.trunk(total)
        sound = torch.stack(decoder.spectrum(x), dim=2) if self.spectra else inverse_stft(decoder, x)
        if tones is None:
            return sound
        return (sound, tones) if self.spectra else sound + tones
