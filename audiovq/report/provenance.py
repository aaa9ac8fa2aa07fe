"""Where a model comes from: weights, versions and credits. Anything can be missing."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import soundfile
from markdown_it import MarkdownIt

from audiovq.config import read_json
from audiovq.data.tracks import credits_files
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import bundled_model, prior_folders
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import SUMS

PACKAGES = ("audiovq", "torch", "torchaudio", "librosa", "soundfile", "numpy")
MAX_FILE = 100_000  # characters


def load_tokenizer(model: Path) -> VQVAE | None:
    """The tokenizer of a run or model folder; None if there is none yet."""
    folder = model / "tokenizer"
    return checkpoint.load_tokenizer(folder) if (folder / checkpoint.CONFIG).is_file() else None


def model_facts(model: Path, network: VQVAE | None) -> dict[str, Any] | None:
    """Name, config, rates and checksums of a model; None without a tokenizer."""
    if network is None:
        return None
    hashes = {"tokenizer": tokenizer_hash(network)}
    for folder in prior_folders(model):
        hashes[folder.name] = read_json(folder / SUMS).get(checkpoint.WEIGHTS, "") if (folder / SUMS).is_file() else ""
    c, is_bundled = network.config, model.resolve() == bundled_model().resolve()
    name, rate = "the bundled model" if is_bundled else model.resolve().name, sum(c.code_rates)
    kbps = rate * c.bits_per_code / 1000
    return {"name": name, "config": c, "codes_per_second": rate, "kbps": kbps, "hashes": hashes}


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= {"libsndfile": soundfile.__libsndfile_version__, "Python": platform.python_version()}
    return {**found, "system": platform.platform()}


def credits_html(model: Path) -> list[tuple[str, str]]:
    """Name and text of `credits_files`, Markdown turned into safe HTML, without pictures, which could be loaded."""
    report = model / "data" / "report.json"
    folder = Path(read_json(report)["folder"]) if report.is_file() else None
    paths = credits_files(folder) if folder and folder.is_dir() else []
    markdown = MarkdownIt("js-default").disable("image")
    return [(p.name, markdown.render(p.read_text(encoding="utf-8", errors="replace")[:MAX_FILE])) for p in paths]
