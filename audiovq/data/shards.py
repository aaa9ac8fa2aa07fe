"""Token shards: the codes of a data set in a few files, which are memory-mapped and open fast at any size.

shard-00000-level-0.npy …   one file per level: codes of many tracks in a row, uint16 or int32
shard-00000-chroma.npy      one pitch class per top code, if the data set has chroma
shard-00000-notes.npy       one frame of notes per top code, uint16, if the data set has notes
tracks.jsonl                one line per track: path, sha256, split, labels
tracks.npy                  int64, one row per track: where its line and its codes are
index.json                  format and tokenizer, size and CRC-32 of every file (of a shard, of each block); written last
"""

import contextlib
import dataclasses
import hashlib
import json
import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import pooch
from pydantic import Field, NonNegativeInt, PositiveInt

from audiovq import config as conf
from audiovq.config import Config
from audiovq.data import storage
from audiovq.data.codes import Codes, Layout, check_range
from audiovq.data.conditions import SILENT
from audiovq.data.music import SPLITS, TABLES, Table, crc32, mapped
from audiovq.data.notes import N_FRAMES
from audiovq.data.tracks import Track, check_relative
from audiovq.utils.environment import errors_as
from audiovq.utils.files import json_line, write_text, writing
from audiovq.utils.progress import track as progress

FORMAT = "audiovq-shards-2"
SHARD_CODES = 1 << 25  # codes a level in one shard file, at most (a track is never split)
BLOCK_CODES = 1 << 19  # codes that share a checksum, which is verified when the first of them is read
LINE = ("path", "sha256", "split", "labels")
# Columns of tracks.npy before the first code of each level and the number of codes of each level: the line's
# place and size in tracks.jsonl, the shard, the split, the number of samples.
N_COLUMNS = 5
Places = tuple[Annotated[int, Field(ge=0, le=conf.LARGEST_NUMBER)], ...]


class ShardTrack(Config):
    """Where a track's codes are, and the file that they were made from."""

    path: str
    sha256: str
    split: Literal["train", "valid"]
    labels: dict[str, str]
    n_samples: PositiveInt  # at the tokenizer's rate
    shard: NonNegativeInt
    offsets: Places  # first code within the shard's file, a level
    lengths: Places  # codes, a level

    def row(self) -> tuple[Any, ...]:
        """As `Table.write` takes it."""
        facts, split = self.model_dump(include=set(LINE)), SPLITS.index(self.split)
        return facts, self.shard, split, self.n_samples, *self.offsets, *self.lengths


