"""Where a model comes from: recipe, data, credits, tokenizer, versions. Everything that can be missing may be."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile
from markdown_it import MarkdownIt

from audiovq.data.tracks import Scan
from audiovq.pretrained import checkpoint
from audiovq.tokenizer.vqvae import VQVAE

PACKAGES = ("audiovq", "torch", "torchaudio", "librosa", "soundfile", "numpy")
MAX_TRACKS, MAX_TEXT, MAX_FILE = 200, 80, 100_000  # rows of the table; characters of a label; bytes of a text file


def load_tokenizer(model: Path) -> VQVAE | None:
    """The tokenizer of a run or model folder, if there is one by now."""
    folder = model / "tokenizer"
    return checkpoint.load_tokenizer(folder) if (folder / checkpoint.CONFIG).is_file() else None


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def recipe_text(model: Path) -> str | None:
    path = model / "recipe.yaml"
    return path.read_text(encoding="utf-8")[:MAX_FILE] if path.is_file() else None


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    sndfile = soundfile.__libsndfile_version__
    return {**found, "libsndfile": sndfile, "Python": platform.python_version(), "system": platform.platform()}


def data_facts(model: Path) -> dict[str, Any] | None:
    """Counts of the run's music, and a row a track; None without a run."""
    report = read_json(model / "data" / "report.json")
    if report is None:
        return None
    tracks = Scan.load(model / "data").tracks if (model / "data" / "tracks.jsonl").is_file() else []
    shown = [
        {"path": t.path, "split": t.split, "seconds": t.seconds, "labels": _labels(t.labels)}
        for t in sorted(tracks, key=lambda t: t.split != "valid")[:MAX_TRACKS]
    ]
    rates = [f"{count} at {int(rate):,} Hz" for rate, count in report["sample_rates"].items()]
    counts = {
        "Folder": report["folder"],
        "Tracks": f"{report['train_tracks']} to learn from, {report['valid_tracks']} held out",
        "Length": f"{report['hours'] * 60:.1f} minutes",
        "Rates": ", ".join(rates),
        "Set aside": f"{report['quarantined'] or 'no'} files, {len(report['duplicates']) or 'none'} of them copies",
        "Mostly silent": f"{len(report['mostly_silent']) or 'no'} tracks",
        "Clipped": f"{len(report['clipped']) or 'no'} tracks",
    }
    return {**report, "counts": counts, "shown": shown, "more_tracks": len(tracks) - len(shown)}


def _labels(labels: Mapping[str, str]) -> str:
    """Of one line; long ones, such as lyrics, are cut."""
    parts = [f"{name}: {value}" for name, value in labels.items()]
    return ", ".join(p if len(p) <= MAX_TEXT else f"{p[: MAX_TEXT - 1]}…" for p in parts)


def credits_html(model: Path) -> list[tuple[str, str]]:
    """Name and text, as safe HTML, of the credits and licences that lie in the music's folder, and of the credits in the
    folder above it. Markup is Markdown; HTML in it is shown as text, and pictures, which could be elsewhere, are left out."""
    report = read_json(model / "data" / "report.json")
    folder = Path(report["folder"]) if report else None
    if folder is None or not folder.is_dir():
        return []
    names = ("credits", "licence", "license", "copying")
    paths = [path for path in sorted(folder.iterdir()) if path.stem.lower() in names]
    paths += [path for path in sorted(folder.parent.iterdir()) if path.stem.lower() == "credits"]
    markdown = MarkdownIt("js-default").disable("image")
    return [
        (path.name, markdown.render(path.read_text(encoding="utf-8", errors="replace")[:MAX_FILE]))
        for path in paths
        if path.is_file() and path.suffix.lower() in {"", ".md", ".txt"}
    ]
