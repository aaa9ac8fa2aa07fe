"""Token shards: the codes of a data set in a few files, which are memory-mapped.

shard-00000-level-0.npy …   one file per level: codes of many tracks in a row, uint16 or int32
shard-00000-chroma.npy      one pitch class per top code, if the data set has chroma
tracks.jsonl                one line per track: path, sha256, split, labels
tracks.npy                  int64, one row per track: where its line and its codes are
index.json                  format and tokenizer, the size of every file, CRC-32 of the tables; written last
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pooch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from audiovq import config as conf
from audiovq.data import storage
from audiovq.data.codes import Codes, Layout, check_range
from audiovq.data.tracks import Track, check_relative
from audiovq.utils.files import cannot_write, json_line, parse_line, write_text
from audiovq.utils.progress import track as progress

FORMAT = "audiovq-shards-2"
SHARD_CODES = 1 << 25  # codes a level in one shard file, at most (a track is never split)
TABLES = ("tracks.jsonl", "tracks.npy")
SPLITS = ("train", "valid")
# Columns of tracks.npy before the first code of each level and the number of codes of each level: the line's
# place and size in tracks.jsonl, the shard, the split, the number of samples.
N_COLUMNS = 5


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(strict=True))
class ShardTrack:
    """Where a track's codes are, and the file that they were made from."""

    path: str
    sha256: str
    split: Literal["train", "valid"]
    labels: dict[str, str]
    n_samples: PositiveInt  # at the tokenizer's rate
    shard: NonNegativeInt
    offsets: tuple[NonNegativeInt, ...]  # first code within the shard's file, a level
    lengths: tuple[NonNegativeInt, ...]  # codes, a level


@dataclass
class ShardIndex:
    """What all tracks have in common, and the tracks."""

    tokenizer_hash: str
    sample_rate: int
    hop_lengths: list[int]
    codebook_size: int
    chroma: bool = False  # whether the shards also have pitch classes, see `data/chroma.py`
    n_shards: int = 0
    tracks: list[ShardTrack] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The file names of all shards."""
        kinds = [f"level-{level}" for level in range(len(self.hop_lengths))] + ["chroma"] * self.chroma
        return [f"shard-{shard:05d}-{kind}.npy" for shard in range(self.n_shards) for kind in kinds]

    def of(self, split: str | None) -> list[ShardTrack]:
        """The tracks of one split; all for None."""
        return [track for track in self.tracks if split in (None, track.split)]


class _IndexFile(Layout):
    """index.json from any source."""

    chroma: bool
    n_shards: int = Field(ge=0, le=1 << 20)
    format: Literal["audiovq-shards-2"] = FORMAT
    n_tracks: int = 0
    sizes: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    crc32: dict[str, int] = {}  # noqa: RUF012
    tracks: tuple[Any, ...] | None = None  # of the first format, which has no tables


class ShardWriter:
    """Appends tracks to shards; index.json is written last and marks a complete folder.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(self, folder: Path, index: ShardIndex):
        self.folder, self.index = folder, index
        folder.mkdir(parents=True, exist_ok=True)
        dtype = np.uint16 if index.codebook_size <= 65536 else np.int32
        self.dtypes = [dtype] * len(index.hop_lengths) + [np.uint8] * index.chroma
        self.parts: list[list[np.ndarray]] = [[] for _ in self.dtypes]  # of the current shard, a file each
        self.lengths = [0 for _ in index.hop_lengths]  # codes in the current shard, a level
        self.lines: IO[bytes] = (folder / "tracks.jsonl").open("wb")
        self.rows: list[list[int]] = []

    def add(self, track: Track, codes: Codes, chroma: np.ndarray | None = None) -> None:
        """Append a track.

        Args:
            chroma: uint8 [n_top_codes], if the index has chroma.
        """
        values = [level.numpy() for level in codes.levels]
        n_levels = len(values)
        assert n_levels == len(self.index.hop_lengths), "expected codes of each level"
        if self.index.chroma:
            assert chroma is not None, "the index has chroma"
            assert len(chroma) == len(values[0]), "expected one chroma class per top code"
            values.append(chroma)
        facts = {"path": track.path, "sha256": track.sha256, "split": track.split, "labels": track.labels}
        line = json_line(facts)
        try:
            if self.lengths[-1] and self.lengths[-1] + len(values[n_levels - 1]) > SHARD_CODES:
                self._write_shard()
            start = self.lines.tell()
            self.lines.write(line)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        for parts, value, dtype in zip(self.parts, values, self.dtypes, strict=True):
            parts.append(value.astype(dtype))
        row = [start, len(line), self.index.n_shards, SPLITS.index(track.split), codes.n_samples]
        lengths = [len(level) for level in codes.levels]
        self.rows.append([*row, *self.lengths, *lengths])
        self.lengths = [a + b for a, b in zip(self.lengths, lengths, strict=True)]

    def _write_shard(self) -> None:
        self.index.n_shards += 1
        self.lengths = [0 for _ in self.lengths]
        for name, parts in zip(self.index.names[-len(self.parts) :], self.parts, strict=True):
            np.save(self.folder / name, np.concatenate(parts))
            parts.clear()

    def finish(self) -> None:
        try:
            if self.parts[0]:
                self._write_shard()
            self.lines.close()
            n_columns = N_COLUMNS + 2 * len(self.index.hop_lengths)
            np.save(self.folder / "tracks.npy", np.array(self.rows, dtype=np.int64).reshape(-1, n_columns))
            content = {key: value for key, value in vars(self.index).items() if key != "tracks"}
            content |= {"format": FORMAT, "n_tracks": len(self.rows)}
            content["sizes"] = {n: (self.folder / n).stat().st_size for n in [*self.index.names, *TABLES]}
            content["crc32"] = {n: zlib.crc32((self.folder / n).read_bytes()) for n in TABLES}
            write_text(self.folder / "index.json", json.dumps(content, indent=1))
        except OSError as error:
            raise cannot_write(self.folder, error) from None


