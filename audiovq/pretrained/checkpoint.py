"""Folder ↔ model. JSON and safetensors only; whole or not there at all."""

from __future__ import annotations

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
from audiovq.utils.files import SUMS, atomic_folder, write_checksums

NetworkT = TypeVar("NetworkT", bound=nn.Module)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises ValueError for a missing or damaged file."""
    try:
        return safetensors.torch.load_file(path)
    except validation.UNREADABLE as error:
        raise ValueError(f"{path}: missing or damaged weights ({error}); download or train it again") from None


# --- models -----------------------------------------------------------------------------------------------------------


def save_model(folder: Path, config: dict[str, Any], network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """config.json and model.safetensors; floating-point weights as `dtype` if given."""
    state = {
        name: (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=1))
        safetensors.torch.save_file(state, temporary / WEIGHTS)
        write_checksums(temporary)


def save_tokenizer(folder: Path, network: VQVAE, dtype: torch.dtype | None = None) -> None:
    save_model(folder, {"kind": "tokenizer", "model": network.config.model_dump()}, network, dtype)


def replace_by_tuned(folder: Path, network: VQVAE, steps: int) -> None:
    """Replace a tokenizer by the same one with a decoder tuned for `steps` steps.

    File by file, each atomically, and config.json with the mark of it last: whenever this is cut off, a whole
    tokenizer for the same codes is there, and `tuning_steps` does not call it tuned before it is.
    """
    new = folder.with_name(f".{folder.name}.tuned")
    content = {"kind": "tokenizer", "model": network.config.model_dump(), "decoder_tuning_steps": steps}
    save_model(new, content, network)
    for name in (WEIGHTS, SUMS, CONFIG):
        (new / name).replace(folder / name)
    new.rmdir()


def tuning_steps(folder: Path) -> int:
    """For how many steps the decoder of this tokenizer was tuned; 0 if it was not."""
    return read_config(folder, "tokenizer").get("decoder_tuning_steps", 0)


def save_prior(folder: Path, network: Prior, sampling: SamplingConfig, dtype: torch.dtype | None = None) -> None:
    config = {
        "kind": "prior", "model": network.config.model_dump(), "spec": vars(network.spec), "sampling": sampling.model_dump(),
    }  # fmt: skip
    save_model(folder, config, network, dtype)


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """config.json of a model folder of this kind; ValueError if there is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: no {kind} there ({CONFIG} is missing)")
    content = conf.read_json(path)
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(
            f"{path}: expected a {kind}, found {content.get('kind') if isinstance(content, dict) else content!r}"
        )
    if isinstance(content.get("model"), dict):
        content["model"] = compat.current_model_config(kind, content["model"])
    return content


def _load(folder: Path, build: Callable[[], NetworkT]) -> NetworkT:
    """The network of a folder; nothing is built before its weights are known to fit."""
    network = validation.build_network(build, folder / CONFIG, folder / WEIGHTS)
    network.load_state_dict({
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in compat.without_obsolete(read_tensors(folder / WEIGHTS), network.state_dict()).items()
    })  # fmt: skip
    return network.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> VQVAE:
    """Raises ValueError if there is none, a damaged one, or one of absurd size."""
    config = validation.build_config(VQVAEConfig, read_config(folder, "tokenizer"), "model", folder / CONFIG)
    return _load(folder, lambda: VQVAE(config))


def load_prior(folder: Path) -> tuple[Prior, SamplingConfig]:
    """The network and the sampling settings its recipe recommends; raises as `load_tokenizer`."""
    content, path = read_config(folder, "prior"), folder / CONFIG
    config = validation.build_config(PriorConfig, content, "model", path)
    spec = validation.prior_spec(content, config, path)
    pick = validation.build_config(SamplingConfig, content, "sampling", path)
    return _load(folder, lambda: Prior(config, spec)), pick
