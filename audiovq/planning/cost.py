"""What a training step costs, counted operation by operation: arithmetic, bytes moved, and bytes that live at once.

Counted on fake tensors, which have shapes but no content, nothing is computed or allocated: a laptop counts what a
cluster will do. Counted on real tensors the figures are the same.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from audiovq.recipe import PriorTrainingConfig, TrainingConfig
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.task import Task
from audiovq.training.optimizer import make_optimizer
from audiovq.training.tokenizer_task import TokenizerTask

aten = torch.ops.aten
Work = Counter[tuple[int, int, bool]]
STEPS_SEEN = 2**40  # beyond everything that happens but once


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: Any = None) -> int:
    """As much as the forward pass, for each of input and weight. torch's own formula forgets the groups, and counts a
    depthwise convolution as a full one."""
    transposed, wanted = rest[4], rest[-1]
    once = conv_flop_count(list(x.shape), list(weight.shape), list(gradient.shape), transposed=transposed)
    return once * (int(wanted[0]) + int(wanted[1]))


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """Keys and values may have fewer heads; each query head meets some."""
    return sdpa_flop_count(q.shape, (*q.shape[:2], *k.shape[2:]), (*q.shape[:2], *v.shape[2:]))


def _attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None, **more: Any
) -> int:
    heads = q.shape[:2]
    return sdpa_backward_flop_count(gradient.shape, q.shape, (*heads, *k.shape[2:]), (*heads, *v.shape[2:]))


# What torch's table of arithmetic lacks is attention on a CPU.
ARITHMETIC: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Count(TorchDispatchMode):
    """Within `with`, counts what is computed.

    Attributes:
        flops: multiplications and additions of matrix products, convolutions and attention.
        moved: bytes that operations read and write, each by itself.
        live, peak: bytes of tensors that were made within, now and at most.
        work: how often there was an operation of so many (flops, bytes), and whether its arithmetic was in float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.live = self.peak = 0
        self.work: Work = Counter()
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            self.known.setdefault(tensor.untyped_storage(), 0)  # what was there before is not counted
        out = _codes_counted(args, kwargs) if func is aten.bincount.default else func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for tensor in outputs:
            self._hold(tensor.untyped_storage())
        if not func.is_view:
            formula = ARITHMETIC.get(func._overloadpacket)
            flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
            moved = sum(_bytes(tensor) for tensor in (*inputs, *outputs))
            self.flops, self.moved = self.flops + flops, self.moved + moved
            numbers = {x.dtype for x in inputs if x.is_floating_point()}
            self.work[flops, moved, bool(flops) and numbers == {torch.float32}] += 1
        return out

    def _hold(self, storage: Any) -> None:
        if storage in self.known:
            return
        n = storage.nbytes()
        self.known[storage] = n
        self.live += n
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, n)

    def _free(self, n: int) -> None:
        self.live -= n


def _codes_counted(args: Any, kwargs: Any) -> Tensor:
    """Of a fake tensor nobody knows the largest code, but it is below `minlength`."""
    if isinstance(args[0], FakeTensor):
        return args[0].new_empty(args[2] if len(args) > 2 else kwargs["minlength"])
    return torch.bincount(*args, **kwargs)


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass(frozen=True)
class Cost:
    """Of one pass (forward and backward) over so many examples, and of what is in memory besides."""

    examples: int
    parameters: int  # that learn
    weights: int  # bytes, with all that is saved beside them
    moments: int
    averages: int
    gradients: int
    gathered: int  # blocks of weights that are brought together while they are used
    activations: int  # and all else that lives during a pass, at most
    flops: int
    moved: int
    work: Work = field(repr=False)

    @property
    def memory(self) -> int:
        """Bytes at most."""
        return self.weights + self.moments + self.averages + self.gradients + self.gathered + self.activations

    @property
    def n_operations(self) -> int:
        return sum(self.work.values())


