"""Writes a folder of models to share: a tokenizer and its priors, with a model card.

The card is README.md, with the metadata that the Hugging Face hub reads.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import torch
from huggingface_hub import ModelCardData

from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.prior.spec import PriorSpec
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import atomic_folder

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
LONGEST_CREDITS = 20000  # characters
MOST_VALUES = 20  # of a label that are listed
COLUMNS = ("bits_per_code", "unigram_bits_per_code", "bits_per_second", "usage")


@dataclass
class RunFacts:
    """Facts about the training; the card leaves out unknown ones."""

    name: str = ""
    license: str | None = None  # as the hub names it, such as cc-by-4.0, or other
    license_name: str | None = None  # with the license `other`
    license_text: str | None = None  # Markdown: which part is under which licence
    data: dict[str, Any] = field(default_factory=dict)  # hours, tracks, train_tracks, valid_tracks
    labels: dict[str, list[str]] = field(default_factory=dict)  # licences and artists, from the tracks
    credits: str = ""  # text of the credits file
    recipe: str = ""  # YAML
    recipe_facts: dict[str, Any] = field(default_factory=dict)  # a few that people look for
    split: str = ""  # the tracks that the levels were measured on
    levels: list[dict[str, Any]] = field(default_factory=list)  # of report.json


def save_pretrained(
    folder: str | Path,
    network: VQVAE,
    priors: Sequence[Prior] = (),
    sampling: Sequence[SamplingConfig] = (),
    *,
    half: bool = False,
    export_onnx: Callable[[Path, VQVAE], dict[str, float]] | None = None,
    repo_id: str | None = None,
    run: RunFacts | None = None,
) -> dict[str, float] | None:
    """Write a folder to share, with weights, configs and a model card; it appears when it is whole.

    Args:
        half: weights in half precision. Rounding makes another tokenizer, so the saved priors get its hash.
        export_onnx: that of `onnx_files`, to add the tokenizer as onnx/encode.onnx and onnx/decode.onnx.
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
            renamed.spec = replace(prior.spec, tokenizer_hash=identity)
            settings = sampling[level] if sampling else SamplingConfig()
            checkpoint.save_prior(temporary / f"prior-{level}", renamed, settings, dtype)
        compared = export_onnx(temporary / "onnx", saved) if export_onnx else None
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


def model_card(run: RunFacts, specs: Sequence[PriorSpec], **facts: Any) -> str:
    """The whole README.md.

    Args:
        specs: of the priors, coarse to fine.
        facts: config, tokenizer_hash, n_parameters, half, onnx (see `onnx_files.export_onnx`), name; and
            repo_id, which the examples load.
    """
    tags = ["audiovq", "music", "audio", "vq-vae", "audio-tokenizer"]
    metadata = ModelCardData(
        license=run.license,
        license_name=run.license_name,
        library_name="audiovq",
        pipeline_tag="text-to-audio" if specs else "audio-to-audio",
        tags=[*tags, "music-generation"] if specs else tags,
    )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"listed": _listed, "quoted": _quoted}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(run=run, specs=specs, metadata=metadata.to_yaml(), columns=COLUMNS, **facts)


def _listed(values: Sequence[str]) -> str:
    more = f", … ({len(values)} in all)" if len(values) > MOST_VALUES else ""
    return ", ".join(_plain(value) for value in values[:MOST_VALUES]) + more


def _plain(text: str) -> str:
    """One line without characters that Markdown or HTML would interpret."""
    return " ".join("".join(c for c in text if c not in "<>`|[]*_#").split())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text[:LONGEST_CREDITS].strip().splitlines())
