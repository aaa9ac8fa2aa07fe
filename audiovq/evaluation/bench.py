"""How fast priors generate on this machine, and how close that is to the limit of its memory.

A step reads every weight once and computes little with it, so one sequence cannot be generated faster than
the weights are read. The speed of the memory is measured in turns with the steps, because other work slows
a machine down.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from audiovq.prior.prior import Prior
from audiovq.sampling.engine import Engine, new_engine
from audiovq.sampling.engine import precisions as precisions_of

READ_BYTES = 256 << 20  # far more than any cache holds
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of a weight


def bench_priors(
    priors: Sequence[Prior], batches: Sequence[int] = (1, 8), precisions: Sequence[str] = ("auto",), n_steps: int = 64,
    n_turns: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """Measure steps with a full attention window.

    Args:
        batches: numbers of sequences that are generated at once.
        precisions: of `sampling.engine.precisions`, "auto", or "all" that this machine has.
        n_steps: steps that are timed at once.
        n_turns: how often each is timed; the median counts.
    Returns:
        device, threads, and bytes_per_second of the memory;
        levels: for each level, batch and precision the steps and codes a second, the limit, and the share of
        the memory's speed at which weights are read (above 1 if they are in the cache);
        audio: for each batch and precision the seconds of audio a second, of all levels one after another,
        without drawing codes and decoding.
    """
    device = priors[0].head.weight.device
    if "all" in precisions:
        precisions = precisions_of(device)
    memory = torch.ones(READ_BYTES // 4, device=device)
    memory_seconds: list[float] = []
    settings = list(itertools.product(priors, batches, precisions))
    step_seconds: list[list[float]] = [[] for _ in settings]
    chosen = [""] * len(settings)  # the precision that "auto" stands for
    for _ in range(n_turns):
        memory_seconds.append(_seconds(lambda: memory.sum(), device))
        for i, (prior, batch, precision) in enumerate(settings):
            engine = new_engine(prior, batch, precision)
            chosen[i] = engine.precision
            step_seconds[i].append(_step_seconds(prior, engine, batch, n_steps))
    bandwidth = READ_BYTES / statistics.median(memory_seconds)
    rows = [
        _row(prior, batch, precision, statistics.median(seconds), bandwidth)
        for (prior, batch, _), precision, seconds in zip(settings, chosen, step_seconds, strict=True)
    ]
    pairs = list(itertools.product(batches, precisions))
    audio = []
    for i, (batch, precision) in enumerate(pairs):
        levels = zip(priors, rows[i :: len(pairs)], strict=True)  # the rows of a level follow each other
        seconds = sum(prior.spec.code_rate / row["codes_per_second"] for prior, row in levels)
        audio.append({"batch": batch, "precision": precision, "audio_seconds_per_second": 1 / seconds})
    machine = {"device": str(device), "threads": torch.get_num_threads(), "bytes_per_second": bandwidth}
    return {**machine, "levels": rows, "audio": audio}


def _row(prior: Prior, batch: int, precision: str, seconds: float, bandwidth: float) -> dict[str, Any]:
    n_weights = sum(p.numel() for p in prior.transformer.parameters()) + prior.head.weight.numel()
    least_seconds = n_weights * BYTES[precision] / bandwidth  # to read the weights
    return {
        "level": prior.spec.level,
        "batch": batch,
        "precision": precision,
        "parameters": n_weights,
        "steps_per_second": 1 / seconds,
        "codes_per_second": batch / seconds,
        "limit_steps_per_second": 1 / least_seconds,
        "share_of_limit": least_seconds / seconds,
    }


@torch.inference_mode()
def _step_seconds(prior: Prior, engine: Engine, batch: int, n_steps: int) -> float:
    """The time of one step when the attention window is full; the likeliest code is fed back."""
    device, c = prior.head.weight.device, prior.config.transformer
    previous = torch.full((batch, c.window), prior.spec.codebook_size, device=device)
    context = torch.zeros(batch, c.window, c.dim, device=device)
    engine.prefill(previous, context)

    def steps(n: int) -> Tensor:
        codes = previous[:, 0]
        for _ in range(n):
            codes = engine.step(codes, context[:, 0]).argmax(dim=-1)
        return codes

    steps(4)  # warm up
    return _seconds(lambda: steps(n_steps), device) / n_steps


def _seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """How long a function takes until its result is there.

    With one thread on the CPU it is the time of this process, which other processes disturb less.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    function().flatten()[0].item()  # waits for the device
    return clock() - began


def bench_table(result: dict[str, Any]) -> list[str]:
    """The result as text."""
    lines = [
        f"{result['device']}, {result['threads']} threads, memory read at {result['bytes_per_second'] / 1e9:.1f} GB/s",
        "level  batch  precision  parameters   steps/s   codes/s  share of the memory's speed",
    ]
    lines += [
        f"{row['level']:5}  {row['batch']:5}  {row['precision']:9}  {row['parameters'] / 1e6:8.1f} M  "
        f"{row['steps_per_second']:8.0f}  {row['codes_per_second']:8.0f}  {row['share_of_limit']:8.2f}"
        for row in result["levels"]
    ]
    lines += [
        f"batch {row['batch']}, {row['precision']}: "
        f"{row['audio_seconds_per_second']:.1f} seconds of audio a second, all levels"
        for row in result["audio"]
    ]
    return lines
