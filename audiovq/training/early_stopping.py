"""Early stopping: training ends when the held-out loss no longer falls, with the best weights."""

import json
import math
from pathlib import Path

from torch import nn

from audiovq.distributed import collectives
from audiovq.recipe import TrainingConfig
from audiovq.training.checkpoints import read_tensors, write_tensors
from audiovq.utils.files import is_whole
from audiovq.utils.progress import say


class BestWeights:
    """The weights with the lowest held-out loss, in a folder; nothing is done if `patience` is 0.

    The best step is read from the folder. A resumed run repeats evaluations and gets the same losses, so
    that it ends at the same step as a run that was never interrupted.
    """

    def __init__(self, folder: Path, config: TrainingConfig, title: str):
        self.folder, self.config, self.title = folder, config, title
        self.step, self.loss = 0, math.inf
        if config.patience and is_whole(folder):
            state = json.loads((folder / "state.json").read_text())
            self.step, self.loss = state["step"], state["loss"]

    def update(self, step: int, loss: float, network: nn.Module) -> None:
        """After an evaluation, on all ranks: save the weights if the loss is the lowest so far."""
        if not self.config.patience or not loss < self.loss:
            return
        self.step, self.loss = step, loss
        write_tensors(self.folder, network.state_dict(), {"step": step, "loss": loss})

    def exhausted(self, step: int) -> bool:
        """Whether there were `patience` evaluations after the best one."""
        n_worse = (step - self.step) // self.config.evaluate_steps
        return 0 < self.config.patience <= n_worse and self.loss < math.inf

    def restore(self, network: nn.Module) -> None:
        """At the end, on all ranks: load the best weights into the network."""
        collectives.barrier()
        if self.config.patience and self.loss < math.inf:
            read_tensors(self.folder, network.state_dict())
            if collectives.rank() == 0:
                say(f"{self.title}: takes the weights of step {self.step}, which have the lowest held-out loss")
