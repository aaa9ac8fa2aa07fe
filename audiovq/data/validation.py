"""Checks codes files and shards from any source before their numbers are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

LARGEST_SHARDS = 1 << 20
LARGEST_CODES = 1 << 28  # of a codes file, all levels together
CODES_PER_BYTE = 4096  # of a compressed file, at most; silence has fewer
HEADER = {  # the least and the largest value of each number
    "n_samples": (1, 1 << 48),
    "sample_rate": (1, 384000),
    "codebook_size": (2, 1 << 16),
    "channels": (1, 16),
}


def check_header(header: Mapping[str, Any], n_levels: int | None, size: int) -> None:
    """Raises ValueError if a value in a codes file's header is wrong, or more than the file can hold.

    Args:
        n_levels: of a compressed file; decoding it would take memory for any number of codes that it names.
        size: of the file, in bytes.
    """
    for name, (least, most) in HEADER.items():
        value = header.get(name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name}: expected {least} to {most}, found {value!r:.40}")
    hops = header.get("hop_lengths")
    if (
        not isinstance(hops, list)
        or not 1 <= len(hops) <= 64
        or not all(type(h) is int and 1 <= h <= 1 << 16 for h in hops)
    ):
        raise ValueError(f"hop_lengths: expected a list of numbers of samples, found {hops!r:.60}")
    for name in ("tokenizer_hash", "source_sha256"):
        if not isinstance(header.get(name, ""), str):
            raise ValueError(f"{name}: expected text, found {header[name]!r:.40}")
    if n_levels is not None:
        if type(n_levels) is not int or not 1 <= n_levels <= len(hops):
            raise ValueError(f"n_levels: expected 1 to {len(hops)}, found {n_levels!r:.40}")
        n_codes = sum(-(-header["n_samples"] // hop) for hop in hops[:n_levels])
        most = min(LARGEST_CODES, (1 << 16) + CODES_PER_BYTE * size)
        if n_codes > most:
            raise ValueError(f"n_samples: expected at most {most} codes in {size} bytes, found {n_codes}")


def check_range(codes: Any, codebook_size: int, what: str) -> None:
    """Raises ValueError for codes (an array or a tensor) outside [0, codebook_size)."""
    least, most = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
    if least < 0 or most >= codebook_size:
        raise ValueError(f"{what}: expected codes from 0 to {codebook_size - 1}, found {least} to {most}")


def check_tracks(columns: np.ndarray, n_bytes: int, n_shards: int, lengths: Mapping[tuple[int, int], int]) -> None:
    """Raises ValueError if a table of tracks names shards, lines or codes that do not exist.

    Args:
        columns: tracks.npy, see `data/shards.py`: line, its bytes, shard, split, samples, first codes,
            lengths.
        n_bytes: of tracks.jsonl.
        lengths: the number of codes in the file of each (shard, level), where known.
    """
    if columns.dtype != np.int64 or columns.ndim != 2 or (len(columns) and int(columns.min()) < 0):
        raise ValueError("expected a table of whole numbers from 0 on")
    line, line_bytes, shard, split, samples = columns[:, :5].T
    firsts, counts = np.hsplit(columns[:, 5:], 2)
    fits = (line + line_bytes <= n_bytes) & (shard < n_shards) & (split < 2) & (samples > 0)
    for (number, level), length in lengths.items():
        first, count = firsts[:, level], counts[:, level]
        fits &= (shard != number) | ((first <= length) & (count <= length - first))
    if not fits.all():
        raise ValueError(f"track {int(np.argmin(fits))}: expected codes within its shard, found others")


def check_relative(path: Any) -> None:
    """Raises ValueError for a path that leads out of its folder."""
    if not isinstance(path, str) or any(
        kind(path).is_absolute() or kind(path).drive or ".." in kind(path).parts
        for kind in (PurePosixPath, PureWindowsPath)
    ):
        raise ValueError(f"path: expected one within the music folder, found {path!r:.80}")


def check_shard(array: np.ndarray) -> None:
    """Raises ValueError if a shard's file is not a row of whole numbers."""
    if array.ndim != 1 or array.dtype not in (np.uint8, np.uint16, np.int32):
        raise ValueError(f"expected one row of whole numbers, found {array.dtype} {list(array.shape)}")
