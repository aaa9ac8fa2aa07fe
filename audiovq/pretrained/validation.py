"""Checks model folders from any source before memory is taken or a network is built.

A folder holds JSON and safetensors, which cannot run code. What remains are numbers that would need too
much memory, and files that contradict each other. So every number has a limit, a network is built within
the memory that the size of its weights file justifies, and its weights must be those of the file, by name
and shape.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiovq import config as conf
from audiovq.config import Config
from audiovq.prior.spec import PriorSpec

ConfigT = TypeVar("ConfigT", bound=Config)
LARGEST_RADIUS = 1 << 25  # samples to either side that a code or a sample may depend on


def build_config(kind: type[ConfigT], content: dict[str, Any], key: str, path: Path) -> ConfigT:
    """Build the part `key` of a config.json; ValueError if it is missing, wrong or has too large numbers."""
    part = content.get(key)
    if not isinstance(part, dict):
        raise ValueError(f"{path}: {key}: expected a mapping, found {part!r:.40}")
    conf.check_limits(part, key, str(path))
    return conf.build(kind, part, str(path))


class _Spec(Config):
    """`PriorSpec` as it is in config.json."""

    level: int = Field(ge=0, lt=16)
    hop_lengths: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=1, max_length=16)
    sample_rate: int = Field(ge=1000, le=384000)
    codebook_size: int = Field(ge=2, le=1 << 16)
    tokenizer_hash: str = Field(pattern="^[0-9a-f]{64}$")
    vocabularies: dict[str, Annotated[tuple[str, ...], Field(max_length=1 << 20)]]


def prior_spec(content: dict[str, Any], labels: Sequence[str], path: Path) -> PriorSpec:
    """Build the part `spec` of a prior's config.json; raises as `build_config`.

    Args:
        labels: names of the labels that need a vocabulary.
    """
    spec = build_config(_Spec, content, "spec", path)
    hops = list(spec.hop_lengths)
    if spec.level >= len(hops) or any(a < b or a % b for a, b in itertools.pairwise(hops)):
        raise ValueError(
            f"{path}: spec: expected a level below {len(hops)} and hop_lengths that never rise, each divisible "
            f"by the next, found level {spec.level} of {hops}"
        )
    missing = [name for name in labels if name not in spec.vocabularies]
    if missing:
        raise ValueError(f"{path}: spec.vocabularies: expected one of each label, found none of {', '.join(missing)}")
    vocabularies = {name: list(values) for name, values in spec.vocabularies.items()}
    return PriorSpec(**(spec.model_dump() | {"hop_lengths": hops, "vocabularies": vocabularies}))


class Allowance(TorchFunctionMode):
    """Within it at most `n` numbers are created; ValueError before the first tensor that would be too much.

    (Building on torch's `meta` device would be simpler, but torchaudio's mel filters cannot be built there.)
    """

    FACTORIES = (
        *(torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand, torch.eye),
        *(torch.arange, torch.linspace, torch.hann_window),
    )

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FACTORIES:
            self.left -= func(*args, **(kwargs or {}) | {"device": "meta"}).numel()
            if self.left < 0:
                raise ValueError("more numbers than there is room for")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def memory_limit(tensors: dict[str, Tensor], config: Path) -> Iterator[None]:
    """Within the block, ValueError if a network needs much more numbers than its weights file has.

    Args:
        config: path for the message.
    """
    n_numbers = sum(tensor.numel() for tensor in tensors.values())
    try:
        with Allowance((1 << 20) + 2 * n_numbers):  # initial values come twice, and windows are not saved
            yield
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{config}: no network of these sizes can be built ({reason})") from None


def check_network(network: nn.Module, tensors: dict[str, Tensor], config: Path, weights: Path) -> None:
    """Raises ValueError with the first difference between a network and its weights file."""
    for name in ("encoder_radius", "decoder_radius"):
        if getattr(network, name, 0) > LARGEST_RADIUS:
            expected = f"expected at most {LARGEST_RADIUS} samples"
            raise ValueError(f"{config}: {name}: {expected}, too many blocks or too long hops")
    state = network.state_dict()
    for name in sorted(state.keys() | tensors.keys()):
        expected, found = _text(state.get(name)), _text(tensors.get(name))
        if expected != found:
            raise ValueError(f"{weights}: weights do not fit the config: {name}: expected {expected}, found {found}")


def _text(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    return f"{'numbers' if tensor.is_floating_point() else 'integers'} {list(tensor.shape)}"