class Shards:
    """The codes of a data set. Files at a URL are copied into a cache on this machine, once.

    Raises:
        ValueError: no shards, damaged ones, or shards of another tokenizer.
    """

    def __init__(self, folder: Path | str, tokenizer_hash: str | None = None):
        self.folder = folder
        try:
            content = storage.read(folder, "index.json")
        except FileNotFoundError:
            raise ValueError(f"{folder}: no codes there; run the codes stage first") from None
        self.local = Path(folder)
        if storage.is_url(folder):
            self.local = Path(pooch.os_cache("audiovq")) / "codes" / hashlib.sha256(content).hexdigest()[:32]
        try:
            file = conf.build(_IndexFile, json.loads(content), "index")
        except (ValueError, RecursionError) as error:
            raise self._damaged("index.json", error) from None
        self.sizes = file.sizes
        layout = file.tokenizer_hash, file.sample_rate, list(file.hop_lengths), file.codebook_size
        self.index = ShardIndex(*layout, file.chroma, file.n_shards)
        if tokenizer_hash is not None and file.tokenizer_hash != tokenizer_hash:
            raise ValueError(
                f"{folder}: expected codes of tokenizer {tokenizer_hash[:12]}, found codes of "
                f"{file.tokenizer_hash[:12]}; delete the folder and run the codes stage again"
            )
        names = self.index.names
        shown = progress(names, "download codes", len(names)) if storage.is_url(folder) else names
        self._arrays = {name: self._open(name) for name in shown}
        rows = list(self._table(file)) if file.tracks is None else file.tracks
        try:
            self.index.tracks = [self._track(row, i) for i, row in enumerate(rows)]
        except (TypeError, ValueError) as error:
            raise self._damaged("index.json" if file.tracks else "tracks.npy", error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process opens its own; pickling a mapped array would copy it."""
        return Shards, (self.folder,)

    def _path(self, name: str) -> Path:
        """A local file; one at a URL is downloaded first."""
        path = self.local / name
        if storage.is_url(self.folder) and not path.exists():
            storage.download(str(self.folder), name, path, self.sizes.get(name))
        return path

    def _open(self, name: str) -> np.ndarray:
        try:
            path, size = self._path(name), self.sizes.get(name)
            if size is not None and path.stat().st_size != size:
                raise ValueError(f"expected {size} bytes, found {path.stat().st_size}")
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.ndim != 1 or array.dtype not in (np.uint8, np.uint16, np.int32):
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"expected one row of whole numbers, found {found}")
            return array
        except (OSError, EOFError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _table(self, file: _IndexFile) -> Iterator[dict[str, Any]]:
        """The fields of each `ShardTrack`."""
        contents, n_levels = {}, len(file.hop_lengths)
        for name in TABLES:
            try:
                contents[name] = self._path(name).read_bytes()
                if zlib.crc32(contents[name]) != file.crc32.get(name):
                    raise ValueError("its checksum is wrong")
            except (OSError, ValueError) as error:
                raise self._damaged(name, error) from None
        lines = contents["tracks.jsonl"].splitlines()
        try:
            columns = np.load(io.BytesIO(contents["tracks.npy"]), allow_pickle=False)
            expected, found = [len(lines), N_COLUMNS + 2 * n_levels], list(columns.shape)
            if found != expected or columns.dtype != np.int64:
                raise ValueError(f"expected whole numbers {expected}, found {columns.dtype} {found}")
        except (EOFError, ValueError) as error:
            raise self._damaged("tracks.npy", error) from None
        for line, (_, _, shard, _, n_samples, *where) in zip(lines, columns.tolist(), strict=True):
            place = {"shard": shard, "offsets": tuple(where[:n_levels]), "lengths": tuple(where[n_levels:])}
            yield {**(parse_line(line) or {}), "n_samples": n_samples, **place}

    def _track(self, row: Any, i: int) -> ShardTrack:
        """Raises ValueError if its codes are not within its shard."""
        try:
            track = ShardTrack(**row)
            check_relative(track.path)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            message = wrong["msg"].replace("Input should be", "expected")
            raise ValueError(f"track {i}: {place}: {message}, found {wrong['input']!r:.60}") from None
        n_levels = len(self.index.hop_lengths)
        fits = track.shard < self.index.n_shards and len(track.offsets) == len(track.lengths) == n_levels
        if fits:
            arrays = [self._array(track, f"level-{level}") for level in range(n_levels)]
            fits = all(o + n <= len(a) for o, n, a in zip(track.offsets, track.lengths, arrays, strict=True))
        if fits and self.index.chroma:
            fits = track.offsets[0] + track.lengths[0] <= len(self._array(track, "chroma"))
        if not fits:
            raise ValueError(f"track {i}: expected codes within its shard, found others")
        return track

    def _array(self, track: ShardTrack, kind: str) -> np.ndarray:
        return self._arrays[f"shard-{track.shard:05d}-{kind}.npy"]

    def _damaged(self, name: str, reason: object) -> ValueError:
        advice = "delete its folder and run the codes stage again"
        return ValueError(f"{self.folder}/{name}: shard missing or damaged ({reason}); {advice}")

    def codes(self, track: ShardTrack, level: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Codes [start, end) of one level of a track, as int64."""
        length, first = track.lengths[level], track.offsets[level]
        end = length if end is None else min(end, length)
        codes = self._array(track, f"level-{level}")[first + start : first + max(start, end)].astype(np.int64)
        try:
            check_range(codes, self.index.codebook_size, track.path)
        except ValueError as error:
            raise self._damaged(f"shard-{track.shard:05d}-level-{level}.npy", error) from None
        return codes

    def chroma(self, track: ShardTrack) -> np.ndarray:
        """Pitch classes of a track, uint8 [n_top_codes]."""
        return np.asarray(self._array(track, "chroma")[track.offsets[0] :][: track.lengths[0]])


def spread(counts: np.ndarray, at_most: int) -> Iterator[tuple[int, int]]:
    """Choose places in tracks, evenly spread over all of them.

    Args:
        counts: [n_tracks], the number of places in each track.
        at_most: how many to choose.
    Returns:
        (track, place within the track), in order.
    """
    ends = np.cumsum(counts)
    n = int(ends[-1]) if len(ends) else 0
    for place in np.linspace(0, n - 1, min(n, at_most)).round().astype(int):
        track = int(np.searchsorted(ends, place, side="right"))
        yield track, int(place - ends[track] + counts[track])
