"""A prior as sampling uses it: one position after another, and what is known beforehand in one pass.

`new_stepper` picks the fastest for the prior's device; all have `prefill` and `step` and equal the prior's own forward.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.kv_cache import DeviceKVCache
from audiovq.prior.packed import PRECISIONS, Packed, available_precisions, choose_precision
from audiovq.prior.prior import Prior
from audiovq.prior.transformer import Layer, rotary

ANGLES = 1024  # positions whose rotary angles are computed at once


class Stepper(Protocol):
    precision: str

    def prefill(self, previous: Tensor, context: Tensor) -> None:
        """Take in positions whose codes are known: the codes before them int64 [batch, t] and context [batch, t, dim]."""
        ...

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        """The codes before one position int64 [batch], and context [batch, dim] -> logits [batch, codebook_size].

        The logits are a buffer that the next step overwrites.
        """
        ...


def new_stepper(prior: Prior, batch: int, precision: str = "auto") -> Stepper:
    """The fastest stepper for the prior's device, with room for `batch` sequences.

    Args:
        precision: "auto" or a key of `PRECISIONS` on the CPU; "auto", "fp32" or "bf16" elsewhere.
    Raises:
        ValueError: a precision that this device does not have.
    """
    weight = prior.head.weight
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision: expected auto or one of {', '.join(PRECISIONS)}, found {precision}")
    if weight.is_cpu:
        if precision in ("fp16", "int8") and precision not in available_precisions():
            raise ValueError(f"precision: this CPU has {', '.join(available_precisions())}, not {precision}")
        return PackedStepper(prior, batch, precision)
    if precision in ("fp16", "int8"):
        raise ValueError(f"precision: expected fp32 or bf16 on this device, found {precision}")
    if precision == "auto":
        precision = "bf16" if weight.is_cuda and torch.cuda.is_bf16_supported() else "fp32"
    return GraphStepper(prior, batch, precision)


class PackedLayer:
    """One layer's matrices. A norm's weight, the root of its width and the scale of attention are folded into the matrix
    that follows, so a step need not multiply by them."""

    def __init__(self, layer: Layer, kind: type):
        c = layer.attention.config
        widths = [c.n_heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
        q, k, v = (layer.attention.qkv.weight * folded(layer.attention_norm)).split(widths)
        q = paired(q, c.head_dim, dim=0) * c.head_dim**-0.5
        self.qkv: Packed = kind(torch.cat([q, paired(k, c.head_dim, dim=0), v]))
        self.out: Packed = kind(layer.attention.out.weight)
        self.gate_up: Packed = kind(layer.gate_up.weight * folded(layer.mlp_norm))
        self.down: Packed = kind(layer.down.weight)


def folded(norm: torch.nn.RMSNorm) -> Tensor:
    return norm.weight * len(norm.weight) ** 0.5


def paired(x: Tensor, head_dim: int, dim: int) -> Tensor:
    """Reorder heads so that the two numbers which a rotary angle turns are neighbours: one complex product turns them."""
    dim %= x.ndim
    return x.unflatten(dim, (-1, 2, head_dim // 2)).transpose(dim + 1, dim + 2).flatten(dim, dim + 2)


def unpaired(x: Tensor) -> Tensor:
    """Back again, along the last dimension, which is one head."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


