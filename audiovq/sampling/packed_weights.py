"""Weights packed for one step of sampling on the CPU: what a product of a few rows with a large matrix likes best.

Such a product reads every weight once and does little with it, so its time is that of the reading: half the bytes are
half the time once a network is larger than the cache. Every kind gives a row the same bits whatever rows are beside it.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor


class Packed(Protocol):
    rows: int  # the least number of rows that it wants

    def __init__(self, weight: Tensor) -> None: ...

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """x [rows, inputs] times the weight [outputs, inputs], into `out` [rows, outputs]."""
        ...

    def add_to(self, x: Tensor, total: Tensor, room: Tensor) -> None:
        """The same, added to `total`; `room` is of its shape, to work in."""
        ...


class Float32:
    """The exact weights. MKL's product of one row rounds differently from that of two or more, so a single row is
    computed as two: free in the cache, and up to twice the time beyond it."""

    rows = 2

    def __init__(self, weight: Tensor):
        self.weight = weight.t().contiguous()

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.mm(x, self.weight, out=out)

    def add_to(self, x: Tensor, total: Tensor, room: Tensor) -> None:
        total.addmm_(x, self.weight)


class Converted:
    """A kind whose product is a new tensor."""

    rows = 1

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return out.copy_(self.product(x))

    def add_to(self, x: Tensor, total: Tensor, room: Tensor) -> None:
        total.add_(self.product(x))


class Float16:
    """Weights rounded to half precision (2^-12 of themselves), arithmetic in float32 (FBGEMM)."""

    rows = 1

    def __init__(self, weight: Tensor):
        with warnings.catch_warnings():  # that some later torch will not have it; `quantized` has a slower one then
            warnings.simplefilter("ignore")
            self.weight = torch.fbgemm_pack_gemm_matrix_fp16(weight.contiguous())
            torch.fbgemm_linear_fp16_weight_fp32_activation(torch.zeros(1, weight.shape[1]), self.weight, None)

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.weight, None, out)

    def add_to(self, x: Tensor, total: Tensor, room: Tensor) -> None:
        total.add_(self.into(x, room))


class BFloat16(Converted):
    """Weights and activations rounded to bfloat16 (2^-9): for CPUs with instructions for it, slow on others.
    One row is computed as two, as in float32; whether all CPUs then round alike in every batch is unmeasured."""

    rows = 2

    def __init__(self, weight: Tensor):
        self.weight = weight.t().contiguous().bfloat16()

    def product(self, x: Tensor) -> Tensor:
        return torch.mm(x.bfloat16(), self.weight)


class Int8(Converted):
    """Weights in 8 bits with a scale an output, activations in 8 bits with a scale a row (FBGEMM; VNNI where it is).

    FBGEMM takes one scale from the least and the largest number of the whole matrix. Each row is brought to [-1, 1]
    here, and a row of -1 and 1 goes with them: so the scale is always the same, and a row does not depend on others.
    """

    def __init__(self, weight: Tensor):
        scale = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        zero = torch.zeros(len(scale), dtype=torch.int64)
        whole = torch.quantize_per_channel(weight.contiguous(), scale, zero, 0, torch.qint8)
        self.weight = torch.ops.quantized.linear_prepack(whole, None)
        self.reduce_range = not torch.cpu._is_vnni_supported()  # 16-bit sums would overflow without VNNI
        self.scaled = torch.zeros(0)

    def product(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        if self.scaled.shape[0] != n + 1:
            self.scaled = torch.zeros(n + 1, x.shape[1])
            self.scaled[n, 0], self.scaled[n, 1] = -1, 1
        peak = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True).clamp_(min=1e-30)
        torch.div(x, peak, out=self.scaled[:n])
        y = torch.ops.quantized.linear_dynamic.default(self.scaled, self.weight, self.reduce_range)
        return y[:n].mul_(peak)


PRECISIONS: dict[str, type[Float32 | Float16 | BFloat16 | Int8]] = {
    "fp32": Float32, "fp16": Float16, "bf16": BFloat16, "int8": Int8,
}  # fmt: skip


def available_precisions() -> list[str]:
    """Those that this CPU computes with instructions of its own; fp16 and int8 need FBGEMM (x86 with AVX2), fp16 also
    a torch that lets it write into a buffer (2.11 does)."""
    fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    half = getattr(torch.ops.aten, "fbgemm_linear_fp16_weight_fp32_activation", None)
    has_fp16 = fbgemm and half is not None and "out" in half.overloads()
    has_bf16 = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return ["fp32"] + ["fp16"] * has_fp16 + ["bf16"] * has_bf16 + ["int8"] * fbgemm


def choose_precision() -> str:
    """What "auto" means on the CPU: fp16 where there is FBGEMM, else fp32.

    fp16 was never slower where it was measured, from 2 M parameters on, at one sequence and at eight. `audiovq bench`
    measures all. int8 changes the logits by about a hundredth and bf16 could not be measured: neither is taken unasked.
    """
    return "fp16" if "fp16" in available_precisions() else "fp32"
