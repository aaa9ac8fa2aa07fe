"""What a recipe would take, stage by stage: memory, hours and disk. It trains nothing.

On the device at hand steps are timed; for GPUs that are not here they are predicted from what is counted. Either way the
memory is counted (see `training/cost.py`), and every figure comes with its reasoning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from audiovq.data.tracks import Scan, scan
from audiovq.planning.cost import Cost, Device, count_encoding, count_pass
from audiovq.planning.rehearsal import encode_seconds, pretended, rehearse
from audiovq.recipe import Recipe, TrainingConfig
from audiovq.tokenizer.streaming import CHUNK_SECONDS
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.batches import BatchSplit
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.devices import use_bf16
from audiovq.training.task import Task
from audiovq.training.prior_task import PriorTask
from audiovq.training.tokenizer_task import TokenizerTask
from audiovq.utils.progress import say

UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
STEP_BYTES = 40  # that clipping and AdamW move for each weight
EVALUATION = 1 / 3  # of a step: it has no backward pass


def parse_device(
    gpus: int | None = None, device_memory: str | None = None, device_tflops: float | None = None,
    device_bandwidth: float | None = None, utilisation: float | None = None,
) -> tuple[Device | None, int]:  # fmt: skip
    """The options of `audiovq plan`: a device that is not here and how many of it; None is the one at hand.

    Raises:
        ValueError: a size that is none.
    """
    given = {"tflops": device_tflops, "bandwidth": device_bandwidth, "used_tflops": utilisation}
    if device_memory is not None:
        found = re.fullmatch(r"([\d.]+)\s*([KMGT]?I?B?)", device_memory.strip().upper())
        if not found or found[2] not in UNITS or not found[1].replace(".", "", 1).isdigit():
            raise ValueError(f"--device-memory {device_memory}: expected a size such as 80GB or 24GiB")
        given["memory"] = float(found[1]) * UNITS[found[2]]
    given = {name: value for name, value in given.items() if value is not None}
    return (replace(Device(), **given) if given or gpus else None), gpus or 1


def make_plan(recipe: Recipe, device: Device | None = None, n_devices: int = 1) -> dict[str, Any]:
    """The plan as plain values; see `plan_lines`.

    Args:
        device: None measures here.
    Raises:
        ValueError: no music, or a batch that is too small for so many devices.
    """
    if not recipe.data.folder:
        raise ValueError(f"{recipe.name}: no music folder; give one with --data DIR")
    planner = Planner(recipe, scan(Path(recipe.data.folder), recipe.data), device, n_devices)
    stages = planner.stages()
    hours = [stage["hours"] for stage in stages]
    return {
        "recipe": recipe.name, "devices": n_devices, "device": planner.device_name, "memory_bytes": planner.memory,
        "bf16": planner.bf16, "music_hours": planner.scan.report()["hours"], "stages": stages,
        "hours": None if None in hours else sum(hours), "fits": all(stage["fits"] for stage in stages),
        "disk_bytes": sum(stage["disk_bytes"] for stage in stages), "assumptions": planner.assumptions(),
    }  # fmt: skip


class Planner:
    """One recipe on one kind of device."""

    def __init__(self, recipe: Recipe, found: Scan, device: Device | None, n_devices: int):
        self.recipe, self.scan, self.device, self.n_devices = recipe, found, device, n_devices
        self.bf16 = use_bf16(recipe) if device is None else recipe.precision != "fp32"
        if device is None:
            cuda = torch.cuda.is_available()
            self.here = torch.device("cuda" if cuda else "cpu")
            self.device_name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
            ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            self.memory = float(torch.cuda.get_device_properties(0).total_memory if cuda else ram)
        else:
            self.device_name = f"{device.tflops:g} TFLOPS, {device.bandwidth:g} TB/s (not here)"
            self.memory = device.memory

    def stages(self) -> list[dict[str, Any]]:
        recipe = self.recipe
        found = [self.training("tokenizer", self.tokenizer, recipe.tokenizer.training)]
        if recipe.decoder_tuning:
            found.append(self.training("decoder", self.decoder, recipe.decoder_tuning.training))
        found.append(self.codes())
        for level in range(recipe.n_priors):
            found.append(self.training(f"prior-{level}", self.prior(level), recipe.prior(level).training))
        return found

    # --- the tasks, for any batch size --------------------------------------------------------------------------------

    def tokenizer(self, config: TrainingConfig, mode: FakeTensorMode | None = None) -> Task:
        stage = self.recipe.tokenizer.model_copy(update={"training": config})
        return TokenizerTask(stage, self.recipe.data, self.scan, self.recipe.seed)

    def decoder(self, config: TrainingConfig, mode: FakeTensorMode | None = None) -> Task:
        assert self.recipe.decoder_tuning is not None
        stage, tokenizer = self.recipe.decoder_tuning, self.recipe.tokenizer
        network = VQVAE(tokenizer.model)
        return DecoderTask(stage, tokenizer, self.recipe.data, self.scan, network, self.recipe.seed)

    def prior(self, level: int) -> Callable[..., Task]:
        stage, model = self.recipe.prior(level), self.recipe.tokenizer.model
        shards = pretended(self.scan.only(self.recipe.codes.only), model, stage.model.extra_inputs["chroma"])

        def build(config: TrainingConfig, mode: FakeTensorMode | None = None) -> Task:
            if mode is None:
                return PriorTask(stage, shards, level, self.recipe.seed)
            with mode:
                return PriorTask(stage, shards, level, self.recipe.seed)

        return build

    # --- the stages ---------------------------------------------------------------------------------------------------

    def training(self, title: str, build: Callable[..., Task], config: TrainingConfig) -> dict[str, Any]:
        say(f"plan: {title}")
        share = BatchSplit(config.batch_size, None, 0, self.n_devices).largest_share
        at_once = min(config.device_batch_size or share, share)
        whole = title == "tokenizer"  # it has its share as a whole in memory and goes through it in pieces

        def count(at_once: int) -> Cost:
            small = config.model_copy(update={"device_batch_size": at_once})
            n = share if whole else at_once
            return count_pass(lambda mode: build(small, mode), small, n, self.bf16, self.n_devices)

        usable = (self.device or Device()).usable * self.memory
        cost = asked = count(at_once)
        while cost.memory > usable and at_once > 1:
            at_once = -(-at_once // 2)
            cost = count(at_once)
        passes = BatchSplit(config.batch_size, at_once, 0, self.n_devices).n_microbatches
        seconds, measured = self.seconds(build, config, cost, at_once, 1 if whole else passes)
        evaluation = config.evaluate_batches / config.evaluate_steps * EVALUATION
        hours = None if seconds is None else config.steps * seconds * (1 + evaluation) / 3600
        codes = self.codes_a_step(title, config)
        return {
            "stage": title, "key": self.key(title), "fits": asked.memory <= usable, "memory_bytes": asked.memory, "parameters": cost.parameters,
            "memory_parts": {name: getattr(asked, name) for name in PARTS}, "device_batch_size": at_once,
            "fits_then": cost.memory <= usable, "memory_bytes_then": cost.memory, "passes": passes,
            "examples_a_step": config.batch_size, "examples_a_pass": cost.examples, "tflop_a_pass": cost.flops / 1e12, "terabytes_a_pass": cost.moved / 1e12,
            "operations_a_pass": cost.n_operations, "seconds_alone": self.device.alone(cost.work) if self.device else None, "seconds_a_step": seconds, "measured": measured, "steps": config.steps,
            "hours": hours, "codes_a_second": codes / seconds if seconds else None,
            "disk_bytes": self.disk(title, asked, config),
        }  # fmt: skip

    def seconds(
        self, build: Callable[..., Task], config: TrainingConfig, cost: Cost, at_once: int, passes: int
    ) -> tuple[float | None, dict[str, float] | None]:
        """Of a step; and what was measured, if this is done here."""
        if self.device is not None:
            sharded = getattr(config, "sharded", False)
            update = STEP_BYTES * cost.parameters / (self.n_devices if sharded else 1)
            traffic = self.device.bandwidth * 1e12 * self.device.used_bandwidth
            return passes * self.device.seconds(cost.work) + update / traffic, None
        if cost.memory > self.memory * Device().usable:
            return None, None
        small = config.model_copy(update={"device_batch_size": at_once})
        took = rehearse(build, small, self.bf16)
        return took.seconds, vars(took)

    def key(self, title: str) -> str:
        if title.startswith("prior"):
            return f"{self.recipe.prior_key(int(title[6:]))}.training"
        return "decoder_tuning.training" if title == "decoder" else "tokenizer.training"

    def codes_a_step(self, title: str, config: TrainingConfig) -> float:
        recipe = self.recipe
        if title.startswith("prior"):
            return config.batch_size * recipe.prior(int(title[6:])).model.transformer.context
        return config.batch_size * sum(
            recipe.tokenizer.crop_samples / hop for hop in recipe.tokenizer.model.hop_lengths
        )

    def codes(self) -> dict[str, Any]:
        """All tracks through the encoder, the training tracks `shifts` times."""
        recipe, model = self.recipe, self.recipe.tokenizer.model
        shifts = recipe.codes.shifts
        tracks = self.scan.only(recipe.codes.only).tracks
        seconds = sum(t.seconds * (shifts if t.split == "train" else 1) for t in tracks)
        chunk = float(CHUNK_SECONDS)
        cost = count_encoding(model, chunk)
        speed = self.device.seconds(cost.work) if self.device else encode_seconds(model, chunk, self.here)
        n_codes = seconds * sum(model.code_rates)
        chroma = any(stage.model.extra_inputs["chroma"] for stage in recipe.priors)
        disk = 2 * n_codes + (seconds * model.code_rates[0] if chroma else 0)
        return {
            "stage": "codes", "fits": cost.memory <= self.memory, "memory_bytes": cost.memory,
            "hours": seconds / chunk * speed / self.n_devices / 3600, "codes": round(n_codes), "shifts": shifts,
            "codes_a_second": self.n_devices * chunk * sum(model.code_rates) / speed, "disk_bytes": round(2 * disk),
            "seconds_of_music": seconds,
        }  # fmt: skip

    def disk(self, title: str, cost: Cost, config: TrainingConfig) -> int:
        """Two checkpoints, while one takes the other's place, the finished model and the samples."""
        model, samples = self.recipe.tokenizer.model, self.recipe.samples
        sharded = getattr(config, "sharded", False) and self.n_devices > 1
        state = (cost.weights + cost.moments + cost.averages) * (self.n_devices if sharded else 1)
        n = samples.n * (1 if title.startswith("prior") else 1 + model.n_levels)
        return 2 * state + cost.weights + round(n * samples.seconds * model.sample_rate) * model.channels * 2

    def assumptions(self) -> list[str]:
        lines = [
            f"{Device().usable:.0%} of a device's memory can be used; buffers within kernels are not counted, and attention "
            "keeps what it keeps on a CPU",
            "disk: two checkpoints at a time, codes twice while they become shards; pictures are not counted",
        ]
        if self.device is None:
            return [*lines, "a step takes what the faster of the second and third took here"]
        d = self.device
        return [
            *lines,
            f"an operation takes the longest of: its arithmetic at {d.used_tflops:.0%} of {d.tflops:g} TFLOPS (in float32 "
            f"{d.float32:.1%} of that), its traffic at {d.used_bandwidth:.0%} of {d.bandwidth:g} TB/s, {d.launch * 1e6:g} µs "
            "to start; unmeasured on a GPU",
            "data arrive in time, and devices talk to each other while they compute",
        ]


