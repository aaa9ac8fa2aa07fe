"""Reads and writes the folder of one model: config.json, model.safetensors and their checksums."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from audiovq import config as conf
from audiovq.pretrained import validation
from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.utils import compat
from audiovq.utils.device import torch_defaults
from audiovq.utils.files import CONFIG, SUMS, WEIGHTS, atomic_folder, file_sha256, utf8_path, write_checksums

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def load_tokenizer(folder: Path) -> VQVAE:
    """The tokenizer of a folder; ValueError if there is none, a damaged one, or one of absurd size."""
    content, path = read_config(folder, "tokenizer"), folder / CONFIG
    config = validation.build_config(VQVAEConfig, content, "model", path)
    return _load_network(folder, lambda: VQVAE(config))


def load_prior(folder: Path) -> tuple[Prior, SamplingConfig]:
    """The prior of a folder and its recommended sampling settings; raises as `load_tokenizer`."""
    content, path = read_config(folder, "prior"), folder / CONFIG
    config = validation.build_config(PriorConfig, content, "model", path)
    spec = validation.prior_spec(content, config.label_names, path)
    sampling = validation.build_config(SamplingConfig, content, "sampling", path)
    return _load_network(folder, lambda: Prior(config, spec)), sampling


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """The config.json of a folder, with current keys.

    Args:
        kind: "tokenizer" or "prior"; ValueError if the folder has no model of this kind.
    """
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
    with validation.memory_limit(tensors, folder / CONFIG):
        network = build()
    tensors = compat.without_obsolete(tensors, network.state_dict())
    validation.check_network(network, tensors, folder / CONFIG, folder / WEIGHTS)
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return network.eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError if it is missing or damaged.

    The file must have the checksum in sha256.json of its folder, if there is one, and its numbers must be finite.
    """
    try:
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
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: missing or damaged weights ({error}); download or train it again") from None
    return tensors


def tuning_steps(folder: Path) -> int:
    """The number of steps that a tokenizer's decoder was tuned for; 0 if it was not."""
    return read_config(folder, "tokenizer").get("decoder_tuning_steps", 0)


def save_tokenizer(folder: Path, network: VQVAE, dtype: torch.dtype | None = None) -> None:
    _save(folder, {"kind": "tokenizer", "model": network.config.model_dump()}, network, dtype)


def save_prior(folder: Path, network: Prior, sampling: SamplingConfig, dtype: torch.dtype | None = None) -> None:
    config = {"kind": "prior", "model": network.config.model_dump(), "spec": vars(network.spec)}
    _save(folder, config | {"sampling": sampling.model_dump()}, network, dtype)


def replace_by_tuned(folder: Path, network: VQVAE, steps: int) -> None:
    """Replace a tokenizer by the same tokenizer with a decoder that was tuned for `steps` steps.

    The files are replaced one by one, config.json last. At any interruption the folder has a tokenizer that
    makes the same codes, and `tuning_steps` is 0 until all files are replaced. Its weights have no checksum meanwhile.
    """
    new = folder.with_name(f".{folder.name}.tuned")
    config = {"kind": "tokenizer", "model": network.config.model_dump()}
    _save(new, config | {"decoder_tuning_steps": steps}, network)
    (folder / SUMS).unlink(missing_ok=True)
    for name in (WEIGHTS, SUMS, CONFIG):
        (new / name).replace(folder / name)
    new.rmdir()


def _save(folder: Path, config: dict[str, Any], network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Write a model's folder atomically, with floating-point weights as `dtype` if given."""
    state = {}
    for name, tensor in network.state_dict().items():
        rounded = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        state[name] = rounded.detach().cpu().contiguous()
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=1))
        with utf8_path(temporary) as place:
            safetensors.torch.save_file(state, place / WEIGHTS)
        write_checksums(temporary)
