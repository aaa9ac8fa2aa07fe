"""The cost of a training step, counted operation by operation: arithmetic, memory traffic, and memory in use.

On fake tensors, which have shapes but no values, nothing is computed or allocated, so that a laptop can
count what a cluster will do. Real tensors give the same counts.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from audiovq.recipe import PriorTrainingConfig, TrainingConfig
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.optimizer import make_optimizer
from audiovq.training.task import Task
from audiovq.training.tokenizer_task import TokenizerTask

aten = torch.ops.aten
MANY_STEPS = 2**40

# --- arithmetic of an operation -------------------------------------------------------------------


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: Any = None) -> int:
    """A forward pass each for the gradients of input and weight. (torch's formula ignores groups.)"""
    transposed, wanted = rest[4], rest[-1]
    once = conv_flop_count(list(x.shape), list(weight.shape), list(gradient.shape), transposed=transposed)
    return once * (int(wanted[0]) + int(wanted[1]))


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None, **more: Any) -> int:
    """Keys and values, [batch, heads, time, dim], may have fewer heads than queries."""
    return sdpa_flop_count(q.shape, (*q.shape[:2], *k.shape[2:]), (*q.shape[:2], *v.shape[2:]))


def _attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None, **more: Any
) -> int:
    heads = q.shape[:2]
    return sdpa_backward_flop_count(gradient.shape, q.shape, (*heads, *k.shape[2:]), (*heads, *v.shape[2:]))


# torch's formulas, and those for attention on a CPU, which it lacks.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}

# --- counting -------------------------------------------------------------------------------------


class Work(Counter[tuple[int, int, bool]]):
    """How often there was an operation of so many (flops, bytes, True if its arithmetic was in float32)."""

    @property
    def flops(self) -> int:
        """Multiplications and additions of matrix products, convolutions and attention."""
        return sum(n * flops for (flops, _, _), n in self.items())

    @property
    def traffic(self) -> int:
        """Bytes that the operations read and write."""
        return sum(n * moved for (_, moved, _), n in self.items())


class Count(TorchDispatchMode):
    """Within `with`, counts all operations.

    Attributes:
        work: the operations.
        live, peak: bytes of tensors that were made here, now and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.live = self.peak = 0
        self.known = WeakIdKeyDictionary()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            self.known.setdefault(tensor.untyped_storage(), 0)  # made before, so it does not count
        out = _bincount(args, kwargs) if func is aten.bincount.default else func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for tensor in outputs:
            self._add(tensor.untyped_storage())
        if not func.is_view:
            formula = FORMULAS.get(func._overloadpacket)
            flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
            traffic = sum(_n_bytes(tensor) for tensor in (*inputs, *outputs))
            dtypes = {x.dtype for x in inputs if x.is_floating_point()}
            self.work[flops, traffic, bool(flops) and dtypes == {torch.float32}] += 1
        return out

    def _add(self, storage: Any) -> None:
        if storage not in self.known:
            n = storage.nbytes()
            self.known[storage] = n
            self.live += n
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, n)

    def _remove(self, n: int) -> None:
        self.live -= n


def _bincount(args: Any, kwargs: Any) -> Tensor:
    """The size of the result depends on values, which fake tensors lack; codes are all below `minlength`."""
    if isinstance(args[0], FakeTensor):
        return args[0].new_empty(args[2] if len(args) > 2 else kwargs["minlength"])
    return torch.bincount(*args, **kwargs)


def _n_bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass(frozen=True)
class Cost:
    """The cost of one forward and backward pass of a device over some examples; memory in bytes."""

    examples: int
    parameters: int  # trainable ones
    weights: int = 0  # with buffers and all else in a checkpoint
    moments: int = 0
    averages: int = 0
    gradients: int = 0
    gathered: int = 0  # sharded weights that are whole while they are used
    activations: int = 0  # and other tensors of a pass, at most
    work: Work = field(default_factory=Work, repr=False)

    @property
    def memory(self) -> int:
        return self.weights + self.moments + self.averages + self.gradients + self.gathered + self.activations


def count_pass(
    build: Callable[[AbstractContextManager[Any]], Task], config: TrainingConfig, n: int, bf16: bool, n_devices: int = 1
) -> Cost:
    """Count one pass of a device over `n` examples.

    Args:
        build: makes the task. It may do so within the given mode, in which tensors take no memory.
        n_devices: with `sharded`, each has its share of weights, moments, averages and gradients.
    """
    is_sharded = isinstance(config, PriorTrainingConfig) and config.sharded and n_devices > 1
    share = n_devices if is_sharded else 1
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    task = build(mode).train()
    example = task.dataset("train")[0]
    weights = sum(_n_bytes(tensor) for tensor in task.state_dict().values())
    with mode:
        batch = _batch_like(example, n)
        if not isinstance(next(task.parameters()), FakeTensor):
            task.to_empty(device="cpu")  # real tensors become fake ones
        skip_start_up(task)
    learning = [p for part in task.parts(config) for p in part.network.parameters() if p.requires_grad]
    n_weights = sum(p.numel() for p in learning)
    # Muon has one moment for each weight of its matrices, AdamW has two.
    optimizers = [make_optimizer(part.network, part.config) for part in task.parts(config)]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    moments = sum((4 if group.get("orthogonal") else 8) * p.numel() for group in groups for p in group["params"])
    gathered = 0
    if isinstance(config, PriorTrainingConfig):
        task.recompute_activations(config.activation_checkpointing)  # type: ignore[operator]
    if is_sharded:
        gathered = _gathered_bytes(task, n_weights, bf16)
        if bf16:  # sharded weights are gathered in bfloat16, and so are their gradients
            for parameter in task.parameters():
                parameter.data = parameter.data.bfloat16()
    for parameter in learning:  # gradients are counted above
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with warnings.catch_warnings(), mode, Count() as count, autocast:
        warnings.simplefilter("ignore")  # about slow operations
        loss, _ = task(batch)
        loss.backward()
        del loss, _
    return Cost(
        examples=n,
        parameters=n_weights,
        weights=-(-weights // share),
        moments=-(-moments // share),
        averages=-(-4 * n_weights // share) if config.ema_decay else 0,
        gradients=-(-4 * n_weights // share),
        gathered=gathered,
        activations=count.peak,
        work=count.work,
    )


def skip_start_up(task: Task) -> None:
    """Set the step count of a tokenizer so high that all that happens once, such as k-means, is over."""
    if isinstance(task, TokenizerTask):
        task.n_steps = torch.tensor(MANY_STEPS, device=task.n_steps.device)


def _gathered_bytes(task: Task, n_weights: int, bf16: bool) -> int:
    """Two whole blocks, all weights outside of blocks, and one block's gradients in float32."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in task.blocks()]
    largest, rest = max(blocks, default=0), n_weights - sum(blocks)
    return (2 if bf16 else 4) * (2 * largest + rest) + 4 * largest


