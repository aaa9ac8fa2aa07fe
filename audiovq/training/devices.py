"""A task on one or many devices: replicated on each (DDP), or with its weights sharded among them (FSDP2)."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from audiovq.distributed import collectives
from audiovq.recipe import PriorTrainingConfig, Recipe, TrainingConfig


def use_bf16(recipe: Recipe) -> bool:
    """Whether a recipe computes in bfloat16 on this machine's device."""
    if recipe.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return recipe.precision == "bf16"


def distribute(task: Any, config: TrainingConfig, device: torch.device, bf16: bool) -> nn.Module:
    """The module to call instead of `task` in training, so that gradients are means over all ranks. The
    task's parameters may be replaced here. The task itself is still called for evaluation."""
    blocks = task.blocks()
    if isinstance(config, PriorTrainingConfig):
        task.network.transformer.recompute = config.activation_checkpointing
    if config.compile:
        for block in blocks:
            block.compile()
    if not collectives.is_distributed():
        return task.to(device)
    if isinstance(config, PriorTrainingConfig) and config.sharded:
        return _shard(task, blocks, device, bf16, config.devices_per_copy(collectives.world_size()))
    ids = [device] if device.type == "cuda" else None
    # No broadcast of buffers: what changes them is already reduced over the ranks.
    return DistributedDataParallel(task.to(device), ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(task: nn.Module, blocks: list[nn.Module], device: torch.device, bf16: bool, n: int) -> nn.Module:
    """Shard block by block, so that a device never holds all weights at once; each `n` devices have a copy."""
    n_copies = collectives.world_size() // n
    mesh = init_device_mesh(device.type, (n_copies, n), mesh_dim_names=("copies", "shards"))
    mesh = mesh if n_copies > 1 else mesh["shards"]
    # Inputs are left to autocast, because positions must not be rounded.
    policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    # The task is resharded after its forward pass, too: averages and checkpoints need the shards.
    for block in [*blocks, task]:
        for module in block.modules():  # other ranks than 0 have meta tensors
            if not any(isinstance(p, DTensor) for p in module.parameters(recurse=False)):
                if collectives.rank():
                    module.to_empty(device=device, recurse=False)
                module._apply(lambda x: collectives.broadcast_(x.to(device)), recurse=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return task.to(device)


def gather_gradients(model: nn.Module, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Within `with`, a backward pass exchanges gradients among ranks only if `now`."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return contextlib.nullcontext()


def compute_seconds(model: nn.Module) -> float:
    """What the passes of a recent step took this rank without waiting for others, by DDP's own clock; else 0."""
    found = model._get_ddp_logging_data() if isinstance(model, DistributedDataParallel) else {}
    return (found.get("forward_compute_time", 0) + found.get("backward_compute_time", 0)) / 1e9


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank; a collective if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor], copy: bool = False) -> dict[str, Tensor]:
    """Whole tensors on the CPU of rank 0, none on other ranks; a collective if some are sharded. With `copy` later changes
    of the tensors do not show."""
    found = {}
    for name in sorted(tensors):  # the same order on all ranks
        complete = whole(tensors[name].detach())
        if collectives.rank() == 0:
            found[name] = complete.to("cpu", copy=copy).contiguous()
    return found


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the whole tensor if it is not sharded; without its history."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole_network(task: Any) -> Any:
    """The task's network, without shards. All ranks call it, and a sharded network is complete on rank 0."""
    network = task.network
    if not any(isinstance(p, DTensor) for p in network.parameters()):
        return network
    state = whole_tensors(network.state_dict())
    complete = task.build()
    if collectives.rank() == 0:
        complete.load_state_dict(state)
    return complete


def forget_compiled(task: Any) -> None:
    """Undo `block.compile()`: the compiled code is for the shapes of training."""
    for block in task.blocks():
        block._compiled_call_impl = None
