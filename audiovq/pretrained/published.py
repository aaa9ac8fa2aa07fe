"""Codecs that others published, in place of a `VQVAE`: each codebook is a level, and their networks stay as they are.
A codec is one class here and one line in `CODECS`; the class says where the codec's numbers are, and calls it."""

import importlib
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq import config as conf
from audiovq.pretrained.locate import CODEC_PREFIX, codec_place, model_licence
from audiovq.tokenizer.input_checks import check_codes, check_waveform
from audiovq.utils.environment import errors_as, require
from audiovq.utils.files import CONFIG, WEIGHTS

LSTM_SECONDS = 8.0  # of the past that an LSTM gets; it was trained on pieces of one second
NOISE_SECONDS = 1.0  # the least period of a decoder's noise


class PublishedCodec(nn.Module):
    """A codec of transformers with its weights, and what others use of a `VQVAE`."""

    package = "transformers"
    config: Any  # `VQVAEConfig` of `settings`

    def __init__(self, codec: Any, n_levels: int | None, facts: dict[str, str]):
        super().__init__()
        self.codec = codec.eval().requires_grad_(False)
        c = getattr(codec, "config", codec)
        hops, memory, self.block = self.layout(c)
        if n_levels and n_levels > len(hops):
            raise ValueError(f"expected at most {len(hops)} levels, found {n_levels}")
        quantizer, channels = {"kind": "ema", "codebook_size": c.codebook_size}, getattr(c, "audio_channels", 1)
        self.settings = {"sample_rate": c.sampling_rate, "channels": channels, "hop_lengths": hops[:n_levels]}
        self.settings |= {"codec": facts, "quantizer": quantizer}
        self.grid = self.period = self.encoder_period = self.block
        causal, spans = getattr(c, "use_causal_conv", False), (span(codec.encoder), span(codec.decoder, hops[-1]))
        encoder, decoder = spans if causal else (n // 2 + self.block for n in spans)
        self.encoder_radius, self.decoder_radius = encoder + memory, decoder + memory
        self.encoder_ahead, self.decoder_ahead = (0, 0) if causal else (encoder, decoder)

    def layout(self, c: Any) -> tuple[list[int], int, int]:
        """By the codec's config: the hops of all codebooks; samples of the past that count beside those that convolutions
        reach; and samples at multiples of which chunks must begin."""
        hop = getattr(c, "hop_length", None) or round(c.sampling_rate / c.frame_rate)
        return [hop] * (getattr(c, "num_quantizers", None) or c.n_codebooks), 0, hop

    @property
    def groups(self) -> Any:  # what is tuned, or exported to ONNX
        source = self.config.codec["source"]
        raise ValueError(f"expected a tokenizer that audiovq trained, found the published codec {source}")

    def encode(self, waveform: Tensor) -> list[Tensor]:
        """As `VQVAE.encode`, but what follows the last sample is as the codec has it."""
        check_waveform(waveform, self.config.channels, 1)
        levels = zip(self.own_encode(waveform), self.config.hop_lengths, strict=False)
        return [level[:, : -(-waveform.shape[-1] // hop)] for level, hop in levels]

    def decode(self, codes: list[Tensor], n_samples: int, start: int = 0) -> Tensor:
        """As `VQVAE.decode`; a codec whose sound ends some samples before its last code has zeros there."""
        check_codes(codes, self.config.hop_lengths, self.config.codebook_size, n_samples)
        waveform = self.own_decode(codes)
        return F.pad(waveform, (0, max(0, n_samples - waveform.shape[-1])))[..., :n_samples]

    def own_encode(self, waveform: Tensor) -> Any:  # float [b, channels, samples] -> int64 [b, time] for all codebooks
        return self.codec.encode(waveform).audio_codes.flatten(0, -3).unbind(1)  # EnCodec has a dimension more

    def own_decode(self, codes: list[Tensor]) -> Tensor:  # [b, time] of the first codebooks -> [b, channels, samples]
        waveform = self.codec.decode(audio_codes=torch.stack(codes, dim=1)).audio_values
        return waveform.view(len(waveform), self.config.channels, -1)


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

    def layout(self, c: Any) -> tuple[list[int], int, int]:
        if c.normalize or c.chunk_length_s is not None or c.norm_type != "weight_norm":
            raise ValueError("expected codes alone, as of 24 and 32 kHz, found a loudness for each chunk, as of 48 kHz")
        c.target_bandwidths = c.target_bandwidths[-1:]  # that of all codebooks becomes the default of `encode`
        hops, _, block = super().layout(c)
        return hops, int(LSTM_SECONDS * c.sampling_rate) if c.num_lstm_layers else 0, block

    def own_decode(self, codes: list[Tensor]) -> Tensor:
        return self.codec.decode(torch.stack(codes, dim=1)[None], [None]).audio_values


class Dac(PublishedCodec):
    """Descript Audio Codec (arXiv:2306.06546)."""

    def own_encode(self, waveform: Tensor) -> Any:
        return super().own_encode(F.pad(waveform, (0, -waveform.shape[-1] % self.block)))


class Mimi(PublishedCodec):
    """Mimi (arXiv:2410.00037). Its transformers see as far back as the windows of all layers together."""

    def layout(self, c: Any) -> tuple[list[int], int, int]:
        hops, _, block = super().layout(c)
        return hops, c.num_hidden_layers * c.sliding_window * math.prod(c.upsampling_ratios), block


class Snac(PublishedCodec):
    """SNAC (arXiv:2410.14411): codebooks at several rates, and attention within blocks at fixed places."""

    package = "snac"

    def __init__(self, codec: Any, n_levels: int | None, facts: dict[str, str]):
        super().__init__(codec, n_levels, facts)
        # The decoder's noise is drawn once, and repeated: the same codes always become the same sound, also in chunks.
        n, rate = self.block * math.ceil(NOISE_SECONDS * codec.sampling_rate / self.block), int(codec.hop_length)
        for module in list[Any](codec.decoder.modules()):
            rate //= getattr(module, "stride", (1,))[0]
            if type(module).__name__ == "NoiseBlock":
                self.grid = self.period = n
                noise = torch.randn(n // rate, generator=torch.Generator().manual_seed(rate))
                module.forward = lambda x, f=module.linear, z=noise: (
                    x + f(x) * z[torch.arange(x.shape[-1]) % len(z)].to(x)
                )

    def layout(self, c: Any) -> tuple[list[int], int, int]:
        hop = int(c.hop_length)
        return [hop * stride for stride in c.vq_strides], 0, hop * math.lcm(c.vq_strides[0], c.attn_window_size or 1)

    def own_encode(self, waveform: Tensor) -> Any:
        return self.codec.encode(waveform)

    def own_decode(self, codes: list[Tensor]) -> Tensor:
        # As `quantizer.from_codes`, which needs all levels. The last block is filled up with zeros.
        n = -(-codes[0].shape[1] * self.config.hop_lengths[0] // self.block) * self.block // int(self.codec.hop_length)
        latents = torch.zeros((), device=codes[0].device)
        for quantizer, level in zip(self.codec.quantizer.quantizers, codes, strict=False):
            vectors = quantizer.out_proj(quantizer.decode_code(level)).repeat_interleave(quantizer.stride, dim=-1)
            latents = latents + F.pad(vectors, (0, n - vectors.shape[-1]))  # [b, dim, n]
        return self.codec.decoder(latents)


CODECS: dict[str, type[PublishedCodec]] = {"encodec": Encodec, "dac": Dac, "mimi": Mimi, "snac": Snac}


def load_codec(place: Path) -> PublishedCodec | None:
    """The codec at `hf:…` or in a folder; None for the config of another model. Raises ValueError for damaged files."""
    is_named = str(place).startswith(CODEC_PREFIX)
    folder, n_levels = codec_place(str(place).removeprefix(CODEC_PREFIX)) if is_named else (place, None)
    content = conf.read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    settings = content if isinstance(content, dict) else {}
    kind = "snac" if "vq_strides" in settings else settings.get("model_type")  # SNAC's config does not name itself
    if not is_named and ("kind" in settings or kind is None):
        return None
    names = (part[8:].replace("--", "/") for part in folder.parts if part.startswith("models--"))  # in the hub's cache
    source = next(names, folder.resolve().name)
    facts = {"kind": str(kind), "source": source, "licence": str(model_licence(folder) or "unknown")}
    return build_codec(facts | {"settings": json.dumps(settings)}, folder, n_levels)


def build_codec(facts: dict[str, str], folder: Path, n_levels: int | None) -> PublishedCodec:
    """A codec with the weights of a folder; raises as `load_codec`. Of `facts`, `settings` is the codec's own config."""
    kind = CODECS.get(facts.get("kind", ""))
    if kind is None:
        raise ValueError(f"{folder}: expected a codec of kind {', '.join(CODECS)}, found {facts.get('kind', ''):.40}")
    require(f"codec {facts['kind']}", kind.package, install="pip install 'audiovq[codecs]'")
    with errors_as(f"{folder}: no {facts['kind']} codec to load"):  # files and a library that others wrote
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", FutureWarning)  # by snac
        package = importlib.import_module(kind.package)
        load = _load_snac if kind.package == "snac" else _load_transformers
        return kind(load(package, json.loads(facts["settings"]), folder), n_levels, facts)


def _load_transformers(package: Any, settings: dict[str, Any], folder: Path) -> Any:
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    config = package.AutoConfig.for_model(**settings)
    options = {"config": config, "local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    codec, report = package.AutoModel.from_pretrained(folder, dtype=torch.float32, **options)
    if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"expected weights for {missing[0]} that fit {CONFIG}, found none")
    return codec


def _load_snac(package: Any, settings: dict[str, Any], folder: Path) -> Any:
    if not (folder / WEIGHTS).is_file():
        return package.SNAC.from_pretrained(str(folder))  # a file of torch, of which it reads tensors alone
    codec = package.SNAC(**settings)
    codec.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return codec


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The tensors to save; a codec's have the names of its own files, which stay when a library renames modules."""
    if not isinstance(network, PublishedCodec) or network.package == "snac":
        return getattr(network, "codec", network).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        network.codec.save_pretrained(folder, max_shard_size="1TB")
        return safetensors.torch.load_file(Path(folder) / WEIGHTS)
