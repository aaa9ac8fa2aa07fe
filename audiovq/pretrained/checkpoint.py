"""Reads and writes the folder of one model: config.json, model.safetensors and their checksums. A folder may come from
anybody. It holds JSON and safetensors, which cannot run code. Every number has a limit, a network is built within the
memory that the size of its weights file justifies, and must have its weights."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiovq import config as conf
from audiovq.pretrained.published import build_codec, load_codec, weights
from audiovq.prior.prior import Prior, PriorConfig, SamplingConfig
from audiovq.prior.spec import PriorSpec
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.utils import compat
from audiovq.utils.device import torch_defaults
from audiovq.utils.environment import errors_as
from audiovq.utils.files import CONFIG, SUMS, WEIGHTS, atomic_folder, file_sha256, utf8_path, write_checksums

ConfigT = TypeVar("ConfigT")
NetworkT = TypeVar("NetworkT", bound=nn.Module)
LARGEST_RADIUS = 1 << 25  # samples to either side that a code or a sample may depend on


def load_tokenizer(folder: Path) -> VQVAE:
    """The tokenizer of a folder, or a codec (`hf:…`); ValueError if there is none, or a damaged or absurdly large one."""
    network: Any = load_codec(folder)
    if network is None:
        content, path = read_config(folder, "tokenizer"), folder / CONFIG
        config = build_config(VQVAEConfig, content, "model", path)
        if config.codec is None:
            return _load_network(folder, lambda: VQVAE(config))
        n_numbers = sum(tensor.numel() for tensor in read_tensors(folder / WEIGHTS).values())
        with Allowance((1 << 20) + 4 * n_numbers):
            network = build_codec(config.codec, folder, config.n_levels)
    network.config = conf.build(VQVAEConfig, network.settings, str(folder))
    return network


def load_prior(folder: Path) -> tuple[Prior, SamplingConfig]:
    """The prior of a folder and its recommended sampling settings; raises as `load_tokenizer`."""
    content, path = read_config(folder, "prior"), folder / CONFIG
    config = build_config(PriorConfig, content, "model", path)
    spec = prior_spec(content, config.label_names, path)
    sampling = build_config(SamplingConfig, content, "sampling", path)
    return _load_network(folder, lambda: Prior(config, spec)), sampling


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """The config.json of a folder, with current keys; ValueError if it has no model of this `kind`."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no {kind} there ({CONFIG} is missing)")
    content = conf.read_json(path)
    found = content.get("kind") if isinstance(content, dict) else content
    if found != kind:
        raise ValueError(f"{path}: expected a {kind}, found {found!r:.40}")
    if isinstance(content.get("model"), dict):
        content["model"] = compat.current_model_config(kind, content["model"])
    return content


@torch_defaults(inference=False)
def _load_network(folder: Path, build: Callable[[], NetworkT]) -> NetworkT:
    """A network with the weights of a folder, as float32, for inference."""
    tensors = read_tensors(folder / WEIGHTS)
    n_numbers = sum(tensor.numel() for tensor in tensors.values())
    most = (1 << 20) + 2 * n_numbers  # initial values come twice, and windows are not saved
    with errors_as(f"{folder / CONFIG}: no network of these sizes can be built"), Allowance(most):
        network = build()
    tensors = compat.without_obsolete(tensors, network.state_dict())
    check_network(network, tensors, folder / CONFIG, folder / WEIGHTS)
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return network.eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError for none, a wrong checksum, or numbers that are not finite."""
    failure, advice = f"{path}: missing or damaged weights", "; download or train it again"
    with errors_as(failure, safetensors.SafetensorError, OSError, ValueError, KeyError, advice=advice):
        if not path.is_file():  # a pipe would never end
            raise ValueError("no such file")
        sums = conf.read_json(path.parent / SUMS) if (path.parent / SUMS).is_file() else {}
        expected = sums.get(path.name) if isinstance(sums, dict) else None
        if expected and expected != file_sha256(path):
            raise ValueError(f"its checksum is not that in {SUMS}")
        with utf8_path(path) as place:
            tensors = safetensors.torch.load_file(place)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")
        return tensors


def tuning_steps(folder: Path) -> int:
    """The number of steps that a tokenizer's decoder was tuned for; 0 if it was not."""
    return read_config(folder, "tokenizer").get("decoder_tuning_steps", 0)


def save_tokenizer(folder: Path, network: VQVAE, dtype: torch.dtype | None = None) -> None:
    _save(folder, {"kind": "tokenizer", "model": network.config.model_dump()}, weights(network), dtype)


