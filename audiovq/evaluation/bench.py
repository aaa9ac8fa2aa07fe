"""How fast priors generate here, and how near that is to what the memory allows.

A step reads every weight once and does little with it, so one sequence cannot be faster than the memory is read. The
limit is measured in the same run, in turns with the steps, because machines are shared and slow down.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from audiovq.prior.prior import Prior
from audiovq.sampling.engine import Engine, new_engine
from audiovq.sampling.packed_weights import available_precisions

STREAM_BYTES = 256 << 20  # far more than any cache
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # a weight


def bench_priors(
    priors: Sequence[Prior], batches: Sequence[int] = (1, 8), precisions: Sequence[str] = ("auto",), n_steps: int = 64,
    turns: int = 3, on_turn: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure steps with a full attention window.

    Args:
        precisions: keys of `PRECISIONS`, "auto", or "all" that this machine has.
    Returns:
        threads; bytes_per_second of memory; `levels`: one row a level, batch and precision with steps_per_second and
        the share of the memory's speed at which weights are read (above 1: they are in the cache); `audio`: seconds
        of audio a second a batch and precision, all levels one after another, drawing and decoding not included.
    """
    device = priors[0].head.weight.device
    if "all" in precisions:
        precisions = available_precisions() if device.type == "cpu" else ["fp32", "bf16"]
    stream = torch.ones(STREAM_BYTES // 4, device=device)
    keys = [(level, batch, precision) for level in range(len(priors)) for batch in batches for precision in precisions]
    seconds: dict[Any, list[float]] = {key: [] for key in [*keys, "stream"]}
    chosen = {}
    for _ in range(turns):
        seconds["stream"].append(_seconds(lambda: stream.sum(), device))
        for level, batch, precision in keys:
            engine = new_engine(priors[level], batch, precision)
            chosen[level, batch, precision] = engine.precision
            seconds[level, batch, precision].append(_step_seconds(priors[level], engine, batch, n_steps))
            on_turn(1)
    bandwidth = STREAM_BYTES / statistics.median(seconds["stream"])
    rows = [
        _row(priors[level], batch, chosen[level, batch, precision], statistics.median(seconds[level, batch, precision]), bandwidth)
        for level, batch, precision in keys
    ]  # fmt: skip
    audio = [
        {"batch": batch, "precision": precision, "audio_seconds_per_second": _audio_speed(priors, rows[i :: len(batches) * len(precisions)])}
        for i, (batch, precision) in enumerate((b, p) for b in batches for p in precisions)
    ]  # fmt: skip
    return {
        "device": str(device), "threads": torch.get_num_threads(), "bytes_per_second": bandwidth, "levels": rows, "audio": audio,
    }  # fmt: skip


def _row(prior: Prior, batch: int, precision: str, seconds: float, bandwidth: float) -> dict[str, Any]:
    n_weights = sum(p.numel() for p in prior.transformer.parameters()) + prior.head.weight.numel()
    weight_bytes = n_weights * BYTES[precision]
    return {
        "level": prior.spec.level, "batch": batch, "precision": precision, "parameters": n_weights,
        "steps_per_second": 1 / seconds, "codes_per_second": batch / seconds,
        "limit_steps_per_second": bandwidth / weight_bytes, "share_of_limit": weight_bytes / seconds / bandwidth,
    }  # fmt: skip


def _audio_speed(priors: Sequence[Prior], rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of audio, of all sequences of the batch together, a second."""
    seconds = sum(prior.spec.code_rate / row["steps_per_second"] for prior, row in zip(priors, rows, strict=True))
    return rows[0]["batch"] / seconds


@torch.inference_mode()
def _step_seconds(prior: Prior, engine: Engine, batch: int, n_steps: int) -> float:
    """Of one step once the window is full, with the likeliest code fed back."""
    device, c = prior.head.weight.device, prior.config.transformer
    previous = torch.full((batch, c.window), prior.spec.codebook_size, device=device)
    context = torch.zeros(batch, c.window, c.dim, device=device)
    engine.prefill(previous, context)

    def steps(n: int) -> Tensor:
        codes = previous[:, 0]
        for _ in range(n):
            codes = engine.step(codes, context[:, 0]).argmax(dim=-1)
        return codes

    steps(4)
    return _seconds(lambda: steps(n_steps), device) / n_steps


def _seconds(function: Callable[[], Tensor], device: torch.device) -> float:
    """On the CPU of this thread's own time, so that other processes count less; else of the clock, the device waited for."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    function().flatten()[0].item()  # waits for the device
    return clock() - began


def bench_table(result: dict[str, Any]) -> list[str]:
    """The result in lines."""
    lines = [
        f"{result['device']}, {result['threads']} threads, memory read at {result['bytes_per_second'] / 1e9:.1f} GB/s",
        "level  batch  precision  parameters   steps/s   codes/s  share of the memory's speed",
    ]
    for row in result["levels"]:
        lines.append(
            f"{row['level']:5}  {row['batch']:5}  {row['precision']:9}  {row['parameters'] / 1e6:8.1f} M  {row['steps_per_second']:8.0f}  "
            f"{row['codes_per_second']:8.0f}  {row['share_of_limit']:8.2f}"
        )
    for row in result["audio"]:
        lines.append(
            f"batch {row['batch']}, {row['precision']}: {row['audio_seconds_per_second']:.1f} seconds of audio a second, all levels"
        )
    return lines
