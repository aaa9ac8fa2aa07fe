"""Downloads model folders from the Hugging Face hub, and sends them there.

The `ModelHubMixin` of the hub's client wants one config and one weights file per class. A model here is a
folder with a tokenizer and its priors, so whole folders are sent and downloaded.
"""

from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import filter_repo_objects

from audiovq.utils.files import CONFIG, SUMS, WEIGHTS

# The files of a model. Others, such as a pickle or a script, are neither downloaded nor sent.
FOLDERS = ("", "tokenizer/", "prior-[0-9]*/")
MODEL_FILES = [f"{folder}{name}" for folder in FOLDERS for name in (CONFIG, WEIGHTS, SUMS)]
SHARED_FILES = ["README.md", *MODEL_FILES, "onnx/*.onnx"]


def download(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a model from the hub, in the hub's own cache.

    Raises:
        ValueError: no such model, no network, or refused by the hub.
    """
    try:
        found = huggingface_hub.snapshot_download(repo_id, revision=revision, token=token, allow_patterns=MODEL_FILES)
    except Exception as error:  # the hub's client raises many kinds
        reason = f"cannot be downloaded from the hub ({_first_line(error)})"
        raise ValueError(f"{repo_id}: no such folder, and it {reason}") from None
    return Path(found)


def shared_files(folder: Path) -> list[str]:
    """The files of a folder that are sent to the hub. Raises ValueError if there is no model in it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = list(filter_repo_objects(names, allow_patterns=SHARED_FILES))
    if not any(name.endswith(WEIGHTS) for name in found):
        raise ValueError(f"{folder}: no model there to send; write one with `audiovq export RUN {folder}`")
    return found


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Send an exported folder to the hub.

    Args:
        repo_id: owner/name; created if it does not exist.
        private: visible for the owner only, if it is created now.
        revision: branch; default the main branch.
        token: default the one of `hf auth login` or HF_TOKEN.
        dry_run: only list what would be sent.
    Returns:
        One line per file, and one with the address.
    Raises:
        ValueError: no model, an impossible name, no token, no network, or refused by the hub.
    """
    names = shared_files(folder)
    lines = [f"{name}: {(folder / name).stat().st_size / 1e6:.2f} MB" for name in names]
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id}: expected a name on the hub, owner/name")
    if "README.md" not in names:
        raise ValueError(f"{folder}: no model card there (README.md); write one, or use `audiovq export`")
    if dry_run:
        return [*lines, f"would be sent to {repo_id}" + (f", branch {revision}" if revision else "")]
    if (token or huggingface_hub.get_token()) is None:
        raise ValueError(f"{repo_id}: the hub needs a token; run `hf auth login`, or set HF_TOKEN")
    hub = huggingface_hub.HfApi(token=token)
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        target = {"repo_id": repo_id, "revision": revision, "commit_message": "Model of audiovq"}
        sent = hub.upload_folder(folder_path=folder, allow_patterns=names, **target)
    except Exception as error:  # the hub's client raises many kinds
        raise ValueError(f"{repo_id}: cannot be sent to the hub ({_first_line(error)})") from None
    return [*lines, f"sent to {sent.repo_url}"]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))