class PackedStepper:
    """The step on the CPU: some 15 calls a layer, all into buffers that were made before.

    A row of the batch gets the same bits in any batch: every operation here works row by row, and prefilling does too.
    """

    def __init__(self, prior: Prior, batch: int, precision: str = "auto"):
        c = prior.config.transformer
        n_weights = sum(p.numel() for p in prior.transformer.parameters()) + prior.head.weight.numel()
        self.precision = choose_precision(n_weights) if precision == "auto" else precision
        kind = PRECISIONS[self.precision]
        self.prior, self.config, self.batch, self.length = prior, c, batch, 0
        rows, heads = max(batch, kind.rows), c.n_heads + 2 * c.kv_heads
        with torch.no_grad():
            self.layers = [PackedLayer(layer, kind) for layer in prior.transformer.layers]  # type: ignore[arg-type]
            self.head: Packed = kind(prior.head.weight * folded(prior.transformer.norm))
        hidden = prior.transformer.layers[0].down.weight.shape[1]  # type: ignore[union-attr,index]
        # A column after the dim of the residual stream holds the norm's epsilon: the norm of a row includes it.
        self.stream = torch.zeros(rows, c.dim + 16)
        self.stream[:, c.dim] = (c.dim * torch.finfo(torch.float32).eps) ** 0.5
        self.x = self.stream[:, : c.dim]
        self.size = torch.empty(rows, 1)
        self.normed = torch.empty(rows, c.dim)
        self.qkv = torch.empty(rows, heads * c.head_dim)
        pairs = self.qkv.view(torch.complex64).view(rows, heads, c.head_dim // 2)
        self.q_pairs = pairs[:, : c.n_heads]
        self.kv_pairs = pairs[:, c.n_heads :].view(rows, 2, c.kv_heads, c.head_dim // 2)
        q = torch.empty(rows * c.kv_heads, c.n_heads // c.kv_heads, c.head_dim)
        self.turned = q.view(torch.complex64).view(rows, c.n_heads, c.head_dim // 2)
        self.q, self.y = q, torch.empty_like(q)
        self.attended = self.y.view(rows, c.dim)
        self.scores = torch.empty(q.shape[0] * q.shape[1] * c.window)
        self.gate_up = torch.empty(rows, 2 * hidden)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)
        self.inner = torch.empty(rows, hidden)
        self.logits = torch.empty(rows, prior.spec.codebook_size)
        # Keys and values [layers, 2, rows · kv_heads, window, head_dim], keys in pairs.
        self.ring = torch.zeros(c.n_layers, 2, rows * c.kv_heads, c.window, c.head_dim)
        whole = self.ring.view(torch.complex64).view(c.n_layers, 2, rows, c.kv_heads, c.window, c.head_dim // 2)
        self.ring_pairs = whole.transpose(1, 2)  # [layers, rows, 2, kv_heads, window, head_dim / 2]
        self.filled: tuple[int, Tensor, list[Tensor], list[Tensor]] | None = None
        self.angles = torch.empty(0)

    def prefill(self, previous: Tensor, context: Tensor) -> None:
        """With the prior's own weights, whatever the precision, and row by row."""
        c = self.config
        rows = self.ring.view(c.n_layers, 2, -1, c.kv_heads, c.window, c.head_dim)
        for row in range(self.batch):
            cache = self.prior.new_cache(1)
            cache.length = self.length
            cache.keys.copy_(unpaired(rows[:, 0, row : row + 1]))
            cache.values.copy_(rows[:, 1, row : row + 1])
            self.prior(previous[row : row + 1], context[row : row + 1], cache)
            last = row + 1 if self.batch > 1 else len(rows[0, 0])  # a single row may be computed as two
            rows[:, 0, row:last] = paired(cache.keys, c.head_dim, dim=-1)
            rows[:, 1, row:last] = cache.values
        self.length += previous.shape[1]
        self.filled = None

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        slot, scores, keys, values = self._place()
        turn_q, turn_kv = self.angles[0][self.length % ANGLES], self.angles[1][self.length % ANGLES]
        slots = self.ring_pairs[:, :, :, :, slot].unbind(0)
        self.x.copy_(F.embedding(previous, self.prior.embedding.weight) + context)
        for layer, here, past_keys, past_values in zip(self.layers, slots, keys, values, strict=True):
            layer.qkv.into(self._norm(), self.qkv)
            torch.mul(self.q_pairs, turn_q, out=self.turned)
            torch.mul(self.kv_pairs, turn_kv, out=here)
            torch.bmm(self.q, past_keys, out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, past_values, out=self.y)
            layer.out.add_to(self.attended, self.x)
            layer.gate_up.into(self._norm(), self.gate_up)
            torch.mul(F.silu(self.gate, inplace=True), self.up, out=self.inner)
            layer.down.add_to(self.inner, self.x)
        self.length += 1
        return self.head.into(self._norm(), self.logits)[: self.batch]

    def _norm(self) -> Tensor:
        torch.linalg.vector_norm(self.stream, dim=1, keepdim=True, out=self.size)
        return torch.div(self.x, self.size, out=self.normed)

    def _place(self) -> tuple[int, Tensor, list[Tensor], list[Tensor]]:
        """The slot of this position, room for scores, and each layer's keys (transposed) and values up to it."""
        c = self.config
        if self.length % ANGLES == 0 or len(self.angles) == 0:
            self.angles = self._angles(self.length // ANGLES * ANGLES)
        n = min(self.length + 1, c.window)
        if self.filled is None or self.filled[0] != n:
            seen = self.ring[:, :, :, :n]
            keys, values = seen[:, 0].transpose(-1, -2).unbind(0), seen[:, 1].unbind(0)
            count = self.q.shape[0] * self.q.shape[1] * n
            self.filled = n, self.scores[:count].view(*self.q.shape[:2], n), list(keys), list(values)
        return self.length % c.window, *self.filled[1:]

    def _angles(self, start: int) -> tuple[Tensor, Tensor]:
        """Turns [ANGLES, 1, head_dim / 2] of queries and [ANGLES, 2, 1, head_dim / 2] of keys and values (which stay)."""
        turns = torch.complex(*rotary(torch.arange(start, start + ANGLES), self.config.head_dim))
        return turns[:, None], torch.stack([turns, torch.ones_like(turns)], dim=1)[:, :, None]


class GraphStepper:
    """The prior's own forward with the position in a tensor; on CUDA one step is captured as a graph and replayed, so
    the loop launches one thing a code and never waits for the device.

    The arithmetic of the tensor position is tested on the CPU; capture, replay and speed on a GPU are unmeasured.
    """

    def __init__(self, prior: Prior, batch: int, precision: str = "fp32"):
        weight, c = prior.head.weight, prior.config.transformer
        self.precision = precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.prior = prior if weight.dtype == dtype else copy.deepcopy(prior).to(dtype)
        self.cache = DeviceKVCache(
            c.n_layers, batch, c.kv_heads, c.window, c.head_dim, device=weight.device, dtype=dtype
        )
        self.previous = torch.zeros(batch, 1, dtype=torch.int64, device=weight.device)
        self.context = torch.zeros(batch, 1, c.dim, dtype=dtype, device=weight.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if weight.is_cuda:
            self._capture()

    @torch.inference_mode()
    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries set themselves up before the capture
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._forward()
        self.graph = graph
        self.cache.forget()

    def _forward(self) -> Tensor:
        return self.prior(self.previous, self.context, self.cache)[:, 0].float()

    def prefill(self, previous: Tensor, context: Tensor) -> None:
        if previous.shape[1] > 1:
            self.prior(previous, context.to(self.context.dtype), self.cache)
        elif previous.shape[1]:
            self.step(previous[:, 0], context[:, 0])

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        self.previous[:, 0] = previous
        self.context[:, 0] = context
        if self.graph is None:
            return self._forward()
        self.graph.replay()
        self.cache.length += 1  # the graph has moved the position in the tensor
        return self.logits
