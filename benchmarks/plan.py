"""Estimates of `audiovq plan` next to real steps: CPU seconds per step and memory of each stage that is trained.

python benchmarks/plan.py [RECIPE] [--data DIR] [--set KEY=VALUE]

CPU times of one thread are compared, so that other processes on the machine matter little. Memory is the growth of the process's peak,
which Linux can reset.
"""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from audiovq.pipeline import run
from audiovq.planning.estimate import make_plan, music_seconds
from audiovq.pretrained.adopt import adopt_pretrained
from audiovq.recipe import load_recipe
from audiovq.training.loop import Training

STEPS = 6
PLANNED: dict[str, dict[str, Any]] = {}  # by the title of the stage


def memory(key: str) -> int:
    """VmRSS, the bytes in use, or VmHWM, the most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


class MeasuredTraining(Training):
    """A few steps, compared with the plan, instead of all."""

    def run(self) -> None:
        planned = PLANNED[self.task.title]
        weights = sum(x.nbytes for x in self.task.network.state_dict().values())
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that earlier stages no longer use
        Path("/proc/self/clear_refs").write_text("5")
        before, times = memory("VmRSS") - weights, []
        for step, batch in enumerate(self.batches("train", 0, STEPS)):
            began = time.process_time()
            self.step(step, batch)
            times.append(time.process_time() - began)
        took, grew = statistics.median(times[2:]), memory("VmHWM") - before
        plan_seconds = planned["seconds_a_step"]
        click.echo(
            f"{self.task.title:10} step {plan_seconds:.2f} CPU-s planned, {took:.2f} real, ratio {plan_seconds / took:.2f};  "
            f"memory {planned['memory_bytes'] / 1e6:.0f} MB planned, {grew / 1e6:.0f} real, "
            f"ratio {planned['memory_bytes'] / grew:.2f}"
        )


@click.command()
@click.argument("name", default="quickstart")
@click.option("--data", help="Folder of music; default the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
def main(name: str, data: str | None, overrides: tuple[str, ...]) -> None:
    """Print one line for each stage: estimate, measurement and ratio."""
    torch.set_num_threads(1)
    recipe = adopt_pretrained(load_recipe(name, data, ("samples.seconds=1", *overrides)))
    began = time.process_time()
    plan = make_plan(recipe, music_seconds(recipe))
    click.echo(f"estimate: {time.process_time() - began:.1f} CPU-s")
    PLANNED.update({stage["stage"]: stage for stage in plan["stages"]})
    run.Training = MeasuredTraining
    with tempfile.TemporaryDirectory() as folder:
        run.Run(recipe, Path(folder) / "run", pages=False).go()


if __name__ == "__main__":
    main()
