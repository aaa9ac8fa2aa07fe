"""Estimates what a recipe takes, stage by stage: memory, hours and disk. It trains nothing.

Memory is counted (see `cost`). Time is measured on this machine's device, or predicted for GPUs that are
not here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from audiovq.data.tracks import Scan, scan
from audiovq.planning.cost import Cost, Device, count_encoding, count_pass
from audiovq.planning.rehearsal import Measured, measure, measure_encoding, random_shards
from audiovq.pretrained.adopt import adopt_pretrained
from audiovq.recipe import PriorTrainingConfig, Recipe, TrainingConfig
from audiovq.tokenizer.streaming import CHUNK_SECONDS
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.batches import BatchSplit
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.devices import use_bf16
from audiovq.training.prior_task import PriorTask
from audiovq.training.task import Task
from audiovq.training.tokenizer_task import TokenizerTask
from audiovq.utils.progress import say

UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
UPDATE_BYTES = 40  # memory traffic of clipping and AdamW for each weight
EVALUATION = 1 / 3  # of the time of a step, which has a backward pass, too
MEMORY_PARTS = ("weights", "moments", "averages", "gradients", "gathered", "activations")


def parse_device(
    gpus: int | None = None,
    device_memory: str | None = None,
    device_tflops: float | None = None,
    device_bandwidth: float | None = None,
    utilisation: float | None = None,
) -> tuple[Device | None, int]:
    """A GPU that is not here and how many, from the options of `audiovq plan`; None: this machine's device.

    Raises:
        ValueError: `device_memory` is not a size.
    """
    options = {"tflops": device_tflops, "bandwidth": device_bandwidth, "used_tflops": utilisation}
    if device_memory is not None:
        found = re.fullmatch(r"(\d+\.?\d*)\s*([KMGT]?I?B?)", device_memory.strip().upper())
        if not found or found[2] not in UNITS:
            raise ValueError(f"--device-memory {device_memory}: expected a size such as 80GB or 24GiB")
        options["memory"] = float(found[1]) * UNITS[found[2]]
    given = {name: value for name, value in options.items() if value is not None}
    return (replace(Device(), **given) if given or gpus else None), gpus or 1


def make_plan(recipe: Recipe, device: Device | None = None, n_devices: int = 1) -> dict[str, Any]:
    """The estimate as plain values, which `plan_lines` prints.

    Args:
        device: a GPU that is not here; None: this machine's device.
    Raises:
        ValueError: no music, or a batch that is too small for so many devices.
    """
    if not recipe.data.folder:
        raise ValueError(f"{recipe.name}: no music folder; give one with --data DIR")
    recipe = adopt_pretrained(recipe)
    planner = Planner(recipe, scan(Path(recipe.data.folder), recipe.data), device, n_devices)
    trained = [planner.plan_training(stage) for stage in planner.training_stages()]
    n = len(trained) - recipe.n_priors  # the codes come before the priors
    stages = [*trained[:n], planner.plan_codes(), *trained[n:]]
    hours = [stage["hours"] for stage in stages]
    return {
        "recipe": recipe.name,
        "devices": n_devices,
        "device": planner.device_name,
        "memory_bytes": planner.memory,
        "bf16": planner.bf16,
        "music_hours": planner.scan.report()["hours"],
        "stages": stages,
        "hours": None if None in hours else sum(hours),
        "fits": all(stage["fits"] for stage in stages),
        "disk_bytes": sum(stage["disk_bytes"] for stage in stages),
        "assumptions": planner.assumptions(),
    }


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe that trains a network."""

    title: str
    key: str  # of its training settings in the recipe
    config: TrainingConfig
    codes_per_example: float
    # Makes the task for a variant of `config`, within a mode in which tensors take no memory, if possible.
    build: Callable[[TrainingConfig, AbstractContextManager[Any]], Task]

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.config, PriorTrainingConfig) and self.config.sharded

    @property
    def is_prior(self) -> bool:
        return self.title.startswith("prior")

    def build_here(self, config: TrainingConfig) -> Task:
        return self.build(config, contextlib.nullcontext())


