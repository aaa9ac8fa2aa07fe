"""Decoding engines: they run a prior one position at a time, or over known positions in one pass. `new_engine` takes
the one for the prior's device. Both give what the prior's own forward gives."""

import contextlib
import copy
import threading
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq.prior.kv_cache import DeviceKVCache, KVCache
from audiovq.prior.prior import Prior
from audiovq.prior.transformer import Layer

ANGLES = 1024  # positions whose rotary angles are computed at once
MANY_CODES = 1 << 18  # from here on in float64
EPSILON = torch.finfo(torch.float32).eps  # of RMSNorm
SMALL_NETWORK = 10_000_000  # parameters
_threads_lock = threading.Lock()
_threads_before: list[int] = []  # torch's threads before each of the calls that sample now


# Weights packed for one step on the CPU. A product of a few rows with a large matrix reads every weight once and does
# little with it, so its time is that of reading. Once a network is larger than the processor's cache, half the bytes
# take half the time. Both kinds give a row the same bits whatever other rows are in the batch.


class Float32:
    """The exact weights. MKL rounds the product of one row differently from that of several, so a single row
    is computed as two. This costs nothing in the processor's cache, and up to twice the time beyond it."""

    rows = 2  # the smallest number of rows that it takes

    def __init__(self, weight: Tensor):
        self.weight = weight.t().contiguous()

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """x [rows, inputs] times the weight [outputs, inputs], into `out` [rows, outputs]."""
        return torch.mm(x, self.weight, out=out)

    def add_to(self, x: Tensor, total: Tensor, buffer: Tensor) -> None:
        """Add the product to `total`; `buffer` has the same shape, for intermediate results."""
        total.addmm_(x, self.weight)


class Float16:
    """Weights rounded to half precision (2^-12 of themselves), arithmetic in float32 (FBGEMM)."""

    rows = 1

    def __init__(self, weight: Tensor):
        with warnings.catch_warnings():  # deprecated in torch; `torch.ops.quantized` has a slower one
            warnings.simplefilter("ignore")
            self.weight = torch.fbgemm_pack_gemm_matrix_fp16(weight.contiguous())
            torch.fbgemm_linear_fp16_weight_fp32_activation(torch.zeros(1, weight.shape[1]), self.weight, None)

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.weight, None, out)

    def add_to(self, x: Tensor, total: Tensor, buffer: Tensor) -> None:
        total.add_(self.into(x, buffer))


