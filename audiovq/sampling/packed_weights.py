"""Weights packed for one step of sampling on the CPU.

A product of a few rows with a large matrix reads every weight once and does little with it, so its time
is that of reading. Once a network is larger than the processor's cache, half the bytes take half the
time. Both kinds give a row the same bits whatever other rows are in the batch.
"""

import warnings

import torch
from torch import Tensor


class Float32:
    """The exact weights. MKL rounds the product of one row differently from that of several, so a single
    row is computed as two. This costs nothing in the processor's cache, and up to twice the time beyond
    it."""

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


def available_precisions() -> list[str]:
    """The precisions that sampling has on this CPU; the last is the default.

    fp16 needs FBGEMM (x86 with AVX2) and a torch that lets it write into a buffer, such as 2.11. It was at
    least as fast as fp32 in all measurements, with one sequence and with eight.
    """
    half = getattr(torch.ops.aten, "fbgemm_linear_fp16_weight_fp32_activation", None)
    has_fp16 = half is not None and "out" in half.overloads()
    return ["fp32", "fp16"] if has_fp16 and "fbgemm" in torch.backends.quantized.supported_engines else ["fp32"]