class TrackTable(Table[ShardTrack]):
    """The number of a track is its shard. `columns` are [n_tracks, N_COLUMNS + 2 · n_levels]."""

    def build(self, facts: dict[str, Any], numbers: list[int]) -> ShardTrack:
        shard, _, n_samples, *places = numbers
        half = len(places) // 2
        where = {"shard": shard, "offsets": places[:half], "lengths": places[half:]}
        return checked_track(**facts | {"n_samples": n_samples, **where})

    def lengths(self, level: int) -> np.ndarray:
        """The number of codes of each track at a level, int64 [n_tracks]."""
        return self.column((N_COLUMNS + self.columns.shape[1]) // 2 + level)


def checked_track(**facts: Any) -> ShardTrack:
    """A track from any source; ValueError if it cannot be one."""
    track = conf.build(ShardTrack, facts, "a track")
    check_relative(track.path)
    return track


@dataclass
class ShardIndex:
    """What all tracks have in common, and the tracks."""

    tokenizer_hash: str
    sample_rate: int
    hop_lengths: list[int]
    codebook_size: int
    chroma: bool = False  # whether the shards also have pitch classes, see `data/conditions.py`
    n_shards: int = 0
    notes: bool = False  # whether the shards also have notes, see `data/notes.py`
    slots: int = 1  # see `VQVAEConfig.slots`
    tracks: TrackTable = field(init=False, repr=False, compare=False)  # of shards that are read

    @property
    def extras(self) -> dict[str, type]:
        """What the shards have for each top code besides codes, and its dtype."""
        return ({"chroma": np.uint8} if self.chroma else {}) | ({"notes": np.uint16} if self.notes else {})

    @property
    def names(self) -> list[str]:
        kinds = [f"level-{level}" for level in range(len(self.hop_lengths))] + list(self.extras)
        return [f"shard-{shard:05d}-{kind}.npy" for shard in range(self.n_shards) for kind in kinds]


class _IndexFile(Layout):
    """index.json from any source."""

    chroma: bool
    notes: bool = False
    n_shards: int = Field(ge=0, le=1 << 20)
    format: Literal["audiovq-shards-2"] = FORMAT
    n_tracks: int = 0
    sizes: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    crc32: dict[str, int] = {}  # noqa: RUF012
    blocks: dict[str, tuple[int, ...]] = {}  # noqa: RUF012 - CRC-32 of each block of a shard; none in version 0.1
    tracks: tuple[Any, ...] | None = None  # of the first format, which has no tables


class ShardWriter:
    """Appends tracks to shards; index.json is written last. ValueError if the folder cannot be written."""

    def __init__(self, folder: Path, index: ShardIndex):
        self.folder, self.index = folder, dataclasses.replace(index)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.lines: IO[bytes] = (folder / "tracks.jsonl").open("wb")
        dtype = np.uint16 if index.codebook_size <= 65536 else np.int32
        self.dtypes = [dtype] * len(index.hop_lengths) + list(index.extras.values())
        self.parts: list[list[np.ndarray]] = [[] for _ in self.dtypes]  # of the current shard, a file each
        self.lengths = np.zeros(len(index.hop_lengths), dtype=np.int64)  # codes in the current shard, a level
        self.rows = array("q")  # of tracks.npy
        self.blocks: dict[str, list[int]] = {}

    def add(self, track: Track, codes: Codes, *extras: np.ndarray) -> None:
        """Append a track, with its `ShardIndex.extras`, each [n_top_codes]."""
        values = [level.numpy() for level in codes.levels]
        lengths = [len(value) for value in values]
        assert all(len(extra) == lengths[0] for extra in extras), "expected one frame per top code"
        line = json_line({key: getattr(track, key) for key in LINE})
        with writing(self.folder):
            if self.lengths[-1] and self.lengths[-1] + lengths[-1] > SHARD_CODES:
                self._write_shard()
            start = self.lines.tell()
            self.lines.write(line)
        for parts, value, dtype in zip(self.parts, [*values, *extras], self.dtypes, strict=True):
            parts.append(value.astype(dtype))
        row = [start, len(line), self.index.n_shards, SPLITS.index(track.split), codes.n_samples]
        self.rows.extend([*row, *self.lengths.tolist(), *lengths])
        self.lengths += lengths

    def _write_shard(self) -> None:
        self.index.n_shards += 1
        self.lengths[:] = 0
        for name, parts in zip(self.index.names[-len(self.parts) :], self.parts, strict=True):
            codes = np.concatenate(parts)
            np.save(self.folder / name, codes)
            blocks = (codes[i : i + BLOCK_CODES] for i in range(0, len(codes), BLOCK_CODES))
            self.blocks[name] = [zlib.crc32(block.tobytes()) for block in blocks]
            parts.clear()

    def take(self, part: Path) -> None:
        """Move the shards of another writer, which has finished in the folder `part`, here, and append its tracks."""
        facts = json.loads((part / "index.json").read_text())
        first, n_files = self.index.n_shards, len(self.index.names)
        self.index.n_shards += facts["n_shards"]
        for (old, sums), new in zip(facts["blocks"].items(), self.index.names[n_files:], strict=True):
            (part / old).rename(self.folder / new)
            self.blocks[new] = sums
        start = self.lines.tell()
        self.lines.write(mapped(part / "tracks.jsonl").data)
        rows = np.load(part / "tracks.npy", allow_pickle=False)
        rows[:, [0, 2]] += start, first
        self.rows.frombytes(rows.tobytes())

    def finish(self, order: np.ndarray | None = None) -> None:
        """Write the rest; the tracks are listed in this `order`, default that in which they were added."""
        with writing(self.folder):
            if self.parts[0]:
                self._write_shard()
            self.lines.close()
            rows = np.array(self.rows, dtype=np.int64).reshape(-1, N_COLUMNS + 2 * len(self.lengths))
            np.save(self.folder / "tracks.npy", rows if order is None else rows[order])
            content = {**vars(self.index), "format": FORMAT, "n_tracks": len(rows), "blocks": self.blocks}
            content["sizes"] = {n: (self.folder / n).stat().st_size for n in [*self.index.names, *TABLES]}
            content["crc32"] = {n: crc32(self.folder / n) for n in TABLES}
            content["crc32"]["index.json"] = _index_crc32(content)
            write_text(self.folder / "index.json", json.dumps(content))


class Shards:
    """The codes of a data set. Files at a URL are copied into a cache on this machine, once. Raises
    ValueError if there are none, for damaged ones, or for those of another tokenizer."""

    def __init__(self, folder: Path | str, tokenizer_hash: str | None = None):
        self.folder = folder
        try:
            content = storage.read(folder, "index.json")
        except FileNotFoundError:
            raise ValueError(f"{folder}: no codes there; run the codes stage first") from None
        self.local = Path(folder)
        if storage.is_url(folder):
            self.local = Path(pooch.os_cache("audiovq")) / "codes" / hashlib.sha256(content).hexdigest()[:32]
        with self._reading("index.json"):
            found = json.loads(content)
            file = conf.build(_IndexFile, found, "index")
        self.sizes, self.blocks = file.sizes, file.blocks
        self._verified: set[tuple[str, int]] = set()
        layout = file.tokenizer_hash, file.sample_rate, list(file.hop_lengths), file.codebook_size
        self.index = ShardIndex(*layout, file.chroma, file.n_shards, file.notes, file.slots)
        if tokenizer_hash is not None and file.tokenizer_hash != tokenizer_hash:
            other = f"found codes of {file.tokenizer_hash[:12]}; delete the folder and run the codes stage again"
            raise ValueError(f"{folder}: expected codes of tokenizer {tokenizer_hash[:12]}, {other}")
        names = self.index.names
        shown = progress(names, "download codes", len(names)) if storage.is_url(folder) else names
        self._arrays = {name: self._open(name) for name in shown}
        self.index.tracks = self._read_tracks(file)
        with self._reading("index.json"):
            if "index.json" in file.crc32 and file.crc32["index.json"] != _index_crc32(found):
                raise ValueError("its checksum is wrong")

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process opens its own; pickling a mapped array would copy it."""
        return Shards, (self.folder,)

    def _path(self, name: str) -> Path:
        """A local file; one at a URL is downloaded first."""
        path = self.local / name
        if storage.is_url(self.folder) and not path.exists():
            storage.download(str(self.folder), name, path, self.sizes.get(name))
        if not path.is_file():  # a pipe would never end
            raise ValueError("expected a file")
        return path

    def _open(self, name: str) -> np.ndarray:
        with self._reading(name):
            path, size = self._path(name), self.sizes.get(name)
            if size is not None and path.stat().st_size != size:
                raise ValueError(f"expected {size} bytes, found {path.stat().st_size}")
            array = _mapped(path)
            if array.ndim != 1 or array.dtype not in (np.uint8, np.uint16, np.int32):
                raise ValueError(f"expected one row of whole numbers, found {array.dtype} {list(array.shape)}")
            return array

    def _read_tracks(self, file: _IndexFile) -> TrackTable:
        """The table of tracks, whose codes are all within their shards."""
        name = "index.json"
        for name in TABLES if file.tracks is None else ():
            with self._reading(name):
                if crc32(self._path(name)) != file.crc32.get(name):
                    raise ValueError("its checksum is wrong")
        with self._reading(name):
            if file.tracks is not None:  # the first format
                rows = (checked_track(**track).row() for track in file.tracks)
                table = TrackTable.write(rows, N_COLUMNS + 2 * len(file.hop_lengths))
            else:  # mapped, because the tables of millions of tracks are large
                table = TrackTable(mapped(self._path(TABLES[0])), _mapped(self._path(name)))
                if len(table) != file.n_tracks:
                    raise ValueError(f"expected {file.n_tracks} tracks, found {len(table)}")
            self._check_places(table.columns, len(table.lines))
            return table

    def _check_places(self, columns: np.ndarray, n_bytes: int) -> None:
        """Raises ValueError if a track's line or codes are outside of their files."""
        n_levels = len(self.index.hop_lengths)
        n_columns, found = N_COLUMNS + 2 * n_levels, f"{columns.dtype} {list(columns.shape)}"
        if columns.ndim != 2 or columns.shape[1] != n_columns or columns.dtype != np.int64:
            raise ValueError(f"expected int64 [tracks, {n_columns}], found {found}")
        start, size, shard, split, n_samples = columns[:, :N_COLUMNS].T
        offsets, lengths = columns[:, N_COLUMNS : N_COLUMNS + n_levels], columns[:, N_COLUMNS + n_levels :]
        fits = (start >= 0) & (size >= 0) & (start <= n_bytes - size) & (split >= 0) & (split < len(SPLITS) - 1)
        fits &= (lengths == -(-n_samples[:, None] // np.array(self.index.hop_lengths))).all(axis=1)
        fits &= (n_samples > 0) & (shard >= 0) & (shard < self.index.n_shards)
        fits &= (offsets >= 0).all(axis=1) & (lengths >= 0).all(axis=1)
        if fits.all() and len(columns):
            sizes = np.array([len(self._arrays[name]) for name in self.index.names]).reshape(self.index.n_shards, -1)
            sizes[:, 0] = np.delete(sizes, np.s_[1:n_levels], axis=1).min(axis=1)  # of level 0, chroma and notes
            fits &= (offsets <= sizes[shard, :n_levels] - lengths).all(axis=1)
        if not fits.all():
            wrong = f"track {int(np.argmin(fits))}"
            raise ValueError(f"{wrong}: expected its line and codes within their files, found others")

    def _read(self, track: ShardTrack, kind: str, level: int, start: int, end: int) -> np.ndarray:
        """The values [start, end) of a track in a file of its shard, after their checksum is verified."""
        name = f"shard-{track.shard:05d}-{kind}.npy"
        first, array = track.offsets[level], self._arrays[name]
        for i in range((first + start) // BLOCK_CODES, -(-(first + end) // BLOCK_CODES) if name in self.blocks else 0):
            if (name, i) not in self._verified:
                found = zlib.crc32(array[i * BLOCK_CODES : (i + 1) * BLOCK_CODES].tobytes())
                with self._reading(name):
                    if self.blocks[name][i : i + 1] != (found,):
                        raise ValueError("its checksum is wrong")
                self._verified.add((name, i))
        return array[first + start : first + end]

    def _reading(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Errors as a ValueError that says what to do."""
        again = f"delete {self.local} to download it again"
        advice = again if storage.is_url(self.folder) else "delete its folder and run the codes stage again"
        kinds = (OSError, EOFError, KeyError, TypeError, ValueError, RecursionError)
        return errors_as(f"{self.folder}/{name}: shard missing or damaged", *kinds, advice=f"; {advice}")

    def codes(self, track: ShardTrack, level: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Codes [start, end) of one level of a track, as int64; ValueError for damaged ones."""
        length = track.lengths[level]
        end = max(start, length if end is None else min(end, length))
        codes = self._read(track, f"level-{level}", level, start, end).astype(np.int64)
        with self._reading(f"shard-{track.shard:05d}-level-{level}.npy"):
            check_range(codes, self.index.codebook_size, track.path)
            return codes

    def frames(self, track: ShardTrack, kind: str) -> np.ndarray:
        """Chroma or notes of a track, [n_top_codes]; raises as `codes`."""
        frames = np.asarray(self._read(track, kind, 0, 0, track.lengths[0]))
        check_range(frames, {"chroma": SILENT + 1, "notes": N_FRAMES}[kind], f"{track.path}: {kind}")
        return frames


def _mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped; ValueError for another file, or a damaged one."""
    with errors_as("expected an array, found none"):  # numpy parses the header as Python, which fails in many ways
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _index_crc32(content: dict[str, Any]) -> int:
    """CRC-32 of the content of index.json, without this number."""
    sums = {name: value for name, value in content["crc32"].items() if name != "index.json"}
    return zlib.crc32(json.dumps({**content, "crc32": sums}, sort_keys=True).encode())
