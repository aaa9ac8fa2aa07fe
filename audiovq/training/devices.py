"""A task on one or many devices: copied to each (DDP), or its weights shared out among them (FSDP2)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from audiovq.distributed import collectives
from audiovq.recipe import PriorTrainingConfig, TrainingConfig


def distribute(task: Any, config: TrainingConfig, device: torch.device, bf16: bool) -> nn.Module:
    """What is called in place of `task`, so that the gradients are means over all ranks. The task itself stays usable for
    evaluation; its parameters are final only after this."""
    blocks = task.blocks()
    if isinstance(config, PriorTrainingConfig):
        task.recompute_activations(config.activation_checkpointing)
    if config.compile:
        for block in blocks:
            block.compile()
    if not collectives.is_distributed():
        return task.to(device)
    if isinstance(config, PriorTrainingConfig) and config.sharded:
        return _shard(task, blocks, device, bf16)
    ids = [device] if device.type == "cuda" else None
    # Buffers need not be sent around: what changes them is pooled over the ranks already.
    return DistributedDataParallel(task.to(device), ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(task: nn.Module, blocks: list[nn.Module], device: torch.device, bf16: bool) -> nn.Module:
    """Block by block, so that no device ever holds more than one whole block."""
    mesh = init_device_mesh(device.type, (collectives.world_size(),))
    # Inputs are left to autocast: positions must not be rounded.
    policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    for block in [*blocks, task]:  # the task, too, lets go of what it gathered: averages and checkpoints need the parts
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return task.to(device)


def gather_gradients(model: nn.Module, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Within `with`, a backward pass sends gradients around only if `now`: once a step is enough."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return contextlib.nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of it on every rank; a collective if it is shared out."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_network(task: Any) -> Any:
    """The task's network as one process has it, on the CPU if it was shared out; called by all ranks, complete on rank 0."""
    network = task.network
    if not any(isinstance(p, DTensor) for p in network.parameters()):
        return network
    state = {name: whole(tensor).cpu() for name, tensor in network.state_dict().items()}
    complete = task.build()
    complete.load_state_dict(state)
    return complete


def forget_compiled(task: Any) -> None:
    """Compiled blocks are for the sizes of training; what comes after has others."""
    for block in task.blocks():
        block._compiled_call_impl = None


def use_bf16(recipe: Recipe) -> bool:
    """Whether a recipe computes in bfloat16 on the device at hand."""
    if recipe.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return recipe.precision == "bf16"
