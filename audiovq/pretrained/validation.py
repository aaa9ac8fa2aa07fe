"""Model folders that strangers made: what they say is checked before memory is allocated or anything is built of it.

A folder holds JSON and safetensors, neither of which can execute anything. What is left are numbers that ask for more than
there is, and files that contradict each other. So every size has a limit, a network is built within an allowance of memory
that the size of its weights file gives it, and its weights must be those of the file, name by name and shape by shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from pydantic import Field
from torch import nn
from torch.overrides import TorchFunctionMode

from audiovq import config as conf
from audiovq.config import Config
from audiovq.prior.prior import PriorConfig, PriorSpec
from audiovq.utils import compat

ConfigT = TypeVar("ConfigT", bound=Config)
NetworkT = TypeVar("NetworkT", bound=nn.Module)
UNREADABLE = (safetensors.SafetensorError, OSError, ValueError, KeyError)
# Of the whole numbers in a config, by their key; a number in a list has the list's. They bound memory that the weights do not
# (a cache of `context` codes), and loops (`n_blocks`).
LARGEST = {
    "sample_rate": 384000, "channels": 2, "hop_lengths": 1 << 16, "dim": 1 << 16, "base_dim": 1 << 16, "codebook_dim": 1 << 12,
    "codebook_size": 1 << 16, "levels": 1 << 16, "overlap": 256, "overlaps": 256, "n_mels": 1 << 12, "max_stride": 1 << 16, "n_blocks": 256,
    "n_stride_blocks": 256, "n_layers": 1024, "n_heads": 4096, "n_kv_heads": 4096, "context": 1 << 16,
    "attention_window": 1 << 16, "context_codes": 1024, "max_bytes": 1 << 16, "n_codes": 1 << 12, "reach": 1 << 24, "mlp_ratio": 64,
    "temperature_steps": 1 << 40, "kmeans_iterations": 1 << 16, "top_k": 1 << 16,
}  # fmt: skip
LARGEST_RADIUS = 1 << 25  # samples to either side that a code or a sample may depend on
LARGEST_VOCABULARY = 1 << 20


class _Spec(Config):
    """`PriorSpec` as config.json has it."""

    level: int = Field(ge=0, lt=16)
    hop_lengths: tuple[int, ...] = Field(min_length=1, max_length=16)
    sample_rate: int = Field(ge=1000, le=384000)
    codebook_size: int = Field(ge=2, le=1 << 16)
    tokenizer_hash: str = Field(pattern="^[0-9a-f]{64}$")
    vocabularies: dict[str, tuple[str, ...]]


def build_config(kind: type[ConfigT], content: dict[str, Any], key: str, path: Path) -> ConfigT:
    """The part `key` of a config.json; ValueError with one line if it is missing, wrong or asks for too much."""
    part = content.get(key)
    if not isinstance(part, dict):
        raise ValueError(f"{path}: {key}: expected a mapping, found {part!r:.40}")
    for name, number in _numbers(part, key):
        limit = LARGEST.get(name.rsplit(".", 1)[-1])
        if limit is not None and abs(number) > limit:
            raise ValueError(f"{path}: {name}: expected at most {limit}, found {number:g}")
    return conf.build(kind, part, str(path))


def _numbers(value: Any, path: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _numbers(item, f"{path}.{key}")]
    if isinstance(value, list):
        return [pair for item in value for pair in _numbers(item, path)]
    return [(path, value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def prior_spec(content: dict[str, Any], config: PriorConfig, path: Path) -> PriorSpec:
    """What a prior's config.json says of its codes."""
    spec = build_config(_Spec, content, "spec", path)
    hops = list(spec.hop_lengths)
    if spec.level >= len(hops) or min(hops) < 2 or any(a < b or a % b for a, b in itertools.pairwise(hops)):
        raise ValueError(
            f"{path}: spec: expected a level below {len(hops)} and hop_lengths that never rise, each divisible by the "
            f"next, found level {spec.level} of {hops}"
        )
    missing = [name for name in config.label_names if name not in spec.vocabularies]
    if missing or any(len(values) > LARGEST_VOCABULARY for values in spec.vocabularies.values()):
        raise ValueError(f"{path}: spec.vocabularies: expected one of each label, found none of {', '.join(missing)}")
    vocabularies = {name: list(values) for name, values in spec.vocabularies.items()}
    return PriorSpec(spec.level, hops, spec.sample_rate, spec.codebook_size, spec.tokenizer_hash, vocabularies)


class Allowance(TorchFunctionMode):
    """Within it no more than `n` numbers are made anew; ValueError before the first tensor that would be too much.

    (Building on torch's `meta` device would need none of it, but imports what takes seconds.)
    """

    FACTORIES = frozenset({
        torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand, torch.eye, torch.arange, torch.linspace,
        torch.hann_window,
    })  # fmt: skip

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FACTORIES:
            self.left -= _count(func, args, kwargs or {})
            if self.left < 0:
                raise ValueError("the config asks for more numbers than its weights file has")
        return func(*args, **(kwargs or {}))


def _count(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Numbers that a factory of tensors would make."""
    size = args[0] if args and isinstance(args[0], list | tuple | torch.Size) else kwargs.get("size", args)
    size = [n for n in (size if isinstance(size, list | tuple) else [size]) if isinstance(n, int)]
    if func in (torch.arange, torch.linspace):
        return max(map(abs, size), default=1)
    if func is torch.eye and len(size) == 1:  # as many columns as rows
        size *= 2
    return math.prod(map(abs, size))


def build_network(build: Callable[[], NetworkT], config: Path, weights: Path) -> NetworkT:
    """Build a network if `weights` has just its tensors; ValueError with the first difference if not."""
    found = _tensors(weights)
    n_numbers = sum(math.prod(shape) for shape, _ in found.values())
    try:
        with Allowance((1 << 20) + 2 * n_numbers):  # beginnings that are overwritten, windows that are not saved
            network = build()
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{config}: no network of these sizes can be built ({str(error).splitlines()[0]})") from None
    for name in ("encoder_radius", "decoder_radius"):
        if getattr(network, name, 0) > LARGEST_RADIUS:
            raise ValueError(
                f"{config}: {name}: expected at most {LARGEST_RADIUS} samples, too many blocks or too long hops"
            )
    expected = {name: (tuple(t.shape), t.is_floating_point()) for name, t in network.state_dict().items()}
    found = compat.without_obsolete(found, expected)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{weights}: weights do not fit the config: {name}: expected {_text(expected.get(name))}, "
                f"found {_text(found.get(name))}"
            )
    return network


def _tensors(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Shape of each tensor of a safetensors file and whether it has floating-point numbers, from its header alone."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {n: (tuple(s.get_shape()), s.get_dtype().startswith(("F", "BF"))) for n, s in slices.items()}
    except UNREADABLE as error:
        raise ValueError(f"{path}: missing or damaged weights ({error}); download or train it again") from None


def _text(tensor: tuple[tuple[int, ...], bool] | None) -> str:
    return "none" if tensor is None else f"{'numbers' if tensor[1] else 'integers'} {list(tensor[0])}"
