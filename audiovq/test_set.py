"""The test-set command: reconstruction quality of a model on a folder of music."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from audiovq import api
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.data.tracks import DataConfig, Scan, scan
from audiovq.evaluation.evaluate import evaluate_tracks, mean_rows
from audiovq.terminal import track as progress

COLUMNS = ("track", "levels", "seconds", "samples", "mel_distance", "si_sdr_db", "kbps", "entropy_kbps")


def evaluate_model(model: str, data: str | None) -> list[dict[str, Any]]:
    """Rows of every track and level prefix, the means last.

    Raises:
        ValueError: no such model; no data given and the model is not a run with held-out tracks.
    """
    folder = api.resolve_model(model)
    tokenizer = api.Tokenizer.from_pretrained(folder)
    if data is None:
        if not (folder / "data" / "tracks.jsonl").is_file():
            raise ValueError(
                f"{model}: not a run, so it has no held-out tracks; name a folder of music: audiovq eval {model} DATA"
            )
        found = Scan.load(folder / "data")
        tracks = found.split("valid")
        if not tracks:
            raise ValueError(f"{model}: the run holds no track out; name a folder of music: audiovq eval {model} DATA")
    else:
        found = scan(Path(data), DataConfig(folder=data))
        tracks = found.tracks

    def reconstruct(path: Path) -> tuple[Tensor, list[Tensor], Codes]:
        source, rate = audio.read_audio(path, tokenizer.sample_rate, tokenizer.config.channels)
        codes = tokenizer.encode(source, rate)
        return source, [tokenizer.decode(codes, k) for k in range(1, len(codes.levels) + 1)], codes

    paths = [found.folder / track.path for track in tracks]
    rows = evaluate_tracks(progress(paths, "evaluate", len(paths)), reconstruct)
    return rows + mean_rows(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(*(column.replace("_", " ") for column in COLUMNS))
    for row in rows:
        table.add_row(*(f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS))
    Console(width=max(110, Console().width)).print(table)
