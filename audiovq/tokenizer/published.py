"""Codecs that others published, in place of a `VQVAE`: each codebook is a level, and their networks stay as they are.

A codec is one class here and one line in `CODECS`; the class says where the codec's numbers are, and calls it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.tokenizer.input_checks import MAX_LEVELS, check_codes, check_waveform
from audiovq.tokenizer.vqvae import VQVAE, CodecConfig, VQVAEConfig

LSTM_SECONDS = 8.0  # of the past that an LSTM gets; it was trained on pieces of one second
NOISE_SECONDS = 1.0  # the least period of a decoder's noise


class PublishedCodec(VQVAE):
    """A codec with its weights: `encode` and `decode` are its own, for the first `n_levels` codebooks.

    Args:
        hops: of all codebooks, coarse to fine.
        memory: samples of the past that count beside those that convolutions reach.
        block: samples, at multiples of which a chunk must begin; default the coarsest hop.
    """

    package = "transformers"
    classes: tuple[str, ...]  # of the package: the model, and its config if that is a class
    own_encode: Any  # float [b, channels, samples] -> int64 [b, time] of at least the first codebooks
    own_decode: Any  # int64 [b, time] of the first codebooks -> float [b, channels, samples]

    def __init__(
        self, codec: Any, facts: CodecConfig, n_levels: int | None, hops: Sequence[int], memory: int = 0, block: int = 0
    ):
        nn.Module.__init__(self)  # without the networks of a VQVAE
        c, most = getattr(codec, "config", codec), min(len(hops), MAX_LEVELS)
        if n_levels is not None and not 1 <= n_levels <= most:
            raise ValueError(f"expected 1 to {most} levels, found {n_levels}")
        quantizer, channels = {"kind": "ema", "codebook_size": c.codebook_size}, getattr(c, "audio_channels", 1)
        model = {"sample_rate": c.sampling_rate, "channels": channels, "hop_lengths": tuple(hops[: n_levels or most])}
        self.config = VQVAEConfig.model_validate({**model, "quantizer": quantizer, "codec": facts})
        self.codec: Any = codec.eval().requires_grad_(False)
        self.n_codebooks, self.block = len(hops), block or hops[0]
        self.period = self.encoder_period = self.block
        causal, spans = getattr(c, "use_causal_conv", False), (span(codec.encoder), span(codec.decoder, hops[-1]))
        encoder, decoder = spans if causal else (n // 2 + self.block for n in spans)
        self.encoder_radius, self.decoder_radius = encoder + memory, decoder + memory
        self.encoder_ahead, self.decoder_ahead = (0, 0) if causal else (encoder, decoder)

    @property
    def groups(self) -> Any:  # what only a VQVAE has
        source = self.config.codec and self.config.codec.source
        raise ValueError(f"expected a tokenizer that audiovq trained, found the published codec {source}")

    def encode(self, waveform: Tensor) -> list[Tensor]:
        """As `VQVAE.encode`, but what follows the last sample is as the codec has it."""
        check_waveform(waveform, self.config.channels, 1)
        levels = zip(self.own_encode(waveform), self.config.hop_lengths, strict=False)
        return [level[:, : -(-waveform.shape[-1] // hop)] for level, hop in levels]

    def decode(self, codes: list[Tensor], n_samples: int | None = None) -> Tensor:
        """As `VQVAE.decode`; a codec whose sound ends some samples before its last code has zeros there."""
        hops = self.config.hop_lengths
        if n_samples is None:
            n_samples = codes[0].shape[1] * hops[0] if codes else 0
        check_codes(codes, hops, self.config.codebook_size, n_samples)
        waveform = self.own_decode(codes)
        return F.pad(waveform, (0, max(0, n_samples - waveform.shape[-1])))[..., :n_samples]


def span(network: nn.Module, rate: int = 1) -> int:
    """Samples that a network's convolutions reach, one after the other; the first has a step every `rate` samples."""
    total = 0
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose1d):
            rate //= module.stride[0]
            total += module.kernel_size[0] * rate
        elif isinstance(module, nn.Conv1d):
            total += (module.kernel_size[0] - 1) * module.dilation[0] * rate
            rate *= module.stride[0]
    return total


