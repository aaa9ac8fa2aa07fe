"""Names of earlier versions: recipe keys, model configs and files that were renamed, and what they are called now.

This module knows all of them. Everything else in the package uses the current names only.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from audiovq.utils.progress import say

# Dotted paths in a recipe, old and new; `*` stands for each item of a list. Renamed in version 0.2.
RECIPE_KEYS = {
    "tokenizer.model.decorrelate": "tokenizer.model.whiten_latents",
    "tokenizer.losses.convergence": "tokenizer.losses.spectral_convergence",
    "tokenizer.losses.waveform_first": "tokenizer.losses.waveform_warmup_steps",
    "priors.*.model.halo": "priors.*.model.context_codes",
}
# Keys of a model's config.json, by the kind of the model; None: the key is gone.
MODEL_KEYS: dict[str, dict[str, str | None]] = {
    "tokenizer": {"decorrelate": "whiten_latents"},
    "prior": {"halo": "context_codes"},
}


def current_recipe(mapping: dict[str, Any], source: str, quiet: bool = False) -> dict[str, Any]:
    """A recipe's mapping with current keys; prints one line for each old key that it finds.

    Args:
        source: the file, for the message.
        quiet: print nothing, for recipes that a run folder saved.
    Raises:
        ValueError: a key stands there by its old and its new name.
    """
    renamed = copy.deepcopy(mapping)
    for old, new in RECIPE_KEYS.items():
        if _move(renamed, old.split("."), new.split("."), f"{source}: {old}") and not quiet:
            say(f"{source}: {old} is now called {new}; the old name still works")
    return renamed


def current_key(path: str) -> str:
    """The current name of a dotted recipe key, as in `--set priors.0.model.halo=2`; prints a line if it was renamed."""
    for old, new in RECIPE_KEYS.items():
        match = re.fullmatch(re.escape(old).replace(r"\*", r"(\d+)"), path)
        if match:
            found = new.replace("*", *match.groups()) if match.groups() else new
            say(f"--set {path}: the key is now called {found}; the old name still works")
            return found
    return path


def current_model_config(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """A model's config with current keys.

    Args:
        kind: "tokenizer" or "prior".
    """
    names = MODEL_KEYS[kind]
    renamed = ((names.get(key, key), value) for key, value in config.items())
    return {key: value for key, value in renamed if key is not None}


def _move(mapping: Any, old: list[str], new: list[str], place: str) -> bool:
    """Move the value at one path to another; True if there was one."""
    if old[0] == "*" and new[0] == "*":
        found = [_move(item, old[1:], new[1:], place) for item in mapping] if isinstance(mapping, list) else []
        return any(found)
    if not isinstance(mapping, dict) or old[0] not in mapping:
        return False
    if old[0] == new[0]:  # the paths part further down
        return _move(mapping[old[0]], old[1:], new[1:], place)
    if len(old) > 1:
        inner = mapping[old[0]]
        if not isinstance(inner, dict) or old[1] not in inner:
            return False
        assert len(old) == 2, f"{old} is moved by at most one level"
        value, rest = inner.pop(old[1]), new
    else:
        value, rest = mapping.pop(old[0]), new
    for key in rest[:-1]:
        mapping = mapping.setdefault(key, {})
    if rest[-1] in mapping:
        raise ValueError(f"{place}: expected its old or its new name, {'.'.join(rest)}, found both")
    mapping[rest[-1]] = value
    return True
