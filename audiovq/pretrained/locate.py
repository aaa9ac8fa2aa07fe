"""Where models are: a run, an exported folder, a hub id, the newest run, or the one that comes with audiovq."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from audiovq.pretrained import checkpoint
from audiovq.utils.files import SUMS

# Of a shared model; whatever else lies in a folder on the hub (a pickle, a script) is neither fetched nor sent.
MODEL_FILES = [
    f"{place}{name}"
    for place in ("", "tokenizer/", "prior-[0-9]*/")
    for name in (checkpoint.CONFIG, checkpoint.WEIGHTS, SUMS)
]


def resolve_model(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """A run, an exported folder, a hub id or `default` (the bundled model) -> a folder that holds models.

    Args:
        source: a hub id may name its revision: owner/name@v1. A folder that is called default is ./default.
        revision: branch, tag or commit on the hub; default the main branch.
        token: for private models; default the one of `hf auth login` or HF_TOKEN.
    Raises:
        ValueError: nothing there, and not a hub id that can be fetched.
    """
    path, text = Path(source), str(source)
    if text == "default":
        return bundled_model()
    if path.is_dir():
        return path
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise ValueError(
            f"{source}: no such model; expected a run folder, an exported folder, a hub id (owner/name) or default"
        )
    name, _, named = text.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or named or None, token=token, allow_patterns=MODEL_FILES
            )
        )
    except Exception as error:  # the hub client raises many kinds; for the user they are one
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{source}: no such folder, and not to be had from the hub ({reason[0] if reason else error!r})"
        ) from None


def prior_folders(folder: Path) -> list[Path]:
    """The finished priors of a model, coarse to fine: as many as follow each other from the top."""
    found = []
    while (folder / f"prior-{len(found)}" / checkpoint.CONFIG).is_file():
        found.append(folder / f"prior-{len(found)}")
    return found


def check_priors(folder: Path) -> None:
    """Raises ValueError if one of a model's priors is damaged: without it, music would be made of fewer levels."""
    for path in sorted(folder.glob("prior-*")):
        if not (path / checkpoint.CONFIG).is_file():
            raise ValueError(f"{path}: damaged ({checkpoint.CONFIG} is missing); download or train it again")


def bundled_model() -> Path:
    """The model that comes with audiovq."""
    return Path(__file__).parent.parent / "models" / "default"


def default_model(runs: Path = Path("runs"), prior: bool = True) -> tuple[Path, str]:
    """What a command uses when no model is named, and which it is: the newest run, else the bundled model.

    Args:
        prior: only a run whose priors are all there will do (to generate); else one with a tokenizer.
    """
    last = f"prior-{{}}/{checkpoint.CONFIG}"
    stamps = {}
    for folder in runs.iterdir() if runs.is_dir() else ():
        tokenizer = folder / "tokenizer" / checkpoint.CONFIG
        if tokenizer.is_file():
            n_levels = len(checkpoint.read_config(folder / "tokenizer", "tokenizer")["model"]["hop_lengths"])
            newest_file = folder / last.format(n_levels - 1) if prior else tokenizer
            if newest_file.is_file():
                stamps[folder] = newest_file.stat().st_mtime
    if stamps:
        newest = max(stamps, key=lambda folder: stamps[folder])
        return newest, f"the newest run, {newest}"
    return bundled_model(), "the bundled model"
