"""Token shards: the codes of a data set in a few files, and a table of tracks that opens fast at any size.

shard-00000-level-0.npy …   one file per level: codes of many tracks in a row, uint16 or int32
shard-00000-chroma.npy      one pitch class per top code, if the data set has chroma
tracks.jsonl                one line per track: path, sha256, split, labels
tracks.npy                  int64, one row per track: where its line and its codes are
index.json                  format and tokenizer, the size of every file, CRC-32 of the tables; written last
"""

from __future__ import annotations

import io
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from audiovq.data import validation
from audiovq.data.codes import Codes
from audiovq.data.storage import RemoteArray, Storage, Unreachable
from audiovq.data.tracks import Track
from audiovq.utils.files import cannot_write, json_line, write_text

FORMAT = "audiovq-shards-2"
SHARD_CODES = 1 << 26  # codes a level in one shard file, at most (a track is never split)
# Columns of tracks.npy; from COLUMNS on the first code of each level, then the number of codes of each level.
LINE, LINE_BYTES, SHARD, SPLIT, SAMPLES, COLUMNS = range(6)
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class ShardTrack:
    """Where a track's codes are, and the file that they were made from."""

    path: str
    sha256: str
    split: str
    labels: dict[str, str]
    n_samples: int  # at the tokenizer's rate
    shard: int
    offsets: list[int]  # first code within the shard's file, a level
    lengths: list[int]  # codes, a level