class Planner:
    """One recipe on one kind of device."""

    def __init__(self, recipe: Recipe, scan: Scan, device: Device | None, n_devices: int):
        self.recipe, self.scan, self.device, self.n_devices = recipe, scan, device, n_devices
        self.bf16 = use_bf16(recipe) if device is None else recipe.precision != "fp32"
        self.with_chroma = any(stage.model.extra_inputs["chroma"] for stage in recipe.priors)
        if device is not None:
            self.device_name = f"{device.tflops:g} TFLOPS, {device.bandwidth:g} TB/s (not here)"
            self.memory = device.memory
        elif torch.cuda.is_available():
            self.device_name = torch.cuda.get_device_name()
            self.memory = float(torch.cuda.get_device_properties(0).total_memory)
        else:
            self.device_name = f"CPU, {torch.get_num_threads()} threads"
            self.memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    # --- stages -----------------------------------------------------------------------------------

    def training_stages(self) -> list[Stage]:
        stages = [] if self.recipe.tokenizer.from_pretrained else [self._tokenizer_stage()]
        stages += [self._decoder_stage()] if self.recipe.decoder_tuning else []
        return stages + [self._prior_stage(level) for level in range(self.recipe.n_priors)]

    def _tokenizer_stage(self) -> Stage:
        recipe, stage = self.recipe, self.recipe.tokenizer

        def build(config: TrainingConfig, mode: AbstractContextManager[Any]) -> Task:
            changed = stage.model_copy(update={"training": config})
            return TokenizerTask(changed, recipe.data, self.scan, recipe.seed)

        return Stage("tokenizer", "tokenizer.training", stage.training, self._codes_per_crop(), build)

    def _decoder_stage(self) -> Stage:
        recipe, stage = self.recipe, self.recipe.decoder_tuning
        assert stage is not None

        def build(config: TrainingConfig, mode: AbstractContextManager[Any]) -> Task:
            network = VQVAE(recipe.tokenizer.model)
            return DecoderTask(stage, recipe.tokenizer, recipe.data, self.scan, network, recipe.seed)

        return Stage("decoder", "decoder_tuning.training", stage.training, self._codes_per_crop(), build)

    def _prior_stage(self, level: int) -> Stage:
        recipe, stage, key = self.recipe, self.recipe.prior(level), self.recipe.prior_key(level)
        shards = random_shards(self.scan.only(recipe.codes.only), recipe.tokenizer.model, self.with_chroma)

        def build(config: TrainingConfig, mode: AbstractContextManager[Any]) -> Task:
            with mode:
                return PriorTask(stage, shards, level, recipe.seed)

        context = stage.model.transformer.context
        return Stage(f"prior-{level}", f"{key}.training", stage.training, context, build)

    def _codes_per_crop(self) -> float:
        stage = self.recipe.tokenizer
        return sum(stage.crop_samples / hop for hop in stage.model.hop_lengths)

    # --- estimates --------------------------------------------------------------------------------

    def plan_training(self, stage: Stage) -> dict[str, Any]:
        """Memory, hours and disk of a stage; if it does not fit, also a smaller micro-batch that does."""
        say(f"plan: {stage.title}")
        config = stage.config
        usable = (self.device or Device()).usable * self.memory
        share = BatchSplit(config.batch_size, None, 0, self.n_devices).largest_share
        size = min(config.device_batch_size or share, share)
        cost = first = self._count(stage, size, share)
        while cost.memory > usable and size > 1:
            size = -(-size // 2)
            cost = self._count(stage, size, share)
        n_passes = BatchSplit(config.batch_size, size, 0, self.n_devices).n_microbatches
        seconds, measured = self._step_seconds(stage, cost, size, share, usable)
        # Evaluation takes a share of the time of training.
        evaluation = EVALUATION * config.evaluate_batches / config.evaluate_steps
        return {
            "stage": stage.title,
            "key": stage.key,
            "fits": first.memory <= usable,
            "memory_bytes": first.memory,
            "memory_parts": {name: getattr(first, name) for name in MEMORY_PARTS},
            "parameters": cost.parameters,
            "device_batch_size": size,
            "fits_then": cost.memory <= usable,
            "memory_bytes_then": cost.memory,
            "passes": n_passes,
            "examples_a_step": config.batch_size,
            "examples_a_pass": cost.examples,
            "tflop_a_pass": cost.work.flops / 1e12,
            "steps": config.steps,
            "seconds_a_step": seconds,
            "measured": asdict(measured) if measured else None,
            "hours": None if seconds is None else config.steps * seconds * (1 + evaluation) / 3600,
            "codes_a_second": config.batch_size * stage.codes_per_example / seconds if seconds else None,
            "disk_bytes": self._disk_bytes(stage, first),
        }

    def _count(self, stage: Stage, size: int, share: int) -> Cost:
        """One pass over a micro-batch of `size` examples."""
        config = stage.config.model_copy(update={"device_batch_size": size})
        # The tokenizer's task has its whole share in memory and splits it itself.
        n = share if stage.title == "tokenizer" else size
        return count_pass(lambda mode: stage.build(config, mode), config, n, self.bf16, self.n_devices)

    def _step_seconds(
        self, stage: Stage, cost: Cost, size: int, share: int, usable: float
    ) -> tuple[float | None, Measured | None]:
        """Predicted or measured seconds of a step; None if it does not fit on this machine."""
        if self.device is not None:
            n_passes = -(-share // cost.examples)
            n_weights = cost.parameters / (self.n_devices if stage.is_sharded else 1)
            update = UPDATE_BYTES * n_weights / self.device.bytes_per_second
            return n_passes * self.device.seconds(cost.work) + update, None
        if cost.memory > usable:
            return None, None
        config = stage.config.model_copy(update={"device_batch_size": size})
        measured = measure(stage.build_here, config, self.bf16)
        return measured.seconds, measured

    def _disk_bytes(self, stage: Stage, cost: Cost) -> int:
        """The finished model, samples, and two checkpoints, while a new one replaces an old one."""
        model, samples = self.recipe.tokenizer.model, self.recipe.samples
        checkpoint = (cost.weights + cost.moments + cost.averages) * (self.n_devices if stage.is_sharded else 1)
        n_waveforms = samples.n * (1 if stage.is_prior else 1 + model.n_levels)
        n_samples = round(n_waveforms * samples.seconds * model.sample_rate)
        return 2 * checkpoint + cost.weights + 2 * n_samples * model.channels

    def plan_codes(self) -> dict[str, Any]:
        """Memory, hours and disk of encoding all tracks, the training tracks `shifts` times."""
        model, shifts = self.recipe.tokenizer.model, self.recipe.codes.shifts
        tracks = self.scan.only(self.recipe.codes.only).tracks
        seconds = sum(track.seconds * (shifts if track.split == "train" else 1) for track in tracks)
        chunk, rate = float(CHUNK_SECONDS), sum(model.code_rates)
        cost = count_encoding(model, chunk)
        if self.device is not None:
            chunk_seconds = self.device.seconds(cost.work)
        else:
            here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            chunk_seconds = measure_encoding(model, chunk, here)
        # Two bytes for a code, one for a pitch class; all of them twice while tracks become shards.
        disk_bytes = 2 * seconds * (2 * rate + (model.code_rates[0] if self.with_chroma else 0))
        return {
            "stage": "codes",
            "fits": cost.memory <= self.memory,
            "memory_bytes": cost.memory,
            "hours": seconds / chunk * chunk_seconds / self.n_devices / 3600,
            "codes": round(seconds * rate),
            "shifts": shifts,
            "codes_a_second": self.n_devices * chunk * rate / chunk_seconds,
            "disk_bytes": round(disk_bytes),
            "seconds_of_music": seconds,
        }

    def assumptions(self) -> list[str]:
        lines = [
            f"{Device().usable:.0%} of a device's memory can be used; buffers of kernels are not counted",
            "disk: two checkpoints at a time, and codes twice while they become shards; without pictures",
        ]
        d = self.device
        if d is None:
            return [*lines, "a step takes as long as the faster of the second and third one here"]
        return [
            *lines,
            f"an operation takes the longest of its arithmetic at {d.used_tflops:.0%} of {d.tflops:g} TFLOPS "
            f"(in float32 {d.float32:.1%} of that), its traffic at {d.used_bandwidth:.0%} of {d.bandwidth:g} TB/s, and "
            f"{d.launch * 1e6:g} µs to start; this was not checked on a GPU",
            "steps never wait for data, nor for the exchange of gradients",
        ]


# --- in words -------------------------------------------------------------------------------------


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan to print: a line for each stage, and its reasons below."""
    size, precision = f"{plan['memory_bytes'] / 1e9:.3g} GB", "bfloat16" if plan["bf16"] else "float32"
    lines = [
        f"{plan['recipe']} on {plan['devices']} × {plan['device']}, {size} each, in {precision}; "
        f"{plan['music_hours']:.2f} hours of music"
    ]
    for stage in plan["stages"]:
        lines += _codes_lines(stage) if stage["stage"] == "codes" else _stage_lines(stage, size)
    hours = "unknown time" if plan["hours"] is None else _hours(plan["hours"])
    fits = "everything fits" if plan["fits"] else "not everything fits with these settings"
    lines.append(f"together: {hours}, at most {_gb(plan['disk_bytes'])} of disk; {fits}")
    return [*lines, *(f"assumed: {line}" for line in plan["assumptions"])]


def _stage_lines(stage: dict[str, Any], size: str) -> list[str]:
    seconds = stage["seconds_a_step"]
    time = "too large to be timed here"
    if seconds is not None:
        time = f"{seconds:.3g} s per step, {_hours(stage['hours'])} for {stage['steps']} steps"
    parts = [f"{name} {_gb(value)}" for name, value in stage["memory_parts"].items() if value]
    fits = "fits" if stage["fits"] else "does not fit"
    lines = [
        f"{stage['stage']}: {_gb(stage['memory_bytes'])} of {size}, {fits}; {time}",
        f"    memory: {' + '.join(parts)}; {stage['parameters'] / 1e6:.4g} million trainable weights",
    ]
    if not stage["fits"]:
        result = "which fits"
        if not stage["fits_then"]:
            result = "which still does not fit: use a smaller network or crop"
        if not stage["fits_then"] and stage["stage"].startswith("prior"):
            result += ", or sharded and activation_checkpointing on more devices"
        lines.append(
            f"    set {stage['key']}.device_batch_size to {stage['device_batch_size']}: {stage['passes']} passes "
            f"per step, {_gb(stage['memory_bytes_then'])}, {result}"
        )
    lines.append(
        f"    {stage['examples_a_step']} examples per step; {stage['tflop_a_pass']:.3g} TFLOP for a pass over "
        f"{stage['examples_a_pass']} of them"
    )
    if measured := stage["measured"]:
        n = measured["examples"]
        is_measured = n == stage["examples_a_step"]
        how = "measured" if is_measured else f"extrapolated from steps of 1 and {n} examples"
        peak = f", at most {_gb(measured['memory'])} of memory" if measured["memory"] else ""
        lines.append(f"    time: {how}{peak}; {measured['data_seconds']:.2g} s to load a batch in one process")
    if seconds:
        lines.append(f"    {stage['codes_a_second']:.3g} codes per second; {_gb(stage['disk_bytes'])} of disk")
    return lines


def _codes_lines(stage: dict[str, Any]) -> list[str]:
    n, speed, hours = stage["codes"] / 1e6, stage["codes_a_second"], stage["seconds_of_music"] / 3600
    return [
        f"codes: {_hours(stage['hours'])} for {n:.3g} million codes, {speed:.3g} per second",
        f"    {hours:.3g} hours of music, with the training tracks {stage['shifts']} times; "
        f"{_gb(stage['memory_bytes'])} of memory, {_gb(stage['disk_bytes'])} of disk",
    ]


def _gb(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e8 else f"{n / 1e6:.3g} MB"


def _hours(hours: float) -> str:
    if hours > 72:
        return f"{hours:.0f} hours ({hours / 24:.3g} days)"
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
