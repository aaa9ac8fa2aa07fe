"""Weights packed for one step of sampling on the CPU.

A product of a few rows with a large matrix reads every weight once and does little with it, so its time
is that of reading. Once a network is larger than the processor's cache, half the bytes take half the
time. All kinds give a row the same bits whatever other rows are in the batch.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor


class Packed(Protocol):
    rows: int  # the smallest number of rows that it takes

    def __init__(self, weight: Tensor) -> None: ...

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """x [rows, inputs] times the weight [outputs, inputs], into `out` [rows, outputs]."""
        ...

    def add_to(self, x: Tensor, total: Tensor, buffer: Tensor) -> None:
        """Add the product to `total`; `buffer` has the same shape, for intermediate results."""
        ...


class Float32:
    """The exact weights. MKL rounds the product of one row differently from that of several, so a single
    row is computed as two. This costs nothing in the processor's cache, and up to twice the time beyond
    it."""

    rows = 2

    def __init__(self, weight: Tensor):
        self.weight = weight.t().contiguous()

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.mm(x, self.weight, out=out)

    def add_to(self, x: Tensor, total: Tensor, buffer: Tensor) -> None:
        total.addmm_(x, self.weight)


class Converted:
    """A kind whose product is a new tensor."""

    rows = 1

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return out.copy_(self.product(x))

    def add_to(self, x: Tensor, total: Tensor, buffer: Tensor) -> None:
        total.add_(self.product(x))


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


class BFloat16(Converted):
    """Weights and activations rounded to bfloat16 (2^-9): for CPUs with instructions for it, slow on
    others. One row is computed as two, as in float32. That all CPUs then round alike in every batch is
    not verified."""

    rows = 2

    def __init__(self, weight: Tensor):
        self.weight = weight.t().contiguous().bfloat16()

    def product(self, x: Tensor) -> Tensor:
        return torch.mm(x.bfloat16(), self.weight)


class Int8(Converted):
    """Weights in 8 bits with a scale per output, activations in 8 bits with a scale per row (FBGEMM, with
    VNNI if there).

    FBGEMM takes one scale from the smallest and the largest number of the whole matrix. So each row is
    scaled to [-1, 1], and a row of -1 and 1 is added: the scale is then always the same, and a row does
    not depend on others.
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
    "fp32": Float32,
    "fp16": Float16,
    "bf16": BFloat16,
    "int8": Int8,
}


def available_precisions() -> list[str]:
    """The precisions that this CPU has instructions for. fp16 and int8 need FBGEMM (x86 with AVX2), and
    fp16 also a torch that lets it write into a buffer, such as 2.11."""
    fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    half = getattr(torch.ops.aten, "fbgemm_linear_fp16_weight_fp32_activation", None)
    has_fp16 = fbgemm and half is not None and "out" in half.overloads()
    has_bf16 = torch.cpu._is_avx512_bf16_supported() if hasattr(torch.cpu, "_is_avx512_bf16_supported") else False
    return ["fp32"] + ["fp16"] * has_fp16 + ["bf16"] * has_bf16 + ["int8"] * fbgemm


def choose_precision() -> str:
    """What "auto" means on the CPU: fp16 with FBGEMM, else fp32.

    fp16 was at least as fast in all measurements, from 2 M parameters on, with one sequence and with
    eight (`audiovq bench` measures all precisions). int8 changes the logits by about a hundredth, so it
    is never chosen automatically.
    """
    return "fp16" if "fp16" in available_precisions() else "fp32"
