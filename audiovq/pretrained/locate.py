"""Finds the folder of a model: a run, an exported folder, the bundled model, or one on the Hugging Face hub."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import yaml
from huggingface_hub.utils import filter_repo_objects

from audiovq import config as conf
from audiovq.utils.environment import errors_as
from audiovq.utils.files import CONFIG, SUMS, WEIGHTS
from audiovq.utils.progress import say

# The files of a model. Others, such as a pickle or a script, are neither downloaded nor sent.
FOLDERS = ("", "tokenizer/", "prior-[0-9]*/")
MODEL_FILES = [f"{folder}{name}" for folder in FOLDERS for name in (CONFIG, WEIGHTS, SUMS)]
SHARED_FILES = ["README.md", *MODEL_FILES, "onnx/*.onnx", "onnx/generator.json"]
CODEC_PREFIX = "hf:"  # before the hub id or the folder of a published codec
CODEC_FILES = [CONFIG, "README.md", "*.safetensors", "*.safetensors.index.json"]


def resolve_model(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a model.

    Args:
        source: a run, an exported folder, `default` (the bundled model), or a hub id, which may name its
            revision as in owner/name@v1. A folder that is called default is ./default. A published codec has hf: before
            its hub id or folder, and perhaps the number of its levels behind it, as in hf:owner/name:4.
        revision: branch, tag or commit on the hub; default the main branch.
        token: for private models; default the one of `hf auth login` or HF_TOKEN.
    Raises:
        ValueError: no such folder, and not a hub id that can be downloaded.
    """
    path, text = Path(source), str(source)
    if text.startswith(CODEC_PREFIX):
        folder, n_levels = codec_place(text.removeprefix(CODEC_PREFIX), revision, token)
        return Path(f"{CODEC_PREFIX}{folder}" + (f":{n_levels}" if n_levels is not None else ""))
    if text == "default":
        return bundled_model()
    if path.is_dir():
        return path
    if not is_hub_name(text):
        expected = "a run folder, an exported folder, a hub id (owner/name) or default"
        hint = "; for the hub, name a revision (owner/name@main)" if path.parent.is_dir() and "/" in text else ""
        raise ValueError(f"{source}: no such model; expected {expected}{hint}")
    repo_id, _, named = text.partition("@")
    return download(repo_id, revision or named or None, token)


def codec_place(name: str, revision: str | None = None, token: str | None = None) -> tuple[Path, int | None]:
    """The folder of owner/name@revision:levels or folder:levels, and the levels; ValueError if there is no such codec."""
    place, _, levels = name.rpartition(":") if name.rpartition(":")[2].isdecimal() else (name, "", "")
    folder, (repo_id, _, named) = Path(place), place.partition("@")
    if not folder.is_dir() and is_hub_name(place):
        for files in (CODEC_FILES, [*CODEC_FILES, "pytorch_model.bin"]):
            if not any(folder.glob("*.safetensors")):
                folder = download(repo_id, revision or named or None, token, files)
    if not (place and (folder / CONFIG).is_file()):
        raise ValueError(f"{CODEC_PREFIX}{name}: no such codec; expected hf:owner/name, or a folder with {CONFIG}")
    return folder, int(levels) if levels else None


def is_hub_name(source: str) -> bool:
    """True for owner/name and owner/name@revision, unless it can mean a file or folder, as runs/mine does."""
    repo_id, at, _ = source.partition("@")
    is_name = repo_id.count("/") == 1 and not repo_id.startswith((".", "/", "~")) and not Path(source).exists()
    return is_name and bool(at or not (Path(repo_id).parent.is_dir() or repo_id.startswith("runs/")))


def bundled_model() -> Path:
    return Path(__file__).parent.parent / "models" / "default"


def tokenizer_folder(folder: Path) -> Path:
    """The folder with the tokenizer of a model: `tokenizer` below it, or the folder itself."""
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def prior_folders(folder: Path) -> list[Path]:
    """The folders of a model's finished priors, coarse to fine, up to the first level without one."""
    found: list[Path] = []
    while (folder / f"prior-{len(found)}" / CONFIG).is_file():
        found.append(folder / f"prior-{len(found)}")
    return found