def count_pass(
    build: Callable[[FakeTensorMode], Task], config: TrainingConfig, n: int, bf16: bool, n_devices: int = 1
) -> Cost:
    """Count one pass of a device over `n` examples.

    Args:
        build: makes the task; within the mode, weights get no content.
        n_devices: with `sharded` each has its part of everything.
    """
    sharded = isinstance(config, PriorTrainingConfig) and config.sharded and n_devices > 1
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    task = build(mode).train()
    example = task.dataset("train")[0]
    with mode:
        batch = _batch_like(example, n)
    weights = sum(t.numel() * t.element_size() for t in task.state_dict().values())
    # Weights that are shared out arrive in bfloat16, and their gradients leave so.
    _without_content(task, mode, torch.bfloat16 if sharded and bf16 else None)
    if isinstance(config, PriorTrainingConfig):
        task.recompute_activations(config.activation_checkpointing)  # type: ignore[operator]
    learning = [p for part in task.parts(config) for p in part.network.parameters() if p.requires_grad]
    size = sum(p.numel() for p in learning)
    groups = [group for part in task.parts(config) for group in make_optimizer(part.network, part.config).param_groups]
    moments = sum((4 if group.get("orthogonal") else 8) * p.numel() for group in groups for p in group["params"])
    share = n_devices if sharded else 1
    for parameter in learning:  # they are accounted for apart
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with warnings.catch_warnings(), mode, Count() as count, _autocast(bf16):
        warnings.simplefilter("ignore")  # of what is slow, which a plan counts
        loss, _ = task(batch)
        loss.backward()
        del loss, _
    return Cost(
        n, size, -(-weights // share), -(-moments // share), -(-4 * size // share) if config.ema_decay else 0,
        -(-4 * size // share), _gathered(task, learning, bf16) if sharded else 0, count.peak, count.flops, count.moved,
        count.work,
    )  # fmt: skip


def _gathered(task: Task, learning: list[nn.Parameter], bf16: bool) -> int:
    """Two blocks whole, the one at work and the next, what is in no block, and one block's gradients in float32."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in task.blocks()]
    rest = sum(p.numel() for p in learning) - sum(blocks)
    return (2 if bf16 else 4) * (2 * max(blocks, default=0) + rest) + 4 * max(blocks, default=0)


@contextlib.contextmanager
def _autocast(bf16: bool) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield


def _batch_like(example: Any, n: int) -> Any:
    if isinstance(example, Tensor):
        return torch.zeros((n, *example.shape), dtype=example.dtype)
    return {key: _batch_like(value, n) for key, value in example.items()}


def _without_content(task: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> None:
    """Replace all weights (as `dtype`, if given) and buffers by fake ones; where a step asks for the count of steps, it gets a plain number."""
    known: dict[int, Any] = {}

    def fake(tensor: Tensor, learns: bool | None = None) -> Any:
        if id(tensor) not in known:
            made = tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor.detach())
            known[id(tensor)] = (
                made if learns is None else nn.Parameter(made.detach().to(dtype or made.dtype), requires_grad=learns)
            )
        return known[id(tensor)]

    for module in task.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fake(parameter, parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if name == "n_steps" and buffer is not None and isinstance(module, TokenizerTask):
                del module._buffers[name]
                module.n_steps = cast(Any, STEPS_SEEN)
            elif buffer is not None:
                module._buffers[name] = fake(buffer)


@dataclass(frozen=True)
class Device:
    """A machine that is not here. Defaults: an A100 with 80 GB, from its data sheet; the shares are assumptions."""

    memory: float = 80e9  # bytes
    tflops: float = 312.0  # dense bfloat16
    float32: float = 1 / 16  # of them for matrix products in float32
    bandwidth: float = 2.0  # terabytes a second
    used_tflops: float = 0.5  # share of them that a large matrix product reaches
    used_bandwidth: float = 0.7
    launch: float = 10e-6  # seconds that an operation takes at least
    usable: float = 0.9  # of the memory; the rest goes to the driver and to gaps

    def seconds(self, work: Work) -> float:
        """Each operation takes what its arithmetic, its traffic or its start takes, whichever is longest."""
        return math.fsum(n * max(times) for n, times in self._times(work))

    def alone(self, work: Work) -> list[float]:
        """Seconds that all arithmetic, all traffic and all starting would take, if nothing else took any."""
        rows = list(self._times(work))
        return [math.fsum(n * times[i] for n, times in rows) for i in range(3)]

    def _times(self, work: Work) -> Iterator[tuple[int, tuple[float, float, float]]]:
        arithmetic, traffic = self.tflops * 1e12 * self.used_tflops, self.bandwidth * 1e12 * self.used_bandwidth
        for (flops, moved, wide), n in work.items():
            yield n, (flops / arithmetic / (self.float32 if wide else 1), moved / traffic, self.launch)


def count_encoding(model: VQVAEConfig, seconds: float) -> Cost:
    """Count what an encoder does with so many seconds of music."""
    mode, network = FakeTensorMode(allow_non_fake_inputs=True), VQVAE(model).eval()
    weights = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    _without_content(network, mode)
    hop = model.hop_lengths[0]
    with mode, Count() as count, torch.no_grad():
        network.encode(torch.zeros(1, model.channels, max(1, int(seconds * model.sample_rate) // hop) * hop))
    return Cost(1, 0, weights, 0, 0, 0, 0, count.peak, count.flops, count.moved, count.work)
