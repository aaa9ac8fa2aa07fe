"""Muon: a weight matrix moves by the orthogonal matrix nearest to its momentum, so that no direction is neglected.

Jordan 2024 (https://kellerjordan.github.io/posts/muon/). Steps of matrices of any shape have elements of like size, so that one
learning rate serves Muon and AdamW (arXiv:2502.16982, section 2.2). Embeddings, norms, biases and the output layer stay AdamW's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

MOMENTUM = 0.95
# Of the quintic; singular values end between 0.7 and 1.2, which is near enough.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
SCALE = 1.0  # root mean square of a step, in learning rates; the paper has 0.2, which learned more slowly on codes


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with `orthogonal: True`, whose parameters are matrices [rows, columns]."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"] if group.get("orthogonal") else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    parameter.grad = None  # AdamW passes it over
        super().step()

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        found_inf = getattr(self, "found_inf", None)
        happens = torch.ones((), dtype=torch.bool, device=parameter.device) if found_inf is None else found_inf == 0
        momentum, g, p = local(state["momentum"]), local(gradient), local(parameter)
        momentum.copy_(torch.where(happens, momentum.lerp(g, 1 - MOMENTUM), momentum))
        ahead = gradient.lerp(state["momentum"], MOMENTUM)  # Nesterov's
        change = SCALE * max(parameter.shape) ** 0.5 * local(orthogonal(ahead)) + decay * p
        p.sub_(torch.where(happens, rate * change, 0.0))


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U Vᵀ of matrix = U S Vᵀ, float [rows, columns], by Newton-Schulz iterations.

    Of a matrix that is shared out over ranks, each computes the whole and keeps its share.
    """
    if isinstance(matrix, DTensor):
        whole = orthogonal(matrix.full_tensor())
        found = DTensor.from_local(whole, matrix.device_mesh, [Replicate()] * matrix.device_mesh.ndim, run_check=False)
        return found.redistribute(placements=matrix.placements)
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
