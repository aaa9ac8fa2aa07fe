"""The optimizers: AdamW, or Muon, which moves each weight matrix by the orthogonal matrix nearest to its momentum.

All elements of a step of Muon have about the same size, for matrices of any shape, so that one learning rate
serves Muon and AdamW (arXiv:2502.16982, section 2.2). Other weights use AdamW.

torch.optim.Muon ignores `found_inf`, so it cannot skip a step without a wait for the device; it takes only
matrices, and rounds to bfloat16 on a CPU, too. Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from audiovq.recipe import TrainingConfig
from audiovq.training.devices import local

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial; singular values end between 0.7 and 1.2
N_ITERATIONS = 5
SCALE = 1.0  # root mean square of a step / learning rate; 0.2 in arXiv:2502.16982 learned codes more slowly


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """The optimizer of a network's trainable weights. Weight decay applies to matrices and convolution
    kernels, not to biases, norms and embeddings. Muon trains the matrices of linear layers, except heads."""
    is_muon = config.optimizer == "muon"
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    matrices = [m for name, m in network.named_modules() if isinstance(m, nn.Linear) and not name.endswith("head")]
    linear = {id(m.weight) for m in matrices if is_muon}
    decays = (config.weight_decay, 0.0, config.weight_decay)
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in decays]
    groups[2]["orthogonal"] = True
    for p in network.parameters():
        if p.requires_grad:
            groups[2 if id(p) in linear else 0 if p.ndim >= 2 and id(p) not in embeddings else 1]["params"].append(p)
    kind, betas = Muon if is_muon else torch.optim.AdamW, (config.beta1, config.beta2)
    return kind(groups if is_muon else groups[:2], lr=config.learning_rate, betas=betas, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with `orthogonal: True`, whose parameters are matrices [rows, columns]."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"] if group.get("orthogonal") else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    parameter.grad = None  # so that AdamW leaves the parameter alone
        super().step()

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        found_inf = getattr(self, "found_inf", None)  # on the device, as for fused AdamW: 1 skips the step
        is_skipped = torch.zeros((), device=parameter.device) if found_inf is None else found_inf
        momentum, p = local(state["momentum"]), local(parameter)
        momentum.copy_(torch.where(is_skipped == 0, momentum.lerp(local(gradient), 1 - MOMENTUM), momentum))
        nesterov = gradient.lerp(state["momentum"], MOMENTUM)
        change = SCALE * max(parameter.shape) ** 0.5 * local(orthogonal(nesterov)) + decay * p
        p.sub_(torch.where(is_skipped == 0, rate * change, 0.0))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U Vᵀ of matrix = U S Vᵀ, float [rows, columns], by Newton-Schulz iterations."""
    if isinstance(matrix, DTensor):
        found, mesh = orthogonal(matrix.full_tensor()), matrix.device_mesh
        replicated = DTensor.from_local(found, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return replicated.redistribute(placements=matrix.placements)
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(N_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
