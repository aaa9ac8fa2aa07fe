"""Checkpoints of a training: weights, codebooks, statistics, optimizer moments, averages, and the step. All else (data
order, random numbers, learning rate) is a function of the step. A checkpoint is a folder `step-00000123` of
safetensors with checksums, written atomically. Any number of devices can load it, with weights sharded or not."""

import itertools
import json
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded

from audiovq.distributed import collectives
from audiovq.recipe import TrainingConfig
from audiovq.training.averages import Averages
from audiovq.training.devices import whole_tensors
from audiovq.utils import compat
from audiovq.utils.files import atomic_folder, is_whole, utf8_path, write_checksums
from audiovq.utils.progress import say


class Checkpoints:
    """The checkpoints of one training, with the task's own buffers, too, by their plain names. The state is copied to main
    memory, and written in the background. All ranks call every method."""

    def __init__(
        self, folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], averages: Averages,
        config: TrainingConfig, task: nn.Module | None = None,
    ):  # fmt: skip
        self.folder, self.network, self.optimizers, self.averages = folder, network, optimizers, averages
        self.config, self.task = config, task or nn.Module()
        self.saved_at, self.stall = time.monotonic(), 0.0  # seconds that the last one held up the training
        self.executor = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    @property
    def due(self) -> bool:
        """After `checkpoint_seconds`, but so that checkpoints hold up the training for less than 2 % of its time."""
        seconds = self.config.checkpoint_seconds
        return time.monotonic() - self.saved_at >= (max(seconds, 50 * self.stall) if seconds else 0)

    def tensors(self) -> dict[str, Tensor]:
        """All saved tensors: weights and buffers by plain names, others such as `average/<weight>`."""
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        found = dict(self.network.state_dict()) | dict(self.task.named_buffers(recurse=False))
        for parameter, state in itertools.chain.from_iterable(o.state.items() for o in self.optimizers):
            found |= {f"{key}/{names[id(parameter)]}": torch.as_tensor(value) for key, value in state.items()}
        return found | {f"average/{name}": tensor for name, tensor in self.averages.tensors.items()}

    def save(self, step: int, **state: Any) -> None:
        """Begin a checkpoint; `wait` for it before the end. Raises ValueError if the one before could not be written."""
        began = time.monotonic()
        self.wait()
        complete = whole_tensors(self.tensors(), copy=True)
        if collectives.rank() == 0:
            self.writing = self.executor.submit(self._write, step, complete, {"step": step, **state})
        self.saved_at = time.monotonic()
        self.stall = self.saved_at - began

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk. Raises ValueError if it cannot be written."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        target, every = self.folder / f"step-{step:08d}", self.config.keep_every_steps
        write_tensors(target, tensors, facts)
        others = sorted((path for path in self.folder.glob("step-*") if path != target), reverse=True)
        for old in others[self.config.keep_checkpoints - 1 :]:
            if not every or int(old.name.removeprefix("step-")) % every:
                shutil.rmtree(old, ignore_errors=True)
        for unfinished in self.folder.glob(".step-*"):  # left by a save that was killed
            shutil.rmtree(unfinished, ignore_errors=True)

    def load(self) -> dict[str, Any]:
        """Load the newest undamaged checkpoint; returns the state of `save`, or {"step": 0} if there is none.
        Raises ValueError for one of another network."""
        self.wait()
        # Rank 0 decides for all: on a shared disk, ranks may see new files at different times.
        found = newest(self.folder) if collectives.rank() == 0 else None
        step = collectives.from_rank_0(int(found.name.removeprefix("step-")) if found else -1)
        if step < 0:
            return {"step": 0}
        folder = self.folder / f"step-{step:08d}"
        saved = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        self._allocate_moments(set(saved))
        tensors = self.tensors()
        saved = compat.without_obsolete(saved, tensors)
        if tensors.keys() != saved.keys():
            found, advice = min(tensors.keys() ^ saved.keys()), "delete the folder to train from the start"
            raise ValueError(f"{folder}: expected weights of this recipe's network, found others ({found}); {advice}")
        read_tensors(folder, tensors)
        return json.loads((folder / "state.json").read_text())

    def _allocate_moments(self, saved: set[str]) -> None:
        """Allocate the moments that the checkpoint fills: optimizers have none before their first step."""
        parameters = dict(self.network.named_parameters())
        owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for key, slash, name in (saved_name.partition("/") for saved_name in saved):
            if slash and key != "average" and name in parameters:
                parameter = parameters[name].detach()
                # Fused AdamW has its step count on the device.
                empty = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
                owners[id(parameters[name])].state[parameters[name]][key] = empty


class BestWeights:
    """Early stopping: the weights with the lowest held-out loss, in a folder; nothing if `patience` is 0. The best
    step is read from the folder. A resumed run repeats evaluations, and ends at the same step."""

    def __init__(self, folder: Path, config: TrainingConfig, title: str):
        self.folder, self.config, self.title, self.step, self.loss = folder, config, title, 0, math.inf
        if config.patience and is_whole(folder):
            state = json.loads((folder / "state.json").read_text())
            self.step, self.loss = state["step"], state["loss"]

    def update(self, step: int, loss: float, network: nn.Module) -> None:
        """After an evaluation, on all ranks: save the weights if the loss is the lowest so far."""
        if not self.config.patience or not loss < self.loss:
            return
        self.step, self.loss = step, loss
        complete = whole_tensors(network.state_dict())
        if collectives.rank() == 0:
            write_tensors(self.folder, complete, {"step": step, "loss": loss})

    def exhausted(self, step: int) -> bool:
        return 0 < self.config.patience <= (step - self.step) // self.config.evaluate_steps and self.loss < math.inf

    def restore(self, network: nn.Module) -> None:
        """At the end, on all ranks: load the best weights into the network."""
        collectives.barrier()
        if self.config.patience and self.loss < math.inf:
            read_tensors(self.folder, network.state_dict())
            if collectives.rank() == 0:
                same = "" if self.step else "; to keep what it learned from your music, set training.patience to 0"
                say(f"{self.title}: takes the weights of step {self.step}, which have the lowest held-out loss{same}")


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is complete and undamaged."""
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if is_whole(path)), None)


def write_tensors(folder: Path, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write whole tensors in main memory and facts to a folder, atomically and with checksums."""
    with atomic_folder(folder) as temporary:
        with utf8_path(temporary) as place:
            safetensors.torch.save_file(tensors, place / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(facts))
        write_checksums(temporary)


def read_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, sharded or not, with those of the same names in a folder."""
    reader = HuggingFaceStorageReader(str(folder))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a single process
        load_sharded(tensors, storage_reader=reader, no_dist=not collectives.is_distributed())
