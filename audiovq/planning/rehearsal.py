"""Times a few real steps of a stage on this machine's device, for `audiovq plan`."""

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

from audiovq.data.shards import ShardIndex, Shards, ShardTrack
from audiovq.data.tracks import Scan
from audiovq.planning.cost import skip_start_up
from audiovq.recipe import TrainingConfig
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.loop import Training
from audiovq.training.task import Task

MAX_SECONDS = 20.0  # longer steps are extrapolated from smaller ones
FEW = 4  # examples


class RandomShards:
    """Shards as a data set will have them, but with random codes."""

    def __init__(self, scan: Scan, model: VQVAEConfig, chroma: bool):
        self.folder = Path("codes")
        tracks = []
        for track in scan.tracks:
            n = int(track.seconds * model.sample_rate)
            lengths, offsets = [max(1, -(-n // hop)) for hop in model.hop_lengths], [0] * model.n_levels
            facts = {key: getattr(track, key) for key in ("path", "sha256", "split", "labels")}
            place = {"n_samples": n, "shard": 0, "offsets": tuple(offsets), "lengths": tuple(lengths)}
            tracks.append(ShardTrack(**facts, **place))
        hops = list(model.hop_lengths)
        self.index = ShardIndex("0" * 64, model.sample_rate, hops, model.codebook_size, chroma, 1, tracks)

    def codes(self, track: ShardTrack, level: int, start: int = 0, end: int | None = None) -> np.ndarray:
        n = min(track.lengths[level], track.lengths[level] if end is None else end) - start
        return np.random.default_rng([level, start]).integers(self.index.codebook_size, size=n)

    def chroma(self, track: ShardTrack) -> np.ndarray:
        return np.zeros(track.lengths[0], dtype=np.uint8)


def random_shards(scan: Scan, model: VQVAEConfig, chroma: bool) -> Shards:
    return cast(Shards, RandomShards(scan, model, chroma))


@dataclass(frozen=True)
class Measured:
    """One step over a whole batch on this machine."""

    seconds: float
    data_seconds: float  # to load its examples in one process
    examples: int  # the most that were really computed in a step
    memory: int | None  # bytes at most; None: the device does not count them


def measure(
    build: Callable[[TrainingConfig], Task],
    config: TrainingConfig,
    bf16: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Time a step after the first one; if it would take too long, extrapolate from steps of 1 and 4 examples.

    Args:
        build: makes a new task.
    """
    one = _measure_step(build, config, 1, bf16, clock)
    n = config.batch_size
    if n == 1:
        return one
    if one.seconds * n <= MAX_SECONDS:
        return _measure_step(build, config, n, bf16, clock)
    few = min(n, FEW)
    more = _measure_step(build, config, few, bf16, clock)
    slope = max(0.0, more.seconds - one.seconds) / (few - 1)
    return Measured(one.seconds + slope * (n - 1), one.data_seconds * n, few, more.memory)


def _measure_step(
    build: Callable[[TrainingConfig], Task], config: TrainingConfig, n: int, bf16: bool, clock: Callable[[], float]
) -> Measured:
    sizes = {"batch_size": n, "device_batch_size": min(n, config.device_batch_size or n)}
    small = config.model_copy(update=sizes)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    on_gpu = accelerator.device.type == "cuda"

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        began = clock()
        result = call()
        if on_gpu:
            torch.cuda.synchronize()
        return result, clock() - began

    with tempfile.TemporaryDirectory() as folder:
        training = Training(build(small), Path(folder), small, accelerator)
        skip_start_up(training.task)
        batches = training.batches("train", 0, 3)
        data_seconds, times = 0.0, []
        for step in range(3):
            batch, data_seconds = timed(lambda: next(batches))
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            times.append(timed(lambda batch=batch, step=step: training.step(step, batch))[1])
            if step and times[-1] > MAX_SECONDS / 4:
                break
    return Measured(min(times[1:]), data_seconds, n, torch.cuda.max_memory_allocated() if on_gpu else None)


@torch.inference_mode()
def measure_encoding(model: VQVAEConfig, seconds: float, device: torch.device) -> float:
    """Seconds that an encoder takes for so many seconds of music."""
    network = VQVAE(model).to(device).eval()
    waveform = torch.zeros(1, model.channels, int(seconds * model.sample_rate), device=device)
    network.encode(waveform[..., : model.sample_rate])  # the first call is slower
    began = time.perf_counter()
    network.encode(waveform)[0].sum().item()  # waits for the device
    return time.perf_counter() - began
