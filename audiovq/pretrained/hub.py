"""Models that travel: a folder of weights and JSON to share, to the hub and back.

The hub's own `ModelHubMixin` wants one config and one weights file a class; a model here is a tokenizer and its priors in one
folder, so whole folders go up and come down.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import MODEL_FILES
from audiovq.pretrained.model_card import CardFacts, model_card
from audiovq.pretrained.onnx_files import check_installed, export_onnx
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.tokenizer.vqvae import VQVAE

SHARED_FILES = ["README.md", *MODEL_FILES, "onnx/*.onnx"]


def save_models(
    folder: Path, network: VQVAE, priors: Sequence[Prior] = (), picks: Sequence[SamplingConfig] = (), half: bool = False
) -> str:
    """tokenizer/ and prior-0/ … below `folder`; returns the tokenizer's hash.

    Args:
        half: weights in half precision. Rounding makes another tokenizer of it, so the priors are told its new hash.
    """
    dtype = torch.float16 if half else None
    checkpoint.save_tokenizer(folder / "tokenizer", network, dtype)
    identity = tokenizer_hash(checkpoint.load_tokenizer(folder / "tokenizer"))
    for level, prior in enumerate(priors):
        told = copy.copy(prior)  # the same weights
        told.spec = dataclasses.replace(prior.spec, tokenizer_hash=identity)
        checkpoint.save_prior(folder / f"prior-{level}", told, picks[level] if picks else SamplingConfig(), dtype)
    return identity


def shared_files(folder: Path) -> list[Path]:
    """What of a folder is sent to the hub. Raises ValueError if there is no model in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = [path for path in files if any(fnmatch(path.relative_to(folder).as_posix(), p) for p in SHARED_FILES)]
    if not any(path.name == checkpoint.WEIGHTS for path in found):
        raise ValueError(f"{folder}: no model there to send; write one with `audiovq export RUN {folder}`")
    return found


def push_folder(
    folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None, token: str | None = None,
    dry_run: bool = False,
) -> list[str]:  # fmt: skip
    """Send an exported folder to the hub; returns a line a file and where they are.

    Args:
        repo_id: owner/name; made if it is not there.
        revision: branch; default the main one.
        token: default the one of `hf auth login` or HF_TOKEN.
        dry_run: only list what would be sent.
    Raises:
        ValueError: no model, a name that cannot be, no token, no network, or refused by the hub.
    """
    files = shared_files(folder)
    lines = [f"{path.relative_to(folder).as_posix()}: {path.stat().st_size / 1e6:.2f} MB" for path in files]
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id}: expected a name on the hub, owner/name")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder}: no model card there (README.md); write one, or use `audiovq export`")
    if dry_run:
        return [*lines, f"would be sent to {repo_id}" + (f", branch {revision}" if revision else "")]
    if (token or huggingface_hub.get_token()) is None:
        raise ValueError(f"{repo_id}: the hub wants a token, found none; run `hf auth login`, or set HF_TOKEN")
    hub = huggingface_hub.HfApi(token=token)
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        names = [path.relative_to(folder).as_posix() for path in files]
        sent = hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            allow_patterns=names,
            commit_message="Model of audiovq",
        )
    except Exception as error:  # the hub client raises many kinds; for the user they are one
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(f"{repo_id}: cannot be sent to the hub ({reason})") from None
    return [*lines, f"sent to {sent.repo_url}"]


def save_pretrained(
    folder: str | Path, network: VQVAE, priors: Sequence[Prior] = (), picks: Sequence[SamplingConfig] = (), *,
    half: bool = False, onnx: bool = False, repo_id: str | None = None, **known: Any,
) -> CardFacts:  # fmt: skip
    """Write a folder to share: weights, configs and a model card; it appears when it is whole.

    Args:
        half: weights in half precision.
        onnx: add the tokenizer as onnx/encode.onnx and onnx/decode.onnx.
        repo_id: its name on the hub, for the card.
        known: further `CardFacts`.
    Raises:
        ValueError: something is in that folder already, or it cannot be written.
    """
    folder = Path(folder)
    if onnx:
        check_installed()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder}: expected a new or empty folder, found something in it; choose another, or empty it"
        )
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        identity = save_models(temporary, network, priors, picks, half)
        facts = CardFacts(
            known.pop("name", None) or (repo_id or folder.absolute().name).split("/")[-1], network.config, identity,
            [prior.spec for prior in priors], sum(p.numel() for n in (network, *priors) for p in n.parameters()), half, **known,
        )  # fmt: skip
        if onnx:
            facts.onnx = export_onnx(temporary / "onnx", checkpoint.load_tokenizer(temporary / "tokenizer"))
        (temporary / "README.md").write_text(model_card(facts, repo_id or "OWNER/NAME"), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error}); free some space or choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


class Shareable:
    """What `Tokenizer` and `Generator` have in common: they can be written to a folder and sent to the hub."""

    def _models(self) -> tuple[VQVAE, Sequence[Prior], Sequence[SamplingConfig]]:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Write a folder to share: config.json, model.safetensors and a model card; `audiovq export` says more in its card.

        Args:
            half: weights in half precision; the codes are then those of another tokenizer.
        Raises:
            ValueError: something is in that folder already, or it cannot be written.
        """
        save_pretrained(folder, *self._models(), half=half)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, revision: str | None = None, token: str | None = None,
        half: bool = False, dry_run: bool = False,
    ) -> list[str]:  # fmt: skip
        """Send it to the Hugging Face hub; returns a line a file and where they are. Raises as `push_folder`.

        Args:
            dry_run: only list what would be sent.
        """
        with tempfile.TemporaryDirectory() as place:
            save_pretrained(Path(place) / "model", *self._models(), half=half, repo_id=repo_id)
            options = {"private": private, "revision": revision, "token": token, "dry_run": dry_run}
            return push_folder(Path(place) / "model", repo_id, **options)
