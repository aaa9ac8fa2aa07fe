"""Finds the folder of a model: a run, an exported folder, a model on the hub, or the bundled model."""

from pathlib import Path

from audiovq import config as conf
from audiovq.pretrained import hub
from audiovq.utils.files import CONFIG
from audiovq.utils.progress import say


def resolve_model(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a model.

    Args:
        source: a run, an exported folder, `default` (the bundled model), or a hub id, which may name its
            revision as in owner/name@v1. A folder that is called default is ./default.
        revision: branch, tag or commit on the hub; default the main branch.
        token: for private models; default the one of `hf auth login` or HF_TOKEN.
    Raises:
        ValueError: no such folder, and not a hub id that can be downloaded.
    """
    path, text = Path(source), str(source)
    if text == "default":
        return bundled_model()
    if path.is_dir():
        return path
    if not is_hub_name(text):
        expected = "a run folder, an exported folder, a hub id (owner/name) or default"
        hint = "; for the hub, name a revision (owner/name@main)" if path.parent.is_dir() and "/" in text else ""
        raise ValueError(f"{source}: no such model; expected {expected}{hint}")
    repo_id, _, named = text.partition("@")
    return hub.download(repo_id, revision or named or None, token)


def is_hub_name(source: str) -> bool:
    """True for owner/name and owner/name@revision, if it can mean no file or folder: runs/mine does not where there
    is a folder called runs."""
    repo_id, at, _ = source.partition("@")
    is_name = repo_id.count("/") == 1 and not repo_id.startswith((".", "/", "~")) and not Path(source).exists()
    return is_name and bool(at or not (Path(repo_id).parent.is_dir() or repo_id.startswith("runs/")))


def bundled_model() -> Path:
    """The model that comes with audiovq."""
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


def check_priors(folder: Path) -> None:
    """Raises ValueError if a prior's config is missing: `prior_folders` would silently use fewer levels."""
    for path in sorted(folder.glob("prior-*")):
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path}: damaged ({CONFIG} is missing); download or train it again")


def default_model(runs: Path = Path("runs"), prior: bool = True) -> tuple[Path, str]:
    """The model that is used if none is named: the newest run, else the bundled model.

    Args:
        prior: only runs with all their priors count, else those with a tokenizer.
    Returns:
        Its folder, and a description.
    """
    finished: dict[Path, float] = {}
    for folder in runs.iterdir() if runs.is_dir() else ():
        last = folder / "tokenizer" / CONFIG
        if last.is_file() and prior:
            try:
                last = folder / f"prior-{len(conf.read_json(last)['model']['hop_lengths']) - 1}" / CONFIG
            except (KeyError, TypeError):
                say(f"left out: {last}: expected the config of a tokenizer; delete the run or train it again")
                continue
            except ValueError as error:
                say(f"left out: {error}")
                continue
        if last.is_file():
            finished[folder] = last.stat().st_mtime
    if finished:
        newest = max(finished, key=lambda folder: finished[folder])
        return newest, f"the newest run, {newest}"
    return bundled_model(), "the bundled model"
