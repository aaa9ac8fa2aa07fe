"""What is this file or folder? The answer of `audiovq info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from audiovq import api
from audiovq.config import read_json, read_yaml
from audiovq.data import audio
from audiovq.data.codes import Codes, file_kbps, read_header
from audiovq.data.scan_cache import read_tags
from audiovq.data.shards import Shards
from audiovq.data.storage import is_url
from audiovq.evaluation.code_statistics import code_statistics, level_counts, usage
from audiovq.pretrained import checkpoint
from audiovq.recipe import codes_place
from audiovq.training.logs import read_health
from audiovq.utils.files import read_jsonl


def describe(path: Path) -> dict[str, Any]:
    """Facts of an audio file, a codes file, a model folder or a run folder.

    Raises:
        ValueError: none of these.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            return describe_run(path)
        if (path / checkpoint.CONFIG).is_file() or (path / "tokenizer").is_dir():
            return describe_model(path)
        raise ValueError(f"{path}: expected a run or model folder, found neither recipe.yaml nor {checkpoint.CONFIG}")
    if path.suffix.lower() not in audio.SUFFIXES and _is_safetensors(path):
        return describe_codes(path)
    facts = audio.audio_info(path)
    return {"audio": str(path), **vars(facts), "seconds": facts.seconds, "tags": read_tags(path)}


def _is_safetensors(path: Path) -> bool:
    """The header's length in eight bytes, then JSON (the format's own definition)."""
    with path.open("rb") as file:
        return file.read(9)[8:9] == b"{"


def describe_codes(path: Path) -> dict[str, Any]:
    codes = Codes.load(path)
    alone, whole = file_kbps(path, codes.seconds)
    return {
        "codes": str(path), "seconds": codes.seconds, "sample_rate": codes.sample_rate, "n_samples": codes.n_samples,
        "hop_lengths": codes.hop_lengths, "codes_a_level": [len(level) for level in codes.levels],
        "codebook_size": codes.codebook_size, "coding": read_header(path).get("coding", "none"),
        "kbps_raw": codes.bits_per_second / 1000, "kbps_stored": alone, "kbps_stored_with_header": whole,
        "tokenizer": codes.tokenizer_hash, "source_sha256": codes.source_sha256,
    }  # fmt: skip


def describe_model(path: Path) -> dict[str, Any]:
    """A tokenizer's or prior's folder, or a folder of both."""
    if (path / checkpoint.CONFIG).is_file():
        content = read_json(path / checkpoint.CONFIG)
        weights = checkpoint.read_tensors(path / checkpoint.WEIGHTS)
        return {"model": str(path), "config": content, "parameters": sum(t.numel() for t in weights.values())}
    tokenizer = api.Tokenizer.from_pretrained(path)
    c = tokenizer.config
    return {
        "model": str(path), "tokenizer": tokenizer.hash, "sample_rate": c.sample_rate, "channels": c.channels,
        "hop_lengths": list(c.hop_lengths), "code_rates": c.code_rates, "codebook_size": c.codebook_size,
        "priors": [folder.name for folder in api.prior_folders(path)],
    }  # fmt: skip


def describe_run(folder: Path) -> dict[str, Any]:
    """What `audiovq info` says of a run folder."""
    recipe = read_yaml(folder / "recipe.yaml")
    facts: dict[str, Any] = {"run": str(folder), "recipe": recipe["name"]}
    for name in ("data/report.json", "report.json"):
        if (folder / name).is_file():
            facts[Path(name).parent.name or "reached"] = json.loads((folder / name).read_text())
    stages = ("tokenizer", "codes", *(path.name for path in api.prior_folders(folder)))
    facts["finished"] = [name for name in stages if (folder / name).is_dir()]
    if "tokenizer" in facts["finished"] and checkpoint.tuning_steps(folder / "tokenizer"):
        facts["finished"].insert(1, "decoder")
    facts["codebooks"] = _codebook_use(folder)
    facts["health"] = [row["message"] for row in read_health(folder)]
    return facts


def _codebook_use(folder: Path) -> dict[str, Any] | None:
    """Each level's perplexity, usage and entropy: of all codes of the run, or of the last batch that was logged. Of all
    codes also the usage of a codebook that the levels share."""
    place = codes_place(folder)
    if is_url(place) or (Path(place) / "index.json").is_file():
        split = "valid" if is_url(place) else None  # all would be fetched
        shards = Shards(place)
        counted = level_counts(shards, split)
        facts = {"of": f"{split or 'all'} codes", "levels": code_statistics(counted, shards.index)}
        if _is_shared(folder):
            facts["usage"] = usage(sum(counted, start=np.zeros(shards.index.codebook_size, dtype=np.int64)))
        return facts
    path = folder / "training" / "tokenizer" / "metrics.jsonl"
    logged = [line for line in read_jsonl(path, skip_damaged=True) if "perplexity_0" in line]
    if not logged:
        return None
    last, names = logged[-1], ("unigram_bits_per_second", "perplexity", "usage")
    n_levels = sum(key.startswith("perplexity_") for key in last)
    return {
        "of": f"the batch of training step {last['step']}",
        "levels": [{name: last[f"{name}_{i}"] for name in names} for i in range(n_levels)],
    }


def _is_shared(folder: Path) -> bool:
    """Whether the run's levels share a codebook; False if its tokenizer is not there."""
    path = folder / "tokenizer" / checkpoint.CONFIG
    return path.is_file() and bool(read_json(path)["model"]["shared_codebook"])