class PackedLayer:
    """The matrices of one layer. A norm's weight, the root of its width and the scale of attention are
    multiplied into the matrix that follows, which saves these operations in each step."""

    def __init__(self, layer: Layer, kind: type[Float32 | Float16]):
        c = layer.attention.config
        qkv = layer.attention.qkv.weight * _norm_scale(layer.attention_norm)
        qkv[: c.n_heads * c.head_dim] *= c.head_dim**-0.5
        # The two numbers that a rotary angle rotates become neighbours, which is one complex number.
        self.qkv = kind(qkv.unflatten(0, (-1, 2, c.head_dim // 2)).transpose(1, 2).flatten(0, 2))
        self.out = kind(layer.attention.out.weight)
        self.gate_up = kind(layer.gate_up.weight * _norm_scale(layer.mlp_norm))
        self.down = kind(layer.down.weight)


def _norm_scale(norm: torch.nn.RMSNorm) -> Tensor:
    return norm.weight * len(norm.weight) ** 0.5


class Buffers:
    """The tensors that a step writes to, allocated once."""

    def __init__(self, prior: Prior, batch: int, rows: int, n_slots: int):
        c = prior.config.transformer
        # RMSNorm divides x by sqrt(mean(x²) + epsilon): by the length of (x, sqrt(dim · epsilon)), over
        # sqrt(dim). So a column after the residual stream x is constant, and one operation gives the length.
        self.stream = torch.zeros(rows, c.dim + 16)  # 16 columns, for the alignment of the rows
        self.stream[:, c.dim] = (c.dim * EPSILON) ** 0.5
        self.x = self.stream[:, : c.dim]
        self.length = torch.empty(rows, 1)
        self.normed = torch.empty(rows, c.dim)
        n_heads, pairs = c.n_heads + 2 * c.kv_heads, c.head_dim // 2
        self.qkv = torch.empty(rows, n_heads * c.head_dim)
        self.qkv_pairs = self.qkv[:batch].view(torch.complex64).view(batch, n_heads, pairs)
        self.rotated = torch.empty_like(self.qkv_pairs)
        rotated = torch.view_as_real(self.rotated).transpose(2, 3)  # [batch, heads, 2, pairs], as in the cache
        self.rotated_q, rotated_kv = rotated.split([c.n_heads, 2 * c.kv_heads], dim=1)
        self.rotated_kv = rotated_kv.unflatten(1, (2, c.kv_heads)).transpose(0, 1)  # [2, batch, kv_heads, 2, pairs]
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


class PackedEngine:
    """The engine on the CPU. A step is some 15 operations per layer, all into existing buffers. An item gets the same
    bits in any batch, because each operation works row by row, and so does prefilling."""

    @torch.no_grad()
    def __init__(self, prior: Prior, batch: int, precision: str):
        c, transformer = prior.config.transformer, prior.transformer
        self.prior, self.batch, self.precision = prior, batch, precision
        kind = Float16 if precision == "fp16" else Float32
        self.layers = [PackedLayer(layer, kind) for layer in transformer.layers]  # type: ignore[arg-type]
        self.head = kind(prior.head.weight * _norm_scale(transformer.norm))
        self.cache = transformer.new_cache(batch, torch.float32)
        self.buffers = Buffers(prior, batch, max(batch, kind.rows), self.cache.keys.shape[3])
        self.slots = self.cache.both.unflatten(-1, (2, c.head_dim // 2))
        keys, values = self.cache.both.flatten(2, 3)  # [layers, batch · kv_heads, slots, head_dim]
        self.ring = keys.transpose(2, 3), values
        self.seen: tuple[int, Tensor, list[Tensor], list[Tensor]] | None = None
        self.rotations, self.rotations_start = torch.empty(0), -1

    def prefill(self, previous: Tensor, context: Tensor) -> Tensor:
        """Run known positions in one pass with the prior's own weights: the code before each, int64 [batch,
        t], and `Prior.context`, float [batch, t, dim] -> logits [batch, t, codebook_size]."""
        cache, logits = self.cache, []
        for row in (slice(i, i + 1) for i in range(self.batch)):  # one by one, for the same bits in any batch
            row_cache = KVCache(cache.both[:, :, row], cache.window, cache.length)
            logits.append(self.prior(previous[row], context[row], row_cache))
        self.cache.advance(previous.shape[1])
        return torch.cat(logits)

    def step(self, previous: Tensor, context: Tensor) -> Tensor:
        """Run one position: int64 [batch], float [batch, dim] -> logits [batch, codebook_size], of one buffer."""
        b, slot = self.buffers, self.cache.slot
        scores, all_keys, all_values = self._seen()
        rotation = self._rotation()
        slots = self.slots[..., slot, :, :].unbind(1)
        b.x.copy_(F.embedding(previous, self.prior.embedding.weight) + context)
        for i, layer in enumerate(self.layers):
            layer.qkv.into(self._norm(), b.qkv)
            torch.mul(b.qkv_pairs, rotation, out=b.rotated)
            b.q_halves.copy_(b.rotated_q)
            slots[i].copy_(b.rotated_kv)
            torch.bmm(b.q, all_keys[i], out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, all_values[i], out=b.y)
            layer.out.add_to(b.attended, b.x, b.branch)
            layer.gate_up.into(self._norm(), b.gate_up)
            torch.mul(F.silu(b.gate, inplace=True), b.up, out=b.inner)
            layer.down.add_to(b.inner, b.x, b.branch)
        self.cache.advance(1)
        return self.head.into(self._norm(), b.logits)[: self.batch]

    def _norm(self) -> Tensor:
        b = self.buffers
        torch.linalg.vector_norm(b.stream, dim=1, keepdim=True, out=b.length)
        return torch.div(b.x, b.length, out=b.normed)

    def _seen(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """A buffer for scores, and each layer's keys (transposed) and values for this position."""
        n = self.cache.n_seen
        if self.seen is None or self.seen[0] != n:
            keys, values = self.ring[0][..., :n].unbind(0), self.ring[1][:, :, :n].unbind(0)
            count, per_key = self.buffers.q.shape[:2]
            scores = self.buffers.scores[: count * per_key * n].view(count, per_key, n)
            self.seen = n, scores, list(keys), list(values)
        return self.seen[1:]

    def _rotation(self) -> Tensor:
        """This position's factor for queries, keys and values (1), complex [heads, head_dim / 2]."""
        c, start = self.prior.config.transformer, self.cache.length // ANGLES * ANGLES
        if start != self.rotations_start:
            # float32 cannot hold the angles of music that has played for hours.
            positions = torch.arange(start, start + ANGLES, dtype=torch.float64 if start >= MANY_CODES else torch.int64)
            angles = torch.complex(*self.prior.transformer.angles(positions))[:, None]
            heads = angles.expand(-1, c.n_heads + c.kv_heads, -1), torch.ones_like(angles).expand(-1, c.kv_heads, -1)
            self.rotations, self.rotations_start = torch.cat(heads, dim=1), start
        return self.rotations[self.cache.length % ANGLES]


class GraphEngine:
    """The prior's own forward with the position in a tensor. On CUDA a step is captured once as a graph and
    replayed for each position, so the loop never waits for the device. (Not tested on a GPU.)"""

    def __init__(self, prior: Prior, batch: int, precision: str):
        weight, dim = prior.head.weight, prior.config.transformer.dim
        self.precision = precision
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.prior = prior if weight.dtype == dtype else copy.deepcopy(prior).to(dtype)
        cache = prior.transformer.new_cache(batch, dtype)
        self.cache = DeviceKVCache(cache.both, cache.window)
        self.previous = torch.zeros(batch, 1, dtype=torch.int64, device=weight.device)
        self.context = torch.zeros(batch, 1, dim, dtype=dtype, device=weight.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if weight.is_cuda:
            with torch.inference_mode():
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):  # libraries initialize before the capture
                        self._forward()
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.logits = self._forward()
                self.graph = graph
                self.cache.length = 0  # what the steps above wrote is masked
                self.cache.position.zero_()

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
        self.cache.length += 1  # the graph has advanced the position in the tensor
        return self.logits


Engine = PackedEngine | GraphEngine


def precisions(device: str | torch.device = "cpu") -> list[str]:
    """Those of the arithmetic of sampling on a device; the last is the default. fp16 needs FBGEMM (x86 with AVX2)."""
    kind = torch.device(device).type
    if kind == "cpu":
        return ["fp32", "fp16"] if "fbgemm" in torch.backends.quantized.supported_engines else ["fp32"]
    return ["fp32", "bf16"] if kind == "cuda" and torch.cuda.is_bf16_supported() else ["bf16", "fp32"]


def new_engine(prior: Prior, batch: int, precision: str = "auto") -> Engine:
    """The engine for the prior's device, with an empty cache for `batch` sequences; ValueError for its precision."""
    device = prior.head.weight.device
    known = precisions(device)
    if precision not in ("auto", *known):
        raise ValueError(f"precision: expected auto or one of {', '.join(known)} on this device, found {precision}")
    kind = PackedEngine if device.type == "cpu" else GraphEngine
    return kind(prior, batch, known[-1] if precision == "auto" else precision)


@contextlib.contextmanager
def few_threads(priors: Sequence[Prior]) -> Iterator[None]:
    """One thread while small networks sample on the CPU: the matrices of a step are too small to share. The
    number of threads must not depend on the batch, because it can change the last bits of a product."""
    largest = max(prior.n_weights for prior in priors)
    if largest >= SMALL_NETWORK or priors[0].head.weight.device.type != "cpu":
        yield
        return
    with _threads_lock:  # a thread that begins meanwhile must not take the 1 for what was set before
        _threads_before.append(_threads_before[0] if _threads_before else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            torch.set_num_threads(_threads_before.pop())
