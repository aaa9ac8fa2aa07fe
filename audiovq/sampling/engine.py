"""A prior as sampling uses it: one position after another, and what is known beforehand in one pass.

`new_stepper` picks the fastest for the prior's device; all have `prefill` and `step` and equal the prior's own forward.
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.kv_cache import DeviceKVCache, KVCache
from audiovq.prior.prior import Prior
from audiovq.prior.transformer import Layer
from audiovq.sampling.packed_weights import PRECISIONS, Packed, available_precisions, choose_precision

ANGLES = 1024  # positions whose rotary angles are computed at once


class Stepper(Protocol):
    @property
    def precision(self) -> str: ...

    @property
    def cache(self) -> KVCache:
        """All that is remembered of the positions so far."""
        ...

    def prefill(self, previous: Tensor, context: Tensor) -> Tensor:
        """Positions whose codes are known, in one pass: the codes before each, int64 [batch, t], and context
        [batch, t, dim] -> logits [batch, t, codebook_size]."""
        ...

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        """The codes before one position, int64 [batch], and context [batch, dim] -> logits [batch, codebook_size].

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
        qkv = layer.attention.qkv.weight * folded(layer.attention_norm)
        qkv[: c.n_heads * c.head_dim] *= c.head_dim**-0.5
        # The two numbers that a rotary angle turns become neighbours: one complex product turns them all.
        pairs = qkv.unflatten(0, (-1, 2, c.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        self.qkv: Packed = kind(pairs)
        self.out: Packed = kind(layer.attention.out.weight)
        self.gate_up: Packed = kind(layer.gate_up.weight * folded(layer.mlp_norm))
        self.down: Packed = kind(layer.down.weight)


class PackedPrior:
    """A prior's matrices for steps on the CPU. Packing takes a while, so the prior keeps them."""

    def __init__(self, prior: Prior, kind: type):
        self.layers = [PackedLayer(layer, kind) for layer in prior.transformer.layers]  # type: ignore[arg-type]
        self.head: Packed = kind(prior.head.weight * folded(prior.transformer.norm))

    @classmethod
    @torch.no_grad()
    def of(cls, prior: Prior, precision: str) -> PackedPrior:
        """Packed anew if any weight has changed since."""
        weights = [p.detach() for p in (*prior.transformer.parameters(), prior.head.weight)]
        state = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        kept = prior.packed.get(precision)
        if kept is None or kept[0] != state:
            kept = prior.packed[precision] = state, cls(prior, PRECISIONS[precision])
        return kept[1]

    def __deepcopy__(self, memo: object) -> PackedPrior:
        return self  # FBGEMM's memory cannot be copied; the copy of a prior has other weights and packs them itself


def folded(norm: torch.nn.RMSNorm) -> Tensor:
    return norm.weight * len(norm.weight) ** 0.5


class Buffers:
    """All that a step writes to, made once."""

    def __init__(self, prior: Prior, batch: int, rows: int, n_slots: int):
        c = prior.config.transformer
        # A column after the dim of the residual stream holds the norm's epsilon: the length of a row includes it.
        self.stream = torch.zeros(rows, c.dim + 16)
        self.stream[:, c.dim] = (c.dim * torch.finfo(torch.float32).eps) ** 0.5
        self.x = self.stream[:, : c.dim]
        self.length = torch.empty(rows, 1)
        self.normed = torch.empty(rows, c.dim)
        n_heads, pairs = c.n_heads + 2 * c.kv_heads, c.head_dim // 2
        self.qkv = torch.empty(rows, n_heads * c.head_dim)
        self.unturned = self.qkv[:batch].view(torch.complex64).view(batch, n_heads, pairs)
        self.turned = torch.empty_like(self.unturned)
        turned = torch.view_as_real(self.turned).transpose(2, 3)  # [batch, heads, 2, pairs]: halves, as in the cache
        self.turned_q, turned_kv = turned.split([c.n_heads, 2 * c.kv_heads], dim=1)
        self.turned_kv = turned_kv.unflatten(1, (2, c.kv_heads)).transpose(0, 1)  # [2, batch, kv_heads, 2, pairs]
        self.q = torch.empty(batch * c.kv_heads, c.n_heads // c.kv_heads, c.head_dim)
        self.q_halves = self.q.view(batch, c.n_heads, 2, pairs)
        self.scores = torch.empty(batch * c.n_heads * n_slots)
        self.attended = torch.zeros(rows, c.dim)
        self.y = self.attended[:batch].view(self.q.shape)
        self.branch = torch.empty(rows, c.dim)
        self.gate_up = torch.empty(rows, 2 * c.hidden)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)
        self.inner = torch.empty(rows, c.hidden)
        self.logits = torch.empty(rows, prior.spec.codebook_size)


class PackedStepper:
    """The step on the CPU: some 15 calls a layer, all into buffers that were made before.

    A row of the batch gets the same bits in any batch: every operation here works row by row, and prefilling does too.
    """

    def __init__(self, prior: Prior, batch: int, precision: str = "auto"):
        c, transformer = prior.config.transformer, prior.transformer
        self.precision = choose_precision() if precision == "auto" else precision
        self.prior, self.batch = prior, batch
        self.cache = transformer.new_cache(batch, prior.head.weight.device, torch.float32)
        self.packed = PackedPrior.of(prior, self.precision)
        n_slots = self.cache.keys.shape[3]
        self.buffers = Buffers(prior, batch, max(batch, PRECISIONS[self.precision].rows), n_slots)
        self.slots = self.cache.both.unflatten(-1, (2, c.head_dim // 2))
        keys, values = self.cache.both.flatten(2, 3)  # [layers, batch · kv_heads, slots, head_dim]
        self.ring = keys.transpose(2, 3), values
        self.seen: tuple[int, Tensor, list[Tensor], list[Tensor]] | None = None
        self.turns, self.turns_start = torch.empty(0), -1

    def prefill(self, previous: Tensor, context: Tensor) -> Tensor:
        """With the prior's own weights, whatever the precision, and row by row."""
        rows = [slice(row, row + 1) for row in range(self.batch)]
        logits = [self.prior(previous[row], context[row], self.cache.row(row.start)) for row in rows]
        self.cache.advance(previous.shape[1])
        return torch.cat(logits)

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        b, slot = self.buffers, self.cache.slot
        scores, all_keys, all_values = self._seen()
        turns = self._turns()
        slots = self.slots[..., slot, :, :].unbind(1)
        b.x.copy_(F.embedding(previous, self.prior.embedding.weight) + context)
        for i, layer in enumerate(self.packed.layers):
            layer.qkv.into(self._norm(), b.qkv)
            torch.mul(b.unturned, turns, out=b.turned)
            b.q_halves.copy_(b.turned_q)
            slots[i].copy_(b.turned_kv)
            torch.bmm(b.q, all_keys[i], out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, all_values[i], out=b.y)
            layer.out.add_to(b.attended, b.x, b.branch)
            layer.gate_up.into(self._norm(), b.gate_up)
            torch.mul(F.silu(b.gate, inplace=True), b.up, out=b.inner)
            layer.down.add_to(b.inner, b.x, b.branch)
        self.cache.advance(1)
        return self.packed.head.into(self._norm(), b.logits)[: self.batch]

    def _norm(self) -> Tensor:
        b = self.buffers
        torch.linalg.vector_norm(b.stream, dim=1, keepdim=True, out=b.length)
        return torch.div(b.x, b.length, out=b.normed)

    def _seen(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Room for scores, and each layer's keys (transposed) and values that this position sees."""
        n = self.cache.n_seen
        if self.seen is None or self.seen[0] != n:
            keys, values = self.ring[0][..., :n].unbind(0), self.ring[1][:, :, :n].unbind(0)
            count, per_key = self.buffers.q.shape[:2]
            scores = self.buffers.scores[: count * per_key * n].view(count, per_key, n)
            self.seen = n, scores, list(keys), list(values)
        return self.seen[1:]

    def _turns(self) -> Tensor:
        """Complex [heads, head_dim / 2]; values stay as they are."""
        c, start = self.prior.config.transformer, self.cache.length // ANGLES * ANGLES
        if start != self.turns_start:
            positions = torch.arange(start, start + ANGLES)
            turns = torch.complex(*self.prior.transformer.angles(positions))[:, None]
            heads = [turns.expand(-1, c.n_heads + c.kv_heads, -1), torch.ones_like(turns).expand(-1, c.kv_heads, -1)]
            self.turns, self.turns_start = torch.cat(heads, dim=1), start
        return self.turns[self.cache.length % ANGLES]


class GraphStepper:
    """The prior's own forward with the position in a tensor; on CUDA one step is captured as a graph and replayed, so
    the loop launches one thing a code and never waits for the device.

    The arithmetic of the tensor position is tested on the CPU; capture, replay and speed on a GPU are unmeasured.
    """

    def __init__(self, prior: Prior, batch: int, precision: str = "fp32"):
        weight, dim = prior.head.weight, prior.config.transformer.dim
        self.precision = precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.prior = prior if weight.dtype == dtype else copy.deepcopy(prior).to(dtype)
        self.cache = DeviceKVCache(prior.transformer.new_cache(batch, weight.device, dtype), dtype)
        self.previous = torch.zeros(batch, 1, dtype=torch.int64, device=weight.device)
        self.context = torch.zeros(batch, 1, dim, dtype=dtype, device=weight.device)
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
        self.cache.seek(0)

    def _forward(self) -> Tensor:
        return self.prior(self.previous, self.context, self.cache)[:, 0].float()

    def prefill(self, previous: Tensor, context: Tensor) -> Tensor:
        return self.prior(previous, context.to(self.context.dtype), self.cache).float()

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        self.previous[:, 0] = previous
        self.context[:, 0] = context
        if self.graph is None:
            return self._forward()
        self.graph.replay()
        self.cache.length += 1  # the graph has moved the position in the tensor
        return self.logits
