"""Writes a folder of models to share: a tokenizer and its priors, with a model card."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from audiovq.pretrained import checkpoint, onnx_files
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.model_card import RunFacts, model_card
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import atomic_folder


def save_pretrained(
    folder: str | Path,
    network: VQVAE,
    priors: Sequence[Prior] = (),
    sampling: Sequence[SamplingConfig] = (),
    *,
    half: bool = False,
    onnx: bool = False,
    repo_id: str | None = None,
    run: RunFacts | None = None,
) -> dict[str, float] | None:
    """Write a folder to share, with weights, configs and a model card; it appears when it is whole.

    Args:
        half: weights in half precision. Rounding makes another tokenizer, so the saved priors get its hash.
        onnx: add the tokenizer as onnx/encode.onnx and onnx/decode.onnx.
        repo_id: its name on the hub, for the card.
        run: facts for the card.
    Returns:
        How the ONNX files compare with torch, see `export_onnx`.
    Raises:
        ValueError: the folder is not empty, or it cannot be written.
    """
    folder, run, dtype = Path(folder).absolute(), run or RunFacts(), torch.float16 if half else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder, found files; choose another, or empty it")
    with atomic_folder(folder) as temporary:
        checkpoint.save_tokenizer(temporary / "tokenizer", network, dtype)
        saved = checkpoint.load_tokenizer(temporary / "tokenizer")
        identity = tokenizer_hash(saved)
        for level, prior in enumerate(priors):
            renamed = copy.copy(prior)  # shares the weights
            renamed.spec = dataclasses.replace(prior.spec, tokenizer_hash=identity)
            settings = sampling[level] if sampling else SamplingConfig()
            checkpoint.save_prior(temporary / f"prior-{level}", renamed, settings, dtype)
        compared = onnx_files.export_onnx(temporary / "onnx", saved) if onnx else None
        card = model_card(
            run,
            [prior.spec for prior in priors],
            name=run.name or (repo_id or folder.name).split("/")[-1],
            repo_id=repo_id or "OWNER/NAME",
            config=network.config,
            tokenizer_hash=identity,
            n_parameters=sum(p.numel() for n in (network, *priors) for p in n.parameters()),
            half=half,
            onnx=compared,
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return compared