def save_prior(folder: Path, network: Prior, sampling: SamplingConfig, dtype: torch.dtype | None = None) -> None:
    config = {"kind": "prior", "model": network.config.model_dump(), "spec": vars(network.spec)}
    _save(folder, config | {"sampling": sampling.model_dump()}, network.state_dict(), dtype)


def replace_by_tuned(folder: Path, network: VQVAE, steps: int) -> None:
    """Replace a tokenizer by the same tokenizer with a decoder that was tuned for `steps` steps. The files are
    replaced one by one, config.json last, and the weights have no checksum meanwhile. At any interruption the folder
    has a tokenizer that makes the same codes, and `tuning_steps` is 0 until all are."""
    new = folder.with_name(f".{folder.name}.tuned")
    config = {"kind": "tokenizer", "model": network.config.model_dump()}
    _save(new, config | {"decoder_tuning_steps": steps}, network.state_dict())
    (folder / SUMS).unlink(missing_ok=True)
    for name in (WEIGHTS, SUMS, CONFIG):
        (new / name).replace(folder / name)
    new.rmdir()


def _save(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a model's folder atomically, with floating-point weights as `dtype` if given."""
    state = {}
    for name, tensor in tensors.items():
        state[name] = (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=1))
        with utf8_path(temporary) as place:
            safetensors.torch.save_file(state, place / WEIGHTS)
        write_checksums(temporary)


def build_config(kind: type[ConfigT], content: dict[str, Any], key: str, path: Path) -> ConfigT:
    """Build the part `key` of a config.json; ValueError if it is missing, wrong or has too large numbers."""
    part = content.get(key)
    if not isinstance(part, dict):
        raise ValueError(f"{path}: {key}: expected a mapping, found {part!r:.40}")
    return conf.build(kind, part, f"{path}: {key}")


def prior_spec(content: dict[str, Any], labels: Sequence[str], path: Path) -> PriorSpec:
    """The part `spec` of a config.json, with a vocabulary for each of `labels`; raises as `build_config`."""
    spec = build_config(PriorSpec, content, "spec", path)
    hops = spec.hop_lengths
    if spec.level >= len(hops) or any(a < b or a % b for a, b in itertools.pairwise(hops)):
        expected = f"a level below {len(hops)} and hop_lengths that never rise, each divisible by the next"
        raise ValueError(f"{path}: spec: expected {expected}, found level {spec.level} of {hops}")
    if missing := [name for name in labels if name not in spec.vocabularies]:
        raise ValueError(f"{path}: spec.vocabularies: expected one of each label, found none of {', '.join(missing)}")
    return spec


class Allowance(TorchFunctionMode):
    """Within it at most `n` numbers are created; ValueError before the first tensor that would be too much.
    (Torch's `meta` device would be simpler, but torchaudio's mel filters cannot be built there.)"""

    # How many numbers a function creates: a shape, or a number. On `meta`, most of these import torch._dynamo for a second.
    SIZES: Mapping[Any, Callable[..., Any]] = {
        **dict.fromkeys(
            (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand),
            lambda *size, **given: given.get("size", size),
        ),
        torch.full: lambda size, *_, **__: size,
        torch.eye: lambda n, m=None, **_: (n, m or n),
        torch.arange: lambda start=0, end=None, step=1, **_: (start if end is None else end - start) // step + 1,
        torch.linspace: lambda start, end, steps, **_: steps,
        torch.hann_window: lambda window_length, *_, **__: window_length,
    }

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.SIZES:
            self.left -= int(np.prod(self.SIZES[func](*args, **(kwargs or {})), dtype=float))
            if self.left < 0:
                raise ValueError("more numbers than there is room for")
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]  # the values of the file come instead
        return func(*args, **(kwargs or {}))


def check_network(network: nn.Module, tensors: dict[str, Tensor], config: Path, weights: Path) -> None:
    """Raises ValueError with the first difference between a network and its weights file."""
    for name in ("encoder_radius", "decoder_radius"):
        if getattr(network, name, 0) > LARGEST_RADIUS:
            raise ValueError(f"{config}: {name}: expected at most {LARGEST_RADIUS} samples; too many blocks, long hops")
    state = network.state_dict()
    for name in sorted(state.keys() | tensors.keys()):
        expected, found = _text(state.get(name)), _text(tensors.get(name))
        if expected != found:
            raise ValueError(f"{weights}: weights do not fit the config: {name}: expected {expected}, found {found}")


def _text(tensor: Tensor | None) -> str:
    kind = "none" if tensor is None else "numbers" if tensor.is_floating_point() else "integers"
    return kind if tensor is None else f"{kind} {list(tensor.shape)}"
