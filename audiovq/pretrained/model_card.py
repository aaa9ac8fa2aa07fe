"""The model card: README.md of a shared model, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from audiovq.prior.spec import PriorSpec
from audiovq.tokenizer.vqvae import VQVAEConfig

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
LONGEST_CREDITS = 20000  # characters
MOST_VALUES = 20  # of a label that are listed
COLUMNS = ("bits_per_code", "unigram_bits_per_code", "bits_per_second", "usage")


@dataclass
class ModelFacts:
    """What the weights and configs say."""

    name: str
    config: VQVAEConfig
    tokenizer_hash: str
    specs: list[PriorSpec]  # of the priors, coarse to fine
    n_parameters: int
    half: bool = False
    onnx: dict[str, float] | None = None  # the result of `onnx_files.export_onnx`


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


def model_card(model: ModelFacts, run: RunFacts, repo_id: str = "OWNER/NAME") -> str:
    """The whole README.md.

    Args:
        repo_id: what the examples load.
    """
    tags = ["audiovq", "music", "audio", "vq-vae", "audio-tokenizer"]
    metadata = ModelCardData(
        license=run.license,
        license_name=run.license_name,
        library_name="audiovq",
        pipeline_tag="text-to-audio" if model.specs else "audio-to-audio",
        tags=[*tags, "music-generation"] if model.specs else tags,
    )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"listed": _listed, "quoted": _quoted}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        model=model,
        run=run,
        repo_id=repo_id,
        metadata=metadata.to_yaml(),
        config=model.config,
        rates=", ".join(f"{rate:.4g}" for rate in model.config.code_rates),
        vocabularies=model.specs[0].vocabularies if model.specs else {},
        columns=COLUMNS,
    )


def _listed(values: Sequence[str]) -> str:
    more = f", … ({len(values)} in all)" if len(values) > MOST_VALUES else ""
    return ", ".join(_plain(value) for value in values[:MOST_VALUES]) + more


def _plain(text: str) -> str:
    """One line without characters that Markdown or HTML would interpret."""
    return " ".join("".join(c for c in text if c not in "<>`|[]*_#").split())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text[:LONGEST_CREDITS].strip().splitlines())
