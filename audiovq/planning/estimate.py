"""Estimates what a recipe takes, within seconds: memory, hours, and sizes that fit. It trains nothing. Arithmetic and
activations are counted in one pass over one example: a prior on torch's meta device, tokenizer and decoder on a short
crop, because both grow in proportion to its length."""

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from audiovq.data.audio import audio_info
from audiovq.data.music import SAMPLES, Scan, table_of
from audiovq.data.shards import Shards
from audiovq.data.sources import local_music
from audiovq.data.tracks import find_audio
from audiovq.pretrained.checkpoint import Allowance
from audiovq.prior.prior import Prior, PriorSpec
from audiovq.recipe import PriorTrainingConfig, Recipe, TrainingConfig, longest_window
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.batches import BatchSplit
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.devices import use_bf16
from audiovq.training.tokenizer_task import TokenizerTask
from audiovq.utils.environment import cpu_count, errors_as
from audiovq.utils.progress import duration

STAGES = ("tokenizer", "decoder", "codes", "priors")
UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MEASURED_SECONDS, KERNEL = 0.5, 7
EFFICIENCY = 0.5  # the share of the measured speed that training reaches, roughly
USABLE = 0.9  # of a device's memory; the driver and fragmentation take the rest
EVALUATION = 1 / 3  # of the time of a training step, which has a backward pass, too
MAX_HEADERS = 200  # files whose length is read
# Weights of a prior for each code of its level in the music. Recipe quickstart has 200 to 300, and stops early.
# With far more, a prior learns the music by heart before it learns what other music has in common with it.
FITTING_WEIGHTS, TOO_MANY_WEIGHTS = 300, 1000
NO_TRACKS = Scan(Path(), table_of([]), [])


class Device(NamedTuple):
    name: str
    memory: float  # bytes
    flops: float  # a second, as training reaches them


def far_device(memory: str | None, tflops: float | None, utilisation: float | None) -> Device:
    """A GPU that is not here, default an A100; ValueError for a `memory` that is not a size."""
    found = re.fullmatch(r"(\d+\.?\d*)\s*([KMGT]?I?B?)", (memory or "80GB").strip().upper())
    if not found or found[2] not in UNITS:
        raise ValueError(f"--device-memory {memory}: expected a size such as 80GB or 24GiB")
    peak, share = tflops or 312.0, utilisation or 0.3
    return Device(f"{peak:g} TFLOPS (not here)", float(found[1]) * UNITS[found[2]], peak * 1e12 * share)


