"""The test-set command: reconstruction quality of a model on a folder of music."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from audiovq import api
from audiovq.data import audio
from audiovq.data.tracks import DataConfig, Scan, Track, scan
from audiovq.evaluation.confidence import Estimate
from audiovq.evaluation.metrics import METRICS
from audiovq.evaluation.perceptual import check_installed, perceptual_score
from audiovq.evaluation.reconstruction import Reconstruction, evaluate_tracks
from audiovq.utils.progress import track as progress

T = TypeVar("T")


def evaluate_model(model: str, data: str | None, perceptual: bool = False) -> dict[str, Any]:
    """The report of `evaluate_tracks` with the model's name and the identity of its codes.

    Raises:
        ValueError: no such model; no data given and the model is not a run with held-out tracks; `perceptual` without
            its extra.
    """
    if perceptual:
        check_installed()
    folder = api.resolve_model(model)
    tokenizer = api.Tokenizer.from_pretrained(folder)
    root, tracks = held_out_tracks(folder, model, data)
    metrics = METRICS | ({"perceptual_score": perceptual_score} if perceptual else {})
    tokenizer.decode(tokenizer.encode(torch.zeros(tokenizer.sample_rate), tokenizer.sample_rate))  # warm up
    items = progress(reconstructions(tokenizer, root, tracks), "evaluate", len(tracks))
    return {"model": model, "tokenizer": tokenizer.hash, **evaluate_tracks(items, metrics)}


def held_out_tracks(folder: Path, model: str, data: str | None) -> tuple[Path, list[Track]]:
    """The folder and tracks to judge a model on: all of `data`, else those its run holds out."""
    if data is not None:
        found = scan(Path(data), DataConfig(folder=data))
        return found.folder, found.tracks
    if not (folder / "data" / "tracks.jsonl").is_file():
        raise ValueError(
            f"{model}: not a run, so it has no held-out tracks; name a folder of music: audiovq eval {model} DATA"
        )
    found = Scan.load(folder / "data")
    tracks = found.split("valid")
    if not tracks:
        raise ValueError(f"{model}: the run holds no track out; name a folder of music: audiovq eval {model} DATA")
    return found.folder, tracks


def reconstructions(tokenizer: api.Tokenizer, root: Path, tracks: list[Track]) -> Iterator[Reconstruction]:
    for track in tracks:
        source, rate = audio.read_audio(root / track.path, tokenizer.sample_rate, tokenizer.config.channels)
        codes, encode_seconds = _timed(lambda source=source, rate=rate: tokenizer.encode(source, rate))
        n = range(1, len(codes.levels) + 1)
        decoded = [_timed(lambda codes=codes, k=k: tokenizer.decode(codes, k)) for k in n]
        waveforms, decode_seconds = zip(*decoded, strict=True)
        yield Reconstruction(track.path, source, list(waveforms), codes, encode_seconds, list(decode_seconds))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def print_tables(report: dict[str, Any]) -> None:
    """Tracks; means with their intervals; use of the codes."""
    console = Console(width=max(165, Console().width))
    console.print(_table("tracks", report["tracks"], {"samples"}))
    summary = Table("", *(f"{row['levels']} of {len(report['levels'])} levels" for row in report["summary"]))
    summary.title = f"mean over {report['summary'][0]['n_tracks']} tracks ± 95 % confidence"
    for name in report["summary"][0]:
        if name not in {"levels", "n_tracks", "seconds"}:
            summary.add_row(name.replace("_", " "), *(_cell(row[name]) for row in report["summary"]))
    console.print(summary)
    console.print(_table("use of the codes", report["levels"], set()))


def _table(title: str, rows: list[dict[str, Any]], hidden: set[str]) -> Table:
    names = [name for name in rows[0] if name not in hidden]
    table = Table(*(name.replace("_", " ") for name in names), title=title)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return str(Estimate(value["mean"], value["ci95"]))
    return str(Estimate(value, None)) if isinstance(value, float) else str(value)
