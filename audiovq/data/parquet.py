"""Codes of a data set as one Parquet file, which the library datasets and others read. Needs `audiovq[parquet]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow  # pyright: ignore[reportMissingImports]
import pyarrow.parquet  # pyright: ignore[reportMissingImports]

from audiovq.data.shards import Shards, ShardTrack
from audiovq.utils.files import atomic_file, check_folder, check_output
from audiovq.utils.progress import track as progress

ROWS = 100  # tracks that are in memory at once


def export_parquet(shards: Shards, path: Path, split: str | None = None) -> int:
    """Write a row per track: path, sha256, split, labels, n_samples, the facts of the tokenizer, and its codes in
    level_0, level_1, …. Returns the number of rows; ValueError for no tracks, or damaged codes."""
    tracks, index = shards.index.tracks.of(split), shards.index
    if not len(tracks):
        raise ValueError(f"{shards.folder}: no {split or ''} tracks among the codes".replace("  ", " "))
    check_folder(path.parent)
    check_output(path, [b"PAR1"])
    names = sorted({name for labels in tracks.labels() for name in labels})
    facts = {
        "tokenizer_hash": index.tokenizer_hash,
        "sample_rate": index.sample_rate,
        "hop_lengths": index.hop_lengths,
        "codebook_size": index.codebook_size,
    }
    text, numbers = pyarrow.string(), pyarrow.list_(pyarrow.int32())
    columns = {"path": text, "sha256": text, "split": text, "n_samples": pyarrow.int64()}
    if names:  # Parquet has no structures without members
        columns["labels"] = pyarrow.struct([(name, text) for name in names])
    columns |= {"tokenizer_hash": text, "sample_rate": pyarrow.int32()}
    columns |= {"hop_lengths": numbers, "codebook_size": pyarrow.int32()}
    columns |= {f"level_{level}": numbers for level in range(len(index.hop_lengths))}
    schema = pyarrow.schema(list(columns.items()))

    def row(track: ShardTrack) -> dict[str, Any]:
        own = {name: getattr(track, name) for name in ("path", "sha256", "split", "n_samples", "labels")}
        levels = {f"level_{level}": shards.codes(track, level) for level in range(len(index.hop_lengths))}
        return {name: value for name, value in (own | facts | levels).items() if name in columns}

    with atomic_file(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as file:
        for start in progress(range(0, len(tracks), ROWS), "export", -(-len(tracks) // ROWS)):
            rows = [row(tracks[i]) for i in range(start, min(start + ROWS, len(tracks)))]
            file.write_table(pyarrow.Table.from_pylist(rows, schema))
    return len(tracks)