def this_device(bf16: bool) -> Device:
    """This machine's GPU, or its CPU without other work, with the speed that training reaches."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        name, memory = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
    else:
        name, memory = f"{cpu_count()} CPU cores, no GPU", psutil.virtual_memory().total
    # Matrix products and convolutions; on one thread of a CPU, because several wait for each other.
    n, dtype = 4096 if has_gpu else 512, torch.bfloat16 if bf16 else torch.float32
    x = torch.randn(n, n, device="cuda" if has_gpu else "cpu", dtype=dtype)
    work = "(x @ x)[0, 0].item(); torch.conv1d(x[None], kernel)[0, 0, 0].item()"
    given = {"x": x, "kernel": x[:, :, None].repeat(1, 1, KERNEL), "torch": torch}
    clock, n_cores = (time.perf_counter, 1) if has_gpu else (time.process_time, torch.get_num_threads())
    seconds = Timer(work, globals=given, timer=clock).blocked_autorange(min_run_time=MEASURED_SECONDS).median
    flops = 2 * n**3 + 2 * KERNEL * n * n * (n - KERNEL + 1)
    return Device(name, float(memory), EFFICIENCY * n_cores * flops / seconds)


def music_seconds(recipe: Recipe) -> float:
    """How much music the priors are trained on, by the index of the codes or headers of files; ValueError if none."""
    if recipe.codes.path:
        index = Shards(recipe.codes.path).index
        return float(index.tracks.column(SAMPLES).sum()) / index.sample_rate
    if not recipe.data.folder:
        raise ValueError(f"{recipe.name}: no music folder; give one with --data DIR")
    folder, patterns = local_music(recipe.data.folder), recipe.codes.only or ("*",)
    names = {file: file.relative_to(folder).as_posix() for file in find_audio(folder)}
    files = [file for file, name in names.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    read = files[:: -(-len(files) // MAX_HEADERS) or 1]
    seconds = 0.0
    for file in read:
        with contextlib.suppress(ValueError):  # the scan sets it aside
            seconds += audio_info(file).seconds
    if not seconds:
        raise ValueError(f"{folder}: no music that can be read; expected audio files (set --data)")
    return seconds * len(files) / len(read)


class Pass(NamedTuple):
    flops: float  # the backward pass takes twice the arithmetic of the forward pass
    activations: float  # bytes that the backward pass needs


def count_pass(network: nn.Module, forward: Callable[[], object], scale: float = 1.0, scores: int = 0) -> Pass:
    """Count one forward pass, multiplied by `scale`. Not activations are the network's weights, and attention
    `scores` of that many positions, which real devices do not store."""
    n_bytes = WeakIdKeyDictionary({x.untyped_storage(): 0 for x in (*network.parameters(), *network.buffers())})

    def note(x: Tensor) -> Tensor:
        if not (scores and x.ndim == 4 and x.shape[-2] == scores <= x.shape[-1]):
            n_bytes.setdefault(x.untyped_storage(), x.untyped_storage().nbytes())
        return x

    noted = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
    with FlopCounterMode(display=False) as counter, noted:
        result = forward()
        activations = sum(n_bytes.values())
        del result
    return Pass(3 * counter.get_total_flops() * scale, activations * scale)


def short_crop(recipe: Recipe) -> int:
    """Samples: an eighth of a crop, but no shorter than the windows of losses and discriminators."""
    crop, hop = recipe.tokenizer.crop_samples, recipe.tokenizer.model.hop_lengths[0]
    return min(crop, -(-max(crop // 8, 8192, longest_window(recipe)) // hop) * hop)


def prior_of(recipe: Recipe, level: int) -> Prior:
    """The network of a prior without values, and without labels, whose values are in the music."""
    model, stage = recipe.tokenizer.model, recipe.prior(level)
    labels: dict[str, list[str]] = {name: [] for name in stage.model.label_names}
    spec = PriorSpec(level, list(model.hop_lengths), model.sample_rate, model.codebook_size, "", labels, model.slots)
    with torch.device("meta"):
        return Prior(stage.model, spec)


def make_plan(
    recipe: Recipe, seconds: float, stages: Sequence[str] = STAGES, device: Device | None = None, n_devices: int = 1
) -> dict[str, Any]:
    """The estimate as plain values, which `plan_lines` prints. The recipe has the settings of its pretrained models
    (`adopt_pretrained`), and `seconds` of music for the priors, such as `music_seconds` finds. Default of `device` is
    this machine's. Raises ValueError for a network that cannot be built or trained, or a batch that is too small for
    so many devices."""
    device = device or this_device(use_bf16(recipe))
    planner = Planner(recipe, device, n_devices, seconds)
    estimates: dict[str, Callable[[], dict[str, Any]]] = {}
    if not recipe.codes.path:
        if "tokenizer" in stages and not recipe.tokenizer.from_pretrained:
            estimates["tokenizer"] = planner.tokenizer
        if "decoder" in stages and recipe.decoder_tuning:
            estimates["decoder"] = planner.decoder
        if "codes" in stages and not recipe.tokenizer.model.codec:  # a published codec's speed is not known here
            estimates["codes"] = planner.codes
    if "priors" in stages:
        estimates |= {f"prior-{i}": lambda i=i: planner.prior(i) for i in range(recipe.n_priors)}
    planned = []
    for title, estimate in estimates.items():
        most = psutil.virtual_memory().total // 2  # 4 bytes a number, and initial values come twice
        with errors_as(f"{title}: cannot be trained with these settings"), Allowance(most):
            planned.append({"stage": title, **estimate()})
    facts = {"recipe": recipe.name, "devices": n_devices, "device": device.name, "memory_bytes": device.memory}
    facts |= {"flops": device.flops, "music_hours": seconds / 3600, "stages": planned}
    fits = all(stage.get("fits", True) for stage in planned)
    return facts | {"hours": sum(stage["hours"] for stage in planned), "fits": fits}


class Planner(NamedTuple):
    recipe: Recipe
    device: Device
    n_devices: int
    seconds: float  # of music

    def tokenizer(self) -> dict[str, Any]:
        stage = self.recipe.tokenizer
        task = TokenizerTask(stage, self.recipe.data, NO_TRACKS, 0).eval()  # codebooks stay as they are
        n_samples = short_crop(self.recipe)
        waveform, scale = torch.zeros(1, stage.model.channels, n_samples), stage.crop_samples / n_samples
        one = count_pass(task, lambda: task(waveform), scale)
        return self._training("tokenizer.training", task.network, stage.training, one)

    def decoder(self) -> dict[str, Any]:
        recipe, n_samples = self.recipe, short_crop(self.recipe)
        task = DecoderTask(recipe, NO_TRACKS, VQVAE(recipe.tokenizer.model)).train()
        waveform = torch.zeros(1, recipe.tokenizer.model.channels, n_samples)

        def forward() -> object:
            reconstructions, real = task.tokenizer(waveform).reconstructions, task.discriminators(waveform)
            return task.decoder_terms(waveform, real, reconstructions), task.discriminator_loss(real, reconstructions)

        one = count_pass(task, forward, recipe.tokenizer.crop_samples / n_samples)
        return self._training("decoder_tuning.training", task.network, task.stage.training, one)

    def codes(self) -> dict[str, Any]:
        model, n_samples = self.recipe.tokenizer.model, short_crop(self.recipe)
        network, seconds = VQVAE(model).eval(), self.seconds * self.recipe.codes.shifts
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.encode(torch.zeros(1, model.channels, n_samples))
        flops = counter.get_total_flops() * seconds * model.sample_rate / n_samples
        hours = flops / self.device.flops / self.n_devices / 3600
        return {"codes": round(seconds * sum(model.code_rates)), "hours": hours}

    def prior(self, level: int) -> dict[str, Any]:
        stage, network = self.recipe.prior(level), prior_of(self.recipe, level)
        config, spec, c = network.config, network.spec, network.config.transformer
        # One window of its training; the inputs are as in `CodeWindows`.
        n, extra = c.context, config.extra_inputs
        lengths: dict[str, tuple[int, ...]] = dict.fromkeys(("position", "n_samples", "gap_end"), ())
        lengths |= {"codes": (n,), "previous": (n,), "labels": (len(spec.vocabularies),)}
        lengths |= {"coarser": (spec.level, -(-n // spec.ratio) + 2 * config.context_codes)}
        lengths |= {"text": (extra["text_bytes"],), "right": (extra["infill_codes"],)}
        lengths |= {"chroma": (-(-n // spec.top_ratio) + 1,)}
        batch = {name: torch.zeros((1, *shape), dtype=torch.int64, device="meta") for name, shape in lengths.items()}
        one = count_pass(network, lambda: network.loss(batch), scores=n)
        if stage.training.activation_checkpointing:  # the inputs of all layers, and the rest of one layer
            one = Pass(one.flops * 4 / 3, one.activations / c.n_layers + 4 * c.n_layers * c.context * c.dim)
        key = self.recipe.prior_key(level)
        planned = self._training(f"{key}.training", network, stage.training, one)
        n_codes = self.seconds * network.spec.code_rate
        per_code = planned["parameters"] / n_codes
        words = f"{n_codes:,.0f} codes of music, {per_code:,.1f} weights for each"
        too_large = per_code > TOO_MANY_WEIGHTS and not stage.from_pretrained
        if too_large:
            # Four layers have 48 · dim² weights.
            dim = max(32, int((FITTING_WEIGHTS * n_codes / 48) ** 0.5) // 32 * 32)
            words += ": far too large, it would learn the music by heart; more music, or a size that fits: "
            words += f"{key}.model.transformer: {{dim: {dim}, n_layers: 4, n_heads: 4}}"
        return planned | {"codes": round(n_codes), "size": words, "too_large": too_large}

    def _training(self, key: str, network: nn.Module, config: TrainingConfig, one: Pass) -> dict[str, Any]:
        """Memory and hours of a stage; and how many examples fit into the memory at once."""
        BatchSplit(config.batch_size, config.device_batch_size, 0, self.n_devices)  # raises if there is too little
        share = -(-config.batch_size // self.n_devices)
        size = min(config.device_batch_size or share, share)
        n_weights = sum(p.numel() for p in network.parameters() if p.requires_grad)
        memory: dict[str, float] = {"weights": sum(x.nbytes for x in network.state_dict().values())}
        memory |= {"gradients": 4 * n_weights, "moments": (4 if config.optimizer == "muon" else 8) * n_weights}
        memory["averages"] = 4 * n_weights if config.ema_decay else 0
        if isinstance(config, PriorTrainingConfig) and config.sharded and self.n_devices > 1:
            memory = {name: n_bytes / config.devices_per_copy(self.n_devices) for name, n_bytes in memory.items()}
        size_that_fits = int((USABLE * self.device.memory - sum(memory.values())) // one.activations)
        memory["activations"] = size * one.activations
        step_seconds = share * one.flops / self.device.flops
        evaluation = EVALUATION * config.evaluate_batches / config.evaluate_steps
        facts = {"key": key, "parameters": n_weights, "memory_bytes": sum(memory.values()), "memory_parts": memory}
        facts |= {"example_flops": one.flops, "fits": size <= size_that_fits, "size_that_fits": max(0, size_that_fits)}
        hours = config.steps * step_seconds * (1 + evaluation) / 3600
        return facts | {"steps": config.steps, "seconds_a_step": step_seconds, "hours": hours}


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan to print: a line for each stage, and what to change below it."""
    devices = f"{plan['devices']} × {plan['device']}, {_gb(plan['memory_bytes'])} of memory each"
    lines = [f"{plan['recipe']} on {devices}; {plan['music_hours']:.2g} hours of music"]
    for stage in plan["stages"]:
        time_needed = duration(3600 * stage["hours"])
        if stage["stage"] == "codes":
            lines.append(f"codes: {time_needed} for {stage['codes']:,} codes")
            continue
        sizes = f"{stage['parameters'] / 1e6:,.3g} million weights; {_gb(stage['memory_bytes'])} of memory"
        steps = f"{stage['steps']} steps of {stage['seconds_a_step']:.2g} s"
        lines.append(f"{stage['stage']}: {sizes}; {time_needed} for {steps}")
        if not stage["fits"]:
            size, advice = stage["size_that_fits"], "use a smaller network or crop, or more devices with sharded"
            if size:
                advice = f"set {stage['key']}.device_batch_size to {size}"
            lines.append(f"    does not fit into the memory: {advice}")
        if "size" in stage:
            lines.append(f"    {stage['size']}")
    fits = "everything fits" if plan["fits"] else "not everything fits with these settings"
    lines.append(f"together: {duration(3600 * plan['hours'])}; {fits}")
    flops = f"{plan['flops'] / 1e9:,.0f} GFLOPS in each device"
    return [*lines, f"assumed: {flops}, no waiting; on CPUs within a factor of two"]


def _gb(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e8 else f"{n / 1e6:.3g} MB"