class TrackTable(Sequence[ShardTrack]):
    """A sequence of tracks, built on access from two arrays that worker processes share.

    Args:
        lines: uint8, tracks.jsonl.
        columns: int64 [n_tracks, COLUMNS + 2 · n_levels].
        rows: int64, which tracks of them; None for all.
    """

    def __init__(self, lines: np.ndarray, columns: np.ndarray, rows: np.ndarray | None = None):
        self.lines, self.columns = lines, columns
        self.rows = np.arange(len(columns)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> ShardTrack:  # type: ignore[override] - no slices
        line, n_bytes, shard, split, n_samples, *where = self.columns[self.rows[i]].tolist()
        facts = json.loads(self.lines[line : line + n_bytes].tobytes())
        validation.check_relative(facts["path"])
        path, sha256, labels = facts["path"], facts["sha256"], facts["labels"]
        offsets, lengths = where[: len(where) // 2], where[len(where) // 2 :]
        return ShardTrack(path, sha256, SPLITS[split], labels, n_samples, shard, offsets, lengths)

    def of(self, split: str | None) -> TrackTable:
        """The tracks of one split; all for None."""
        if split is None:
            return self
        mine = self.columns[self.rows, SPLIT] == SPLITS.index(split)
        return TrackTable(self.lines, self.columns, self.rows[mine])

    def labels(self) -> Iterator[dict[str, str]]:
        """The labels of each track; much faster than building all tracks."""
        for line, n_bytes in self.columns[self.rows][:, [LINE, LINE_BYTES]].tolist():
            yield json.loads(self.lines[line : line + n_bytes].tobytes())["labels"]

    def lengths(self, level: int) -> np.ndarray:
        """The number of codes of each track at a level, int64 [n_tracks]."""
        n_levels = (self.columns.shape[1] - COLUMNS) // 2
        return self.columns[self.rows, COLUMNS + n_levels + level]


NO_TRACKS = TrackTable(np.zeros(0, np.uint8), np.zeros((0, COLUMNS), np.int64))


@dataclass
class ShardIndex:
    """The content of index.json, and the table of tracks."""

    tokenizer_hash: str
    sample_rate: int
    hop_lengths: list[int]
    codebook_size: int
    chroma: bool = False  # whether the shards also have pitch classes, see `data/chroma.py`
    n_shards: int = 0
    tracks: TrackTable = field(default_factory=lambda: NO_TRACKS)

    @property
    def names(self) -> list[str]:
        """The file names of all shards."""
        kinds = [f"level-{level}" for level in range(len(self.hop_lengths))] + ["chroma"] * self.chroma
        return [f"shard-{shard:05d}-{kind}.npy" for shard in range(self.n_shards) for kind in kinds]


class _GrowingArray:
    """A one-dimensional .npy file that values are appended to; they do not stay in memory."""

    def __init__(self, path: Path, dtype: type[np.generic]):
        self.file, self.dtype, self.n = path.open("wb"), np.dtype(dtype), 0
        self._write_header()
        self.begin = self.file.tell()

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.n,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, values: np.ndarray) -> None:
        self.file.write(values.astype(self.dtype).tobytes())
        self.n += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.begin, "numpy pads the header for any length"
        _close_safely(self.file)


def _close_safely(file: IO[Any]) -> None:
    """Flush before the index is written, which must not name files that are not on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


class ShardWriter:
    """Appends tracks to shards; index.json is written last and marks a complete folder.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(self, folder: Path, index: ShardIndex):
        self.folder, self.index = folder, index
        folder.mkdir(parents=True, exist_ok=True)
        self.dtype = np.uint16 if index.codebook_size <= 65536 else np.int32
        self.files: list[_GrowingArray] = []  # of the current shard: one per level, then chroma
        self.lines: IO[bytes] = (folder / "tracks.jsonl").open("wb")
        self.columns = array("q")

    def add(self, track: Track, codes: Codes, chroma: np.ndarray | None = None) -> None:
        """Append a track.

        Args:
            chroma: uint8 [n_top_codes], if the index has chroma.
        """
        values = [level.numpy() for level in codes.levels]
        assert len(values) == len(self.index.hop_lengths), "expected codes of each level"
        if self.index.chroma:
            assert chroma is not None, "the index has chroma"
            assert len(chroma) == len(values[0]), "expected one chroma class per top code"
            values.append(chroma)
        n_levels = len(codes.levels)
        try:
            if not self.files or self.files[n_levels - 1].n + len(values[n_levels - 1]) > SHARD_CODES:
                self._next_shard()
            offsets, lengths = [file.n for file in self.files], [len(part) for part in values]
            for file, part in zip(self.files, values, strict=True):
                file.append(part)
            facts = {"path": track.path, "sha256": track.sha256, "split": track.split, "labels": track.labels}
            start, line = self.lines.tell(), json_line(facts)
            self.lines.write(line)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        row = [start, len(line), self.index.n_shards - 1, SPLITS.index(track.split), codes.n_samples]
        self.columns.extend([*row, *offsets[:n_levels], *lengths[:n_levels]])

    def _next_shard(self) -> None:
        for file in self.files:
            file.close()
        self.index.n_shards += 1
        dtypes = [self.dtype] * len(self.index.hop_lengths) + [np.uint8] * self.index.chroma
        paths = [self.folder / name for name in self.index.names[-len(dtypes) :]]
        self.files = [_GrowingArray(path, dtype) for path, dtype in zip(paths, dtypes, strict=True)]

    def finish(self) -> None:
        try:
            for file in self.files:
                file.close()
            _close_safely(self.lines)
            n_columns = COLUMNS + 2 * len(self.index.hop_lengths)
            columns = np.frombuffer(self.columns, np.int64).reshape(-1, n_columns)
            with (self.folder / "tracks.npy").open("wb") as file:
                np.save(file, columns)
                _close_safely(file)
            names = [*self.index.names, "tracks.jsonl", "tracks.npy"]
            content = {key: value for key, value in vars(self.index).items() if key != "tracks"}
            content |= {"format": FORMAT, "n_tracks": len(columns)}
            content["sizes"] = {name: (self.folder / name).stat().st_size for name in names}
            content["crc32"] = {name: zlib.crc32((self.folder / name).read_bytes()) for name in names[-2:]}
            write_text(self.folder / "index.json", json.dumps(content, indent=1))
        except OSError as error:
            raise cannot_write(self.folder, error) from None


class Shards:
    """The codes of a data set. Local files are memory-mapped, files at a URL are read by ranges.

    Raises:
        ValueError: no shards, damaged ones, or shards of another tokenizer.
    """

    def __init__(self, folder: Path | str, tokenizer_hash: str | None = None):
        self.folder, self.storage = folder, Storage(folder)
        self.sizes: dict[str, int] = {}
        self.index = self._read_index()
        if tokenizer_hash is not None and self.index.tokenizer_hash != tokenizer_hash:
            found = self.index.tokenizer_hash[:12]
            raise ValueError(
                f"{folder}: expected codes of tokenizer {tokenizer_hash[:12]}, found codes of {found}; "
                "delete the folder and run the codes stage again"
            )
        self._arrays: dict[str, np.ndarray | RemoteArray] = {}
        if self.storage.local:  # remote files are opened when needed, because each costs two requests
            for name in self.index.names:
                self._array(name)
        self._check_tracks()

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process opens its own; pickling a mapped array would copy it."""
        return Shards, (self.folder,)

    def _check_tracks(self) -> None:
        """Raises ValueError if a track's codes are not within its shard. (Remote shards are not opened.)"""
        index, n_levels = self.index, len(self.index.hop_lengths)
        lengths = {
            (shard, level): len(self._array(f"shard-{shard:05d}-level-{level}.npy"))
            for shard in range(index.n_shards if self.storage.local else 0)
            for level in range(n_levels)
        }
        try:
            expected, found = COLUMNS + 2 * n_levels, index.tracks.columns.shape[1]
            if found != expected:
                raise ValueError(f"expected {expected} columns, found {found}")
            validation.check_tracks(index.tracks.columns, len(index.tracks.lines), index.n_shards, lengths)
        except ValueError as error:
            raise self._damaged("tracks.npy", error) from None

    def _read_index(self) -> ShardIndex:
        try:
            content: dict[str, Any] = json.loads(self.storage.read("index.json"))
        except FileNotFoundError:
            raise ValueError(f"{self.folder}: no codes there; run the codes stage first") from None
        except json.JSONDecodeError as error:
            raise self._damaged("index.json", error) from None
        try:
            validation.check_header(content | {"n_samples": 1, "channels": 1}, None, 0)
            n_shards, chroma = content["n_shards"], content["chroma"]
            if type(n_shards) is not int or not 0 <= n_shards <= validation.LARGEST_SHARDS:
                raise ValueError(f"n_shards: expected 0 to {validation.LARGEST_SHARDS}, found {n_shards!r:.40}")
            if type(chroma) is not bool:
                raise ValueError(f"chroma: expected true or false, found {chroma!r:.40}")
            if "tracks" in content:
                return _first_format(content)
            if content.pop("format") != FORMAT:
                raise ValueError(f"expected shards of format {FORMAT}; update audiovq")
            self.sizes, sums = content.pop("sizes"), content.pop("crc32")
            lines, table = (self._checked(name, sums[name]) for name in ("tracks.jsonl", "tracks.npy"))
            columns = np.load(io.BytesIO(table.tobytes()), allow_pickle=False)
            assert content.pop("n_tracks") == len(columns), "both were written together"
            return ShardIndex(**content, tracks=TrackTable(np.asarray(lines), columns))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._damaged("index.json", error) from None

    def _checked(self, name: str, crc32: int) -> np.ndarray:
        """A whole file as uint8, after its checksum was compared; a local one is memory-mapped."""
        try:
            content = self.storage.bytes(name)
        except OSError as error:
            raise self._damaged(name, error) from None
        if zlib.crc32(content.data) != crc32:
            raise self._damaged(name, "its checksum is wrong")
        return content

    def _array(self, name: str) -> np.ndarray | RemoteArray:
        if name not in self._arrays:
            try:
                size, expected = self.storage.size(name), self.sizes.get(name)
                if expected is not None and size != expected:
                    raise ValueError(f"expected {expected} bytes, found {size}")
                array = self._arrays[name] = self.storage.array(name)
                if isinstance(array, np.ndarray):  # a RemoteArray holds nothing but numbers
                    validation.check_shard(array)
            except Unreachable:
                raise
            except (OSError, ValueError) as error:
                raise self._damaged(name, error) from None
        return self._arrays[name]

    def _damaged(self, name: str, reason: object) -> ValueError:
        path = self.storage.path(name)
        advice = "delete its folder and run the codes stage again"
        return ValueError(f"{path}: shard missing or damaged ({reason}); {advice}")

    def _part(self, track: ShardTrack, kind: str, start: int, end: int) -> np.ndarray:
        name = f"shard-{track.shard:05d}-{kind}.npy"
        part = np.asarray(self._array(name)[start:end])
        if len(part) != end - start:
            raise self._damaged(name, "it is too short")
        return part

    def codes(self, track: ShardTrack, level: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Codes [start, end) of one level of a track, as int64."""
        length, first = track.lengths[level], track.offsets[level]
        end = length if end is None else min(end, length)
        codes = self._part(track, f"level-{level}", first + start, first + max(start, end)).astype(np.int64)
        try:
            validation.check_range(codes, self.index.codebook_size, track.path)
        except ValueError as error:
            raise self._damaged(f"shard-{track.shard:05d}-level-{level}.npy", error) from None
        return codes

    def chroma(self, track: ShardTrack) -> np.ndarray:
        """Pitch classes of a track, uint8 [n_top_codes]."""
        return self._part(track, "chroma", track.offsets[0], track.offsets[0] + track.lengths[0])


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


def table_of(tracks: Iterable[ShardTrack]) -> TrackTable:
    """A table of these tracks."""
    lines, columns = bytearray(), []
    for track in tracks:
        facts = {key: getattr(track, key) for key in ("path", "sha256", "split", "labels")}
        line = json_line(facts)
        place = [len(lines), len(line), track.shard, SPLITS.index(track.split), track.n_samples]
        columns.append([*place, *track.offsets, *track.lengths])
        lines += line
    return TrackTable(np.frombuffer(lines, np.uint8), np.array(columns, dtype=np.int64))


def _first_format(content: dict[str, Any]) -> ShardIndex:
    """An index.json of the first format, which holds all tracks."""
    tracks = [ShardTrack(**track) for track in content.pop("tracks")]
    for track in tracks:
        validation.check_relative(track.path)
    return ShardIndex(**content, tracks=table_of(tracks))
