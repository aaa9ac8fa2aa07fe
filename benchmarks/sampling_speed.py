"""How fast the priors of a model generate, and how close that is to the speed of the machine's memory.

python benchmarks/sampling_speed.py [MODEL] [--batch 1,8] [--precision auto]

A step reads every weight once and computes little with it, so one sequence cannot be generated faster than the weights
are read. Memory and steps are measured in turns, because other work slows a machine down; medians are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from audiovq import api
from audiovq.prior.prior import Prior
from audiovq.sampling.engine import new_engine, precisions

READ_BYTES = 256 << 20  # far more than any cache holds
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of a weight
TURNS, STEPS = 3, 64


def seconds(function: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    function().flatten()[0].item()  # waits for the device
    return time.perf_counter() - began


@torch.inference_mode()
def measure(prior: Prior, batch: int, precision: str) -> tuple[str, float, float]:
    """The precision that was used, seconds of a step with a full attention window, and bytes per second of the memory."""
    device, c = prior.head.weight.device, prior.config.transformer
    engine, memory = new_engine(prior, batch, precision), torch.ones(READ_BYTES // 4, device=device)
    previous = torch.full((batch, c.window), prior.spec.codebook_size, device=device)
    context = torch.zeros(batch, c.window, c.dim, device=device)
    engine.prefill(previous, context)

    def steps() -> Tensor:
        codes = previous[:, 0]
        for _ in range(STEPS):
            codes = engine.step(codes, context[:, 0]).argmax(dim=-1)
        return codes

    steps()  # the first steps are slower
    turns = [(seconds(steps) / STEPS, READ_BYTES / seconds(memory.sum)) for _ in range(TURNS)]
    step, bandwidth = (statistics.median(values) for values in zip(*turns, strict=True))
    return engine.precision, step, bandwidth


@click.command()
@click.argument("model", default="default")
@click.option("--batch", default="1,8", help="Pieces at once.")
@click.option(
    "--precision", default="auto", help="fp32, fp16, bf16, int8, auto, or all; several are separated by commas."
)
def main(model: str, batch: str, precision: str) -> None:
    """Print a line for each batch, precision and level, and the seconds of audio per second of all levels."""
    priors = api.Generator.from_pretrained(api.resolve_model(model)).priors
    for n in map(int, batch.split(",")):
        for name in precisions() if precision == "all" else precision.split(","):
            audio_seconds = 0.0
            for prior in priors:
                used, step, bandwidth = measure(prior, n, name)
                n_weights = sum(p.numel() for p in prior.transformer.parameters()) + prior.head.weight.numel()
                share = n_weights * BYTES[used] / bandwidth / step
                audio_seconds += prior.spec.code_rate * step / n
                click.echo(
                    f"batch {n}, {used}, level {prior.spec.level}: {n_weights / 1e6:.1f} M weights, {n / step:.0f} codes/s; "
                    f"weights are read at {share:.2f} of the memory's {bandwidth / 1e9:.1f} GB/s"
                )
            click.echo(f"batch {n}, {name}: {1 / audio_seconds:.1f} seconds of audio per second, all levels")


if __name__ == "__main__":
    main()
