"""A few real steps of a stage on the device at hand, and none of its results: what `audiovq plan` measures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from audiovq.data.shards import ShardIndex, Shards, ShardTrack, table_of
from audiovq.data.tracks import Scan
from audiovq.recipe import TrainingConfig
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.loop import Training
from audiovq.training.task import Task
from audiovq.training.tokenizer_task import TokenizerTask

PATIENCE_SECONDS = 20.0  # a step that takes longer is extrapolated from smaller ones
FEW = 4  # examples
Clock = Callable[[], float]


class PretendedShards:
    """Shards as they will be, with codes drawn at random: what `Shards` offers to training."""

    def __init__(self, scan: Scan, model: VQVAEConfig, chroma: bool):
        self.folder = Path("codes")
        tracks = []
        for track in scan.tracks:
            n = int(track.seconds * model.sample_rate)
            lengths = [max(1, -(-n // hop)) for hop in model.hop_lengths]
            tracks.append(
                ShardTrack(track.path, track.sha256, track.split, track.labels, n, 0, [0] * model.n_levels, lengths)
            )
        self.index = ShardIndex(
            "0" * 64, model.sample_rate, list(model.hop_lengths), model.codebook_size, chroma, 1, table_of(tracks)
        )

    def codes(self, track: ShardTrack, level: int, start: int = 0, end: int | None = None) -> np.ndarray:
        n = min(track.lengths[level], track.lengths[level] if end is None else end) - start
        return np.random.default_rng([level, start]).integers(self.index.codebook_size, size=n)

    def chroma(self, track: ShardTrack) -> np.ndarray:
        return np.zeros(track.lengths[0], dtype=np.uint8)


def pretended(scan: Scan, model: VQVAEConfig, chroma: bool) -> Shards:
    return cast(Shards, PretendedShards(scan, model, chroma))


@dataclass(frozen=True)
class Measured:
    """Of one step of the whole batch on the device at hand."""

    seconds: float
    data_seconds: float  # to prepare its examples in one process, music at hand
    examples: int  # the largest number that were really computed together
    memory: int | None  # bytes at most, where the device counts them


def rehearse(
    build: Callable[[TrainingConfig], Task], config: TrainingConfig, bf16: bool, clock: Clock = time.perf_counter
) -> Measured:
    """Time a step of the batch after the first one; if that would take too long, a line through two smaller ones.

    Args:
        build: makes the task for such a config; each time with new weights.
    """
    one = _step(build, config, 1, bf16, clock)
    n = config.batch_size
    if n == 1:
        return one
    if one.seconds * n <= PATIENCE_SECONDS:
        return _step(build, config, n, bf16, clock)
    few = min(n, FEW)
    more = _step(build, config, few, bf16, clock)
    slope = max(0.0, more.seconds - one.seconds) / (few - 1)
    return Measured(one.seconds + slope * (n - 1), one.data_seconds * n, few, more.memory)


def _step(
    build: Callable[[TrainingConfig], Task], config: TrainingConfig, n: int, bf16: bool, clock: Clock
) -> Measured:
    small = config.model_copy(update={"batch_size": n, "device_batch_size": min(n, config.device_batch_size or n)})
    task = build(small)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    cuda = accelerator.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        training = Training(task, "plan", Path(folder), small, 0, 0, accelerator)
        if isinstance(task, TokenizerTask):
            task.n_steps.fill_(2**40)  # past the start-up, which happens only once
        batches = training.batches("train", 0, 3)
        waited, times = 0.0, []
        for step in range(3):
            batch, waited = _timed(lambda: next(batches), cuda, clock)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            times.append(_timed(lambda batch=batch, step=step: training.step(step, batch), cuda, clock)[1])
            if step and times[-1] > PATIENCE_SECONDS / 4:
                break
    return Measured(min(times[1:]), waited, n, torch.cuda.max_memory_allocated() if cuda else None)


def _timed(call: Callable[[], Any], cuda: bool, clock: Clock = time.perf_counter) -> tuple[Any, float]:
    began = clock()
    result = call()
    if cuda:
        torch.cuda.synchronize()
    return result, clock() - began


@torch.inference_mode()
def encode_seconds(model: VQVAEConfig, seconds: float, device: torch.device) -> float:
    """Seconds that an encoder of such a config takes for so many seconds of music."""
    network = VQVAE(model).to(device).eval()
    waveform = torch.zeros(1, model.channels, int(seconds * model.sample_rate), device=device)
    network.encode(waveform[..., : model.sample_rate])
    return _timed(lambda: network.encode(waveform)[0].sum().item(), False)[1]
