"""Codes of a data set as one Parquet file, which the library datasets and others read. Needs `audiovq[parquet]`."""

import os
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
    labels = sorted({name for labels in tracks.labels() for name in labels})
    levels = [f"level_{level}" for level in range(len(index.hop_lengths))]
    facts = {name: getattr(index, name) for name in ("tokenizer_hash", "sample_rate", "hop_lengths", "codebook_size")}
    text, number, numbers = pyarrow.string(), pyarrow.int64(), pyarrow.list_(pyarrow.int32())
    columns = [("path", text), ("sha256", text), ("split", text), ("n_samples", number), ("tokenizer_hash", text)]
    columns += [("sample_rate", number), ("hop_lengths", numbers), ("codebook_size", number)]
    columns += [(name, numbers) for name in levels]
    if labels:  # Parquet has no structures without members
        columns.append(("labels", pyarrow.struct([(name, text) for name in labels])))
    schema = pyarrow.schema(columns)

    def row(track: ShardTrack) -> dict[str, Any]:
        own = {name: getattr(track, name) for name in ("path", "sha256", "split", "n_samples", "labels")}
        own["path"] = os.fsencode(track.path).decode(errors="replace")  # Parquet has UTF-8 alone
        return own | facts | {name: shards.codes(track, level) for level, name in enumerate(levels)}

    with atomic_file(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as file:
        for start in progress(range(0, len(tracks), ROWS), "export", -(-len(tracks) // ROWS)):
            rows = [row(tracks[i]) for i in range(start, min(start + ROWS, len(tracks)))]
            file.write_table(pyarrow.Table.from_pylist(rows, schema))
    return len(tracks)