def _batch_like(example: Any, n: int) -> Any:
    if isinstance(example, Tensor):
        return torch.zeros((n, *example.shape), dtype=example.dtype)
    return {key: _batch_like(value, n) for key, value in example.items()}


def count_encoding(model: VQVAEConfig, seconds: float) -> Cost:
    """Count what an encoder does for so many seconds of music."""
    mode, network = FakeTensorMode(allow_non_fake_inputs=True), VQVAE(model).eval()
    weights = sum(_n_bytes(tensor) for tensor in network.state_dict().values())
    hop = model.hop_lengths[0]
    n_samples = max(1, int(seconds * model.sample_rate) // hop) * hop
    with mode:
        network.to_empty(device="cpu")
    with mode, Count() as count, torch.no_grad():
        network.encode(torch.zeros(1, model.channels, n_samples))
    return Cost(examples=1, parameters=0, weights=weights, activations=count.peak, work=count.work)


# --- prediction -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A GPU that is not here. The defaults are from the data sheet of an A100; the shares are assumptions."""

    memory: float = 80e9  # bytes
    tflops: float = 312.0  # dense bfloat16
    float32: float = 1 / 16  # of them for matrix products in float32
    bandwidth: float = 2.0  # terabytes per second
    used_tflops: float = 0.5  # share of them that a large matrix product reaches
    used_bandwidth: float = 0.7
    launch: float = 10e-6  # seconds that an operation takes at least
    usable: float = 0.9  # of the memory; the driver and fragmentation take the rest

    @property
    def bytes_per_second(self) -> float:
        return self.bandwidth * 1e12 * self.used_bandwidth

    def seconds(self, work: Work) -> float:
        """Each operation takes as long as its arithmetic, its traffic or its start, whichever is longest."""
        flops_per_second = self.tflops * 1e12 * self.used_tflops
        times = []
        for (flops, n_bytes, is_float32), n in work.items():
            arithmetic = flops / (flops_per_second * (self.float32 if is_float32 else 1))
            times.append(n * max(arithmetic, n_bytes / self.bytes_per_second, self.launch))
        return math.fsum(times)
