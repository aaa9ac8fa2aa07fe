"""Facts about a file or folder, for `audiovq info`."""

from pathlib import Path
from typing import Any

from audiovq.api.tokenizer import Tokenizer
from audiovq.config import read_json, read_yaml
from audiovq.data import audio
from audiovq.data.codes import Codes, read_header
from audiovq.data.scan_cache import read_tags
from audiovq.pretrained import checkpoint
from audiovq.pretrained.locate import CODEC_PREFIX, prior_folders
from audiovq.training.logs import HEALTH, read_steps


def describe(path: Path) -> dict[str, Any]:
    """Facts about an audio file, a codes file, a model folder or a run folder; ValueError for anything else."""
    if not path.exists() and not str(path).startswith(CODEC_PREFIX):
        raise ValueError(f"{path}: no such file or folder")
    if (path / "recipe.yaml").is_file():
        return describe_run(path)
    if (path / checkpoint.CONFIG).is_file() or (path / "tokenizer").is_dir() or not path.exists():
        return describe_model(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a run or model folder, found neither recipe.yaml nor config.json")
    with path.open("rb") as file:  # safetensors begin with the length of a header in eight bytes, then JSON
        is_safetensors = file.read(9)[8:9] == b"{"
    if path.suffix.lower() not in audio.SUFFIXES and is_safetensors:
        codes = Codes.load(path)
        names = ("seconds", "sample_rate", "n_samples", "hop_lengths", "codebook_size", "source_sha256")
        found = {"codes": str(path), **{name: getattr(codes, name) for name in names}}
        found |= {"codes_a_level": [len(level) for level in codes.levels], "coding": read_header(path).coding or "none"}
        kbps = {"kbps_raw": codes.bits_per_second / 1000, "kbps_file": 8 * path.stat().st_size / codes.seconds / 1000}
        return {**found, **kbps, "tokenizer": codes.tokenizer_hash}
    facts = audio.audio_info(path)
    return {"audio": str(path), **vars(facts), "seconds": facts.seconds, "tags": read_tags(path, facts)}


def describe_model(path: Path) -> dict[str, Any]:
    """Facts about the folder of a tokenizer, of a prior, or of both."""
    if (path / checkpoint.CONFIG).is_file() and "kind" in read_json(path / checkpoint.CONFIG):
        n_parameters = sum(tensor.numel() for tensor in checkpoint.read_tensors(path / checkpoint.WEIGHTS).values())
        return {"model": str(path), "config": read_json(path / checkpoint.CONFIG), "parameters": n_parameters}
    tokenizer = Tokenizer.from_pretrained(path)
    c, names = tokenizer.config, ("sample_rate", "channels", "hop_lengths", "code_rates", "codebook_size")
    facts = {"model": str(path), "tokenizer": tokenizer.hash, **{name: getattr(c, name) for name in names}}
    facts["codec"] = {key: value for key, value in (c.codec or {}).items() if key != "settings"}
    priors = [folder.name for folder in prior_folders(path)]
    return facts | {"latency_seconds": tokenizer.latency_seconds, "priors": priors}


def describe_run(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"run": str(folder), "recipe": read_yaml(folder / "recipe.yaml")["name"]}
    for name, path in (("data", folder / "data" / "report.json"), ("reached", folder / "report.json")):
        if path.is_file():
            facts[name] = read_json(path)
    stages = ("tokenizer", "codes", *(path.name for path in prior_folders(folder)))
    facts["finished"] = [name for name in stages if (folder / name).is_dir()]
    if "tokenizer" in facts["finished"] and checkpoint.tuning_steps(folder / "tokenizer"):
        facts["finished"].insert(1, "decoder")
    facts["health"] = [row["message"] for row in read_steps(folder / HEALTH)]
    return facts