PARTS = ("weights", "moments", "averages", "gradients", "gathered", "activations")


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan for people: a line a stage, and below it why."""
    size, n = f"{plan['memory_bytes'] / 1e9:.3g} GB", plan["devices"]
    precision = "bfloat16" if plan["bf16"] else "float32"
    lines = [f"{plan['recipe']} on {n} × {plan['device']}, {size} each, in {precision}; {plan['music_hours']:.2f} hours of music"]  # fmt: skip
    for stage in plan["stages"]:
        lines += _codes_lines(stage) if stage["stage"] == "codes" else _stage_lines(stage, size)
    hours = "unknown" if plan["hours"] is None else _hours(plan["hours"])
    end = "everything fits" if plan["fits"] else "not everything fits as it is"
    lines.append(f"together: {hours}, at most {_gb(plan['disk_bytes'])} of disk; {end}")
    return [*lines, *(f"assumed: {line}" for line in plan["assumptions"])]


def _stage_lines(stage: dict[str, Any], size: str) -> list[str]:
    seconds, title = stage["seconds_a_step"], stage["stage"]
    took = "too large to be timed here" if seconds is None else (
        f"{seconds:.3g} s a step, {_hours(stage['hours'])} for {stage['steps']} steps"
    )  # fmt: skip
    fits = "fits" if stage["fits"] else "does not fit"
    parts = [f"{name} {_gb(value)}" for name, value in stage["memory_parts"].items() if value]
    lines = [
        f"{title}: {_gb(stage['memory_bytes'])} of {size}, {fits}; {took}",
        f"    memory: {' + '.join(parts)}; {stage['parameters'] / 1e6:.4g} million weights learn",
    ]
    if not stage["fits"]:
        key = "then it fits" if stage["fits_then"] else "and still does not fit: take a smaller network or crop"
        if not stage["fits_then"] and title.startswith("prior"):
            key += ", or sharded and activation_checkpointing on more devices"
        lines.append(
            f"    set {stage['key']}.device_batch_size to {stage['device_batch_size']}: {stage['passes']} passes a step, "
            f"{_gb(stage['memory_bytes_then'])}, {key}"
        )
    lines.append(
        f"    a pass over {stage['examples_a_pass']} examples: {stage['tflop_a_pass']:.3g} TFLOP and {stage['terabytes_a_pass']:.3g} TB moved in "
        f"{stage['operations_a_pass']} operations; {stage['examples_a_step']} examples a step"
    )
    if stage["seconds_alone"]:
        arithmetic, traffic, start = stage["seconds_alone"]
        lines.append(
            f"    a pass's time, if there were nothing else: arithmetic {arithmetic:.3g} s, traffic {traffic:.3g} s, "
            f"starting operations {start:.3g} s"
        )
    if stage["measured"]:
        seen = stage["measured"]["examples"]
        how = "measured" if seen == stage["examples_a_step"] else f"a line through steps of 1 and {seen} examples"
        peak = f", {_gb(stage['measured']['memory'])} at most" if stage["measured"]["memory"] else ""
        data = stage["measured"]["data_seconds"]
        lines.append(f"    time: {how}{peak}; {data:.2g} s to prepare a batch in one process")
    if seconds:
        lines.append(f"    {stage['codes_a_second']:.3g} codes a second; {_gb(stage['disk_bytes'])} of disk")
    return lines


def _codes_lines(stage: dict[str, Any]) -> list[str]:
    return [
        f"codes: {_hours(stage['hours'])} for {stage['codes'] / 1e6:.3g} million codes, {stage['codes_a_second']:.3g} a second",
        f"    {stage['seconds_of_music'] / 3600:.3g} hours of music, the training tracks {stage['shifts']} times; "
        f"{_gb(stage['memory_bytes'])} of memory, {_gb(stage['disk_bytes'])} of disk",
    ]


def _gb(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e8 else f"{n / 1e6:.3g} MB"


def _hours(hours: float) -> str:
    if hours > 72:
        return f"{hours:.0f} hours ({hours / 24:.3g} days)"
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
