"""Old names of recipe keys, options, model settings and files, and their current names. This module knows all of them.
Everything else in the package uses the current names only."""

import copy
import re
from collections.abc import Container, Mapping
from typing import Any, TypeVar

from audiovq.utils.progress import say

# Dotted paths in a recipe, old and new; `*` stands for each item of a list. Renamed in version 0.2.
RECIPE_KEYS = {
    "tokenizer.model.decorrelate": "tokenizer.model.whiten_latents",
    "tokenizer.model.quantize_after": "tokenizer.vq_start_step",
    "tokenizer.losses.convergence": "tokenizer.losses.spectral_convergence",
    "tokenizer.losses.waveform_first": "tokenizer.losses.waveform_warmup_steps",
    "priors.*.model.halo": "priors.*.model.context_codes",
}
# Keys of a model's config.json, by the kind of the model; None: the model has no such setting any more.
MODEL_KEYS: dict[str, dict[str, str | None]] = {
    "tokenizer": {"decorrelate": "whiten_latents", "quantize_after": None},
    "prior": {"halo": "context_codes"},
}
# Of tokenizer.model.bands, which all configs have: they were of another topology `bands`, which no released model had.
OLD_BANDS = ("margin", "n_mels", "frames_per_code", "decoder_dim")
# Tensors in weights and checkpoints that networks no longer have: the training task counts its steps.
OBSOLETE_TENSORS = {"n_steps", "tokenizer.n_steps"}
# Of `Generator`, and what to do instead.
REMOVED_KEYWORDS: dict[str, str] = dict.fromkeys(("segments", "parallel"), "leave it out, as if it were 1")
REMOVED_KEYWORDS["journal"] = "repeat the call, which gives the same codes"
OLD_SCAN_CACHE = "looks.jsonl"  # in a run's data folder; now scan_cache.jsonl

T = TypeVar("T")

# Options of a command, old and new.
OPTIONS = {"sample": {"--n": "--num", "--item": "--index"}}
REMOVED_PRECISIONS = ("bf16", "int8")  # of sampling on the CPU; removed in version 0.2
REMOVED_COMMANDS = {  # and what to use instead
    "bench": "in a clone of the repository, python benchmarks/sampling_speed.py MODEL does the same",
    "completion": 'for bash, put eval "$(_AUDIOVQ_COMPLETE=bash_source audiovq)" into ~/.bashrc; zsh_source and '
    "fish_source are for the other shells",
}
REMOVED_OPTIONS = {  # old, and what to use instead
    "live": {"--raw": "--out -, whose WAV header players skip"},
    "eval": {"--perceptual": "the distances that are printed without it"},
    "plan": {"--device-bandwidth": "--device-tflops and --utilisation, the share of them that training reaches"},
    "sample": {
        "--check-copies": "`audiovq copies` with the new file",
        "--codes": "--edit",
        "--keep-audio": "--edit, which keeps it",
        **dict.fromkeys(["--segments", "--parallel"], "the command without it"),
    },
}


def current_options(arguments: list[str]) -> list[str]:
    """A command line with current options; prints a line for each old one, ValueError for one that is gone."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command in REMOVED_COMMANDS:
        raise ValueError(f"{command}: no longer exists; {REMOVED_COMMANDS[command]}")
    names, found = OPTIONS.get(command, {}), []
    for word in arguments:
        option, equals, value = word.partition("=")
        if option in REMOVED_OPTIONS.get(command, {}):
            raise ValueError(f"{command}: {option} no longer exists; use {REMOVED_OPTIONS[command][option]}")
        if option in names:
            say(f"{command}: {option} is now called {names[option]}; the old name still works")
            option = names[option]
        found.append(option + equals + value)
    return found


def check_keywords(names: Container[str]) -> None:
    """Raises ValueError for an argument of `Generator` that no longer exists."""
    for name, advice in REMOVED_KEYWORDS.items():
        if name in names:
            raise ValueError(f"{name} no longer exists; {advice}")


def current_precision(precision: str, known: Container[str]) -> str:
    """A precision of sampling; one that no longer exists becomes "auto", and a line is printed."""
    if precision not in REMOVED_PRECISIONS or precision in known:
        return precision
    say(f"precision: {precision} no longer exists on this device; auto is used instead")
    return "auto"


def current_recipe(mapping: dict[str, Any], source: str, quiet: bool = False) -> dict[str, Any]:
    """A recipe's mapping with current keys; unless `quiet`, one line with the name of the `source` is printed
    for each old key. Raises ValueError if a key has both its old and its new name."""
    renamed = copy.deepcopy(mapping)
    for old, new in RECIPE_KEYS.items():
        (*old_path, old_key), (*new_path, new_key) = old.split("."), new.split(".")
        holders = zip(_mappings(renamed, old_path), _mappings(renamed, new_path), strict=False)
        found = [pair for pair in holders if old_key in pair[0]]
        for holder, target in found:
            if new_key in target:
                raise ValueError(f"{source}: {old}: expected its old or its new name, {new_key}, found both")
            target[new_key] = holder.pop(old_key)
        if found and not quiet:
            say(f"{source}: {old} is now called {new}; the old name still works")
    for bands in _mappings(renamed, ["tokenizer", "model", "bands"]):
        for key in OLD_BANDS:
            bands.pop(key, None)
    stages = renamed.get("priors")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and stage.pop("lora", None):
            raise ValueError(f"{source}: priors.*.lora no longer exists; leave it out, so that all weights are trained")
    return renamed


def current_key(path: str) -> str:
    """The current name of a dotted key, as in `--set priors.0.model.halo=2`; prints a line if it is old."""
    for old, new in RECIPE_KEYS.items():
        if match := re.fullmatch(re.escape(old).replace(r"\*", r"(\d+)"), path):
            found = new.replace("*", match.group(1)) if match.groups() else new
            say(f"--set {path}: the key is now called {found}; the old name still works")
            return found
    return path


def current_model_config(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model, which is a "tokenizer" or a "prior", with current keys."""
    names = MODEL_KEYS[kind]
    if "bands" in config:
        config = config | {"bands": {k: v for k, v in config["bands"].items() if k not in OLD_BANDS}}
    renamed = ((names.get(key, key), value) for key, value in config.items())
    return {key: value for key, value in renamed if key is not None}


def without_obsolete(found: Mapping[str, T], expected: Container[str]) -> dict[str, T]:
    """The tensors of a file, or facts about them, without obsolete ones that are not `expected`."""
    return {name: item for name, item in found.items() if name in expected or name not in OBSOLETE_TENSORS}


def _mappings(place: Any, path: list[str]) -> list[dict[str, Any]]:
    if path and path[0] == "*":
        return [found for item in (place if isinstance(place, list) else ()) for found in _mappings(item, path[1:])]
    if not isinstance(place, dict):
        return []
    return _mappings(place.get(path[0]), path[1:]) if path else [place]
