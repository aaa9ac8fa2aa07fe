"""Writes a folder of models to share: a tokenizer and its priors, with a model card."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.model_card import ModelFacts, RunFacts, model_card
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
    repo_id: str | None = None,
    run: RunFacts | None = None,
    add_files: Callable[[Path, ModelFacts], None] | None = None,
) -> ModelFacts:
    """Write a folder to share, with weights, configs and a model card; it appears when it is whole.

    Args:
        half: weights in half precision.
        repo_id: its name on the hub, for the card.
        run: facts for the card.
        add_files: called before the card is written; it may add files to the folder, and facts for the card.
    Raises:
        ValueError: the folder is not empty, or it cannot be written.
    """
    folder, run = Path(folder).absolute(), run or RunFacts()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder, found files; choose another, or empty it")
    with atomic_folder(folder) as temporary:
        model = ModelFacts(
            name=run.name or (repo_id or folder.name).split("/")[-1],
            config=network.config,
            tokenizer_hash=save_models(temporary, network, priors, sampling, half),
            specs=[prior.spec for prior in priors],
            n_parameters=sum(p.numel() for n in (network, *priors) for p in n.parameters()),
            half=half,
        )
        if add_files is not None:
            add_files(temporary, model)
        card = model_card(model, run, repo_id or "OWNER/NAME")
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return model


def save_models(
    folder: Path,
    network: VQVAE,
    priors: Sequence[Prior] = (),
    sampling: Sequence[SamplingConfig] = (),
    half: bool = False,
) -> str:
    """Write tokenizer/ and prior-0/ … below `folder`; returns the hash of the tokenizer that was written.

    Args:
        half: weights in half precision. Rounding makes another tokenizer, so the saved priors get its hash.
    """
    dtype = torch.float16 if half else None
    checkpoint.save_tokenizer(folder / "tokenizer", network, dtype)
    identity = tokenizer_hash(checkpoint.load_tokenizer(folder / "tokenizer"))
    for level, prior in enumerate(priors):
        renamed = copy.copy(prior)  # shares the weights
        renamed.spec = dataclasses.replace(prior.spec, tokenizer_hash=identity)
        settings = sampling[level] if sampling else SamplingConfig()
        checkpoint.save_prior(folder / f"prior-{level}", renamed, settings, dtype)
    return identity
