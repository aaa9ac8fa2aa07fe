"""What is this file or folder? The answer of `audiovq info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiovq import api, checkpoint
from audiovq.config import read_json
from audiovq.data import audio
from audiovq.data.codes import Codes, file_kbps, read_header
from audiovq.data.looks import read_tags
from audiovq.run import describe_run


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
