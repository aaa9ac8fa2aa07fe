"""The identity of a model: a hash by which priors and codes files name their tokenizer. It depends on the weights and
on a canonical form of the config, with the key names and the defaults of version 0.1. They are written down here, so
that a hash stays the same when a key or a default changes."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from torch import Tensor

if TYPE_CHECKING:
    from audiovq.prior.prior import Prior
    from audiovq.tokenizer.vqvae import VQVAE

# The components of a tokenizer's config: their keys in the order of version 0.1, by canonical name, with its defaults. A
# setting that is added later goes to the end, with the value that leaves the behaviour unchanged.
FRONTS: dict[str, dict[str, Any]] = {"stft": {"overlap": 4}, "mel": {"overlaps": [2, 8], "n_mels": 512}}
FRONTS["conv"] = {"block": "convnext", "base_dim": 64, "max_stride": 8, "n_blocks": 1}
_CODEBOOK: dict[str, Any] = {"codebook_size": 1024, "codebook_dim": 16}
_TEMPERATURE = {"temperature_start": 1.0, "temperature_end": 0.0625, "temperature_steps": 1000, "scale": 30.0}
_USAGE = {"decay": 0.99, "revival_fraction": 0.03, "kmeans_iterations": 10}
QUANTIZERS = {"gumbel": _CODEBOOK | _TEMPERATURE | _USAGE, "fsq": {"levels": [8, 5, 5, 5]}}
QUANTIZERS["ema"] = _CODEBOOK | {"gradient": "straight_through"} | _USAGE
ENCODER: dict[str, Any] = {"block": "convnext", "n_blocks": 4}
TOKENIZER: dict[str, Any] = {"sample_rate": 24000, "channels": 1, "hop_lengths": [1024, 512, 256]}
TOKENIZER |= {"topology": "residual", "shared_codebook": True, "dim": 256, "decorrelate": False}
TOKENIZER |= {"bands": {"low": 28.0, "semitones": 12, "per_semitone": 5, "frames": 4}, "causal": False}
CANONICAL_NAMES = {"whiten_latents": "decorrelate"}  # current name: name of version 0.1


def canonical_tokenizer(config: dict[str, Any]) -> str:
    """The settings that determine a tokenizer's codes, if they differ from version 0.1's defaults, as JSON."""
    facts = _changed(config, TOKENIZER)
    encoder = config["encoder"]
    front = _component(encoder["front"], FRONTS, default="stft")
    inner = ({} if front is None else {"front": front}) | _changed(encoder, ENCODER)
    quantizer = _component(config["quantizer"], QUANTIZERS, default="ema")
    facts |= {"encoder": inner} if inner else {}
    facts |= {} if quantizer is None else {"quantizer": quantizer}
    return to_json(facts).decode()


def _changed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from `defaults`, in its order, by canonical name."""
    named = {CANONICAL_NAMES.get(key, key): value for key, value in config.items()}
    return {key: named[key] for key, default in defaults.items() if named[key] != default}


def _component(config: dict[str, Any], kinds: dict[str, Any], default: str) -> dict[str, Any] | None:
    """A front or quantizer; None if it is the default. Kinds newer than version 0.1 are in full, but without
    `rate_weight` 0, as when there was no such setting."""
    kind = config["kind"]
    if kind not in kinds:
        return {name: value for name, value in config.items() if (name, value) != ("rate_weight", 0.0)}
    facts = _changed(config, kinds[kind])
    return None if kind == default and not facts else facts


def tokenizer_hash(network: "VQVAE") -> str:
    """Identity of a tokenizer's codes: SHA-256 of its canonical config and of the weights that make them.
    Decoder and training statistics do not count: a tokenizer with a tuned decoder makes the same codes. With a
    `rate_weight` the usage of codes does. Of a published codec the values count without their names, which may change."""
    if (codec := network.config.codec) is not None:
        c, tensors = network.config, network.state_dict().values()
        values = sorted(_sha256("", {"": each}) for each in tensors if each.is_floating_point() and each.numel() > 1)
        return _sha256(json.dumps([codec["kind"], c.sample_rate, c.hop_lengths, c.codebook_size, values]), {})
    is_priced = getattr(network.config.quantizer, "rate_weight", 0) > 0
    statistics = (".sums", "n_steps") if is_priced else (".counts", ".sums", "n_steps")
    tensors = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if ".decoder." not in name and not name.endswith(statistics)
    }
    return _sha256(canonical_tokenizer(network.config.model_dump(mode="json")), tensors)


def sound_hash(network: "VQVAE") -> str:
    """Identity of a tokenizer with its decoder: what its codes sound like."""
    return _sha256("", network.state_dict())


def prior_hash(network: "Prior") -> str:
    """Identity of a prior: SHA-256 of its spec, without the `slots` that earlier specs do not have, and its weights."""
    facts = {name: value for name, value in vars(network.spec).items() if (name, value) != ("slots", 1)}
    return _sha256(json.dumps(facts), network.state_dict())


def _sha256(facts: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