def model_licence(folder: Path) -> str | None:
    """The licence in the card of a model; None if there is none."""
    card = None
    with contextlib.suppress(OSError, ValueError, IndexError, yaml.YAMLError):
        card = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return card.get("license_name") or card.get("license") if isinstance(card, dict) else None


def check_priors(folder: Path) -> None:
    """Raises ValueError if a prior's config is missing: `prior_folders` would silently use fewer levels."""
    for path in sorted(folder.glob("prior-*")):
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path}: damaged ({CONFIG} is missing); download or train it again")


def default_model(runs: Path = Path("runs"), prior: bool = True) -> tuple[Path, str]:
    """The folder and a description of the model that is used if none is named: the newest run with all its
    priors (without `prior`, with a tokenizer), else the bundled model. Newer runs that are left out are named."""
    finished: dict[Path, float] = {}
    unfinished: dict[Path, float] = {}
    for folder in runs.iterdir() if runs.is_dir() else ():
        last = folder / "tokenizer" / CONFIG
        if last.is_file() and prior:
            try:
                last = folder / f"prior-{len(conf.read_json(last)['model']['hop_lengths']) - 1}" / CONFIG
            except (KeyError, TypeError, ValueError):
                say(f"left out: {last}: expected the config of a tokenizer; delete the run or train it again")
                continue
        if last.is_file():
            finished[folder] = last.stat().st_mtime
        elif (folder / "recipe.yaml").is_file():
            unfinished[folder] = (folder / "recipe.yaml").stat().st_mtime
    newest = max(finished, key=lambda folder: finished[folder], default=None)
    newer = [str(folder) for folder, time in sorted(unfinished.items()) if not newest or time > finished[newest]]
    note = f" (not finished: {', '.join(newer[:3])}; the same train command goes on)" if newer else ""
    return (newest, f"the newest run, {newest}{note}") if newest else (bundled_model(), f"the bundled model{note}")


def download(repo_id: str, revision: str | None, token: str | None, files: Sequence[str] = MODEL_FILES) -> Path:
    """The folder of a model, in the hub's own cache. Raises ValueError if it cannot be downloaded."""
    options = {"revision": revision, "token": token, "allow_patterns": files}
    with errors_as(f"{repo_id}: no such folder, and it cannot be downloaded from the hub"):
        return Path(huggingface_hub.snapshot_download(repo_id, **options))


def shared_files(folder: Path) -> list[str]:
    """The files of a folder that are sent to the hub. Raises ValueError if there is no model in it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = list(filter_repo_objects(names, allow_patterns=SHARED_FILES))
    if not any(name.endswith(WEIGHTS) for name in found):
        raise ValueError(f"{folder}: no model there to send; write one with `audiovq export RUN {folder}`")
    return found


def push_folder(
    folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None, token: str | None = None,
    dry_run: bool = False,
) -> list[str]:  # fmt: skip
    """Send an exported folder to the hub; one line per file, and one with the address.

    Args:
        repo_id: owner/name; created if it does not exist, `private` if so wished.
        revision: branch; default the main branch.
        token: default the one of `hf auth login` or HF_TOKEN.
        dry_run: only list what would be sent.
    Raises:
        ValueError: no model, an impossible name, no token, no network, or refused by the hub.
    """
    names = shared_files(folder)
    lines = [f"{name}: {(folder / name).stat().st_size / 1e6:.2f} MB" for name in names]
    if "README.md" not in names:
        raise ValueError(f"{folder}: no model card there (README.md); write one, or use `audiovq export`")
    if dry_run:
        return [*lines, f"would be sent to {repo_id}" + (f", branch {revision}" if revision else "")]
    hub = huggingface_hub.HfApi(token=token)
    with errors_as(f"{repo_id}: cannot be sent to the hub"):
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        target = {"repo_id": repo_id, "revision": revision, "commit_message": "Model of audiovq"}
        sent = hub.upload_folder(folder_path=folder, allow_patterns=names, **target)
        return [*lines, f"sent to {sent.repo_url}"]
