"""Estimates of `audiovq plan` next to measurements: CPU seconds per step and memory of each stage, and ratios.

python benchmarks/plan.py [RECIPE] [--data DIR]

Time: the same steps are taken right after the estimate, and CPU times are compared, so that other processes on the
machine matter little. Memory: the growth of the process's peak, with each stage in its own process.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch
from accelerate import Accelerator

from audiovq.data.tracks import scan
from audiovq.planning.cost import count_pass
from audiovq.planning.estimate import Planner, Stage
from audiovq.planning.rehearsal import measure
from audiovq.recipe import Recipe, load_recipe
from audiovq.training.loop import Training

STEPS = 5


def planned_stage(recipe: Recipe, number: int) -> Stage:
    planner = Planner(recipe, scan(Path(recipe.data.folder), recipe.data), None, 1)
    return planner.training_stages()[number]


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_of(recipe: Recipe, number: int) -> tuple[str, float, float]:
    """Planned and real seconds of a step."""
    stage = planned_stage(recipe, number)
    name, config = stage.title, stage.config
    planned = measure(stage.build_here, config, bf16=False, clock=time.process_time).seconds
    with tempfile.TemporaryDirectory() as folder:
        training = Training(stage.build_here(config), Path(folder), config, Accelerator())
        times = []
        for step, batch in enumerate(training.batches("train", 0, STEPS)):
            began = time.process_time()
            training.step(step, batch)
            times.append(time.process_time() - began)
    return name, planned, statistics.median(times[1:])


def memory_of(recipe: Recipe, number: int) -> tuple[str, float, float]:
    """Counted and real bytes of a training."""
    stage = planned_stage(recipe, number)
    name, config = stage.title, stage.config
    counted = count_pass(lambda mode: stage.build(config, mode), config, config.batch_size, bf16=False)
    torch.fft.rfft(torch.zeros(4096))  # libraries are loaded
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        training = Training(stage.build_here(config), Path(folder), config, Accelerator())
        for step, batch in enumerate(training.batches("train", 0, 2)):
            training.step(step, batch)
    return name, counted.memory, peak() - before


@click.command()
@click.argument("name", default="quickstart")
@click.option("--data", help="Folder of music; default the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--stages", "n", type=int, help="Only the first ones.")
def main(name: str, data: str | None, overrides: tuple[str, ...], n: int | None) -> None:
    """Print one line for each stage: estimate, measurement and ratio."""
    recipe = load_recipe(name, data, overrides)
    context = multiprocessing.get_context("spawn")
    for number in range(1 + (recipe.decoder_tuning is not None) + recipe.n_priors)[:n]:
        with context.Pool(1) as pool:
            title, planned, took = pool.apply(time_of, (recipe, number))
        with context.Pool(1) as pool:
            _, counted, grew = pool.apply(memory_of, (recipe, number))
        click.echo(
            f"{title:10} step {planned:.3f} s planned, {took:.3f} s real, ratio {planned / took:.2f};  "
            f"memory {counted / 1e6:.0f} MB counted, {grew / 1e6:.0f} MB real, ratio {counted / grew:.2f}"
        )


if __name__ == "__main__":
    main()