class Encodec(PublishedCodec):
    """EnCodec (arXiv:2210.13438), also that of MusicGen."""

    classes = "EncodecModel", "EncodecConfig"

    def __init__(self, codec: Any, facts: CodecConfig, n_levels: int | None):
        c = codec.config
        if c.normalize or c.chunk_length_s is not None or c.norm_type != "weight_norm":
            raise ValueError("expected codes alone, as of 24 and 32 kHz, found a loudness for each chunk, as of 48 kHz")
        memory = int(LSTM_SECONDS * c.sampling_rate) if c.num_lstm_layers else 0
        super().__init__(codec, facts, n_levels, [c.hop_length] * c.num_quantizers, memory)

    def own_encode(self, waveform: Tensor) -> Sequence[Tensor]:
        bandwidth = self.codec.config.target_bandwidths[-1]  # of all codebooks
        return self.codec.encode(waveform, bandwidth=bandwidth).audio_codes[0].unbind(1)

    def own_decode(self, codes: list[Tensor]) -> Tensor:
        return self.codec.decode(torch.stack(codes, dim=1)[None], [None]).audio_values


class Dac(PublishedCodec):
    """Descript Audio Codec (arXiv:2306.06546)."""

    classes = "DacModel", "DacConfig"

    def __init__(self, codec: Any, facts: CodecConfig, n_levels: int | None):
        super().__init__(codec, facts, n_levels, [codec.config.hop_length] * codec.config.n_codebooks)

    def own_encode(self, waveform: Tensor) -> Sequence[Tensor]:
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % self.block))
        return self.codec.encode(waveform, n_quantizers=self.config.n_levels).audio_codes.unbind(1)

    def own_decode(self, codes: list[Tensor]) -> Tensor:
        return self.codec.decode(audio_codes=torch.stack(codes, dim=1)).audio_values[:, None]


class Mimi(PublishedCodec):
    """Mimi (arXiv:2410.00037). Its transformers see as far back as the windows of all layers together."""

    classes = "MimiModel", "MimiConfig"

    def __init__(self, codec: Any, facts: CodecConfig, n_levels: int | None):
        c = codec.config
        memory = c.num_hidden_layers * c.sliding_window * math.prod(c.upsampling_ratios)
        super().__init__(codec, facts, n_levels, [round(c.sampling_rate / c.frame_rate)] * c.num_quantizers, memory)

    def own_encode(self, waveform: Tensor) -> Sequence[Tensor]:
        return self.codec.encode(waveform, num_quantizers=self.config.n_levels).audio_codes.unbind(1)

    def own_decode(self, codes: list[Tensor]) -> Tensor:
        return self.codec.decode(torch.stack(codes, dim=1)).audio_values


class FixedNoise(nn.Module):
    """The noise in SNAC's decoder, drawn once and then repeated, so that codes always become the same sound."""

    def __init__(self, linear: Any, n: int):
        super().__init__()
        self.linear = linear
        self.noise = nn.Buffer(torch.randn(n, generator=torch.Generator().manual_seed(n)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return x + self.noise.repeat(-(-n // len(self.noise)))[:n] * self.linear(x)


class Snac(PublishedCodec):
    """SNAC (arXiv:2410.14411): codebooks at several rates, and attention within blocks at fixed places."""

    package, classes = "snac", ("SNAC",)

    def __init__(self, codec: Any, facts: CodecConfig, n_levels: int | None):
        rate = int(codec.hop_length)  # samples per step of the decoder
        block = rate * math.lcm(codec.vq_strides[0], codec.attn_window_size or 1)
        super().__init__(codec, facts, n_levels, [rate * stride for stride in codec.vq_strides], block=block)
        with torch.no_grad():  # the codes of a block of silence, after another one
            self.silence = [level[0].chunk(2)[1] for level in codec.encode(torch.zeros(1, 1, 2 * block))]
        for name, module in list(codec.decoder.named_modules()):
            rate //= module.stride[0] if isinstance(module, nn.ConvTranspose1d) else 1
            if type(module).__name__ == "NoiseBlock":  # chunks begin at multiples of its period
                self.period = block * math.ceil(NOISE_SECONDS * codec.sampling_rate / block)
                codec.decoder.set_submodule(name, FixedNoise(module.linear, self.period // rate))

    def own_encode(self, waveform: Tensor) -> Sequence[Tensor]:
        return self.codec.encode(waveform)

    def own_decode(self, codes: list[Tensor]) -> Tensor:
        # The last block is filled up with codes of silence. As `quantizer.from_codes`, which needs all levels.
        n_blocks, latents = -(-codes[0].shape[1] // len(self.silence[0])), torch.zeros((), device=codes[0].device)
        for quantizer, level, silence in zip(self.codec.quantizer.quantizers, codes, self.silence, strict=False):
            rest = silence.to(level.device).repeat(n_blocks)[level.shape[1] :].expand(len(level), -1)
            vectors = quantizer.out_proj(quantizer.decode_code(torch.cat([level, rest], dim=1)))  # [b, dim, time]
            latents = latents + vectors.repeat_interleave(quantizer.stride, dim=-1)
        return self.codec.decoder(latents)


CODECS: dict[str, Any] = {"encodec": Encodec, "dac": Dac, "mimi": Mimi, "snac": Snac}
