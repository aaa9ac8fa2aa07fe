"""The music of a run: its tracks, and the files that were set aside. Tables of tracks stay on the disk, so that millions
open in seconds and need little memory of each process."""

import json
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import PositiveInt, TypeAdapter

from audiovq.utils.files import atomic_file, json_line, parse_line, read_jsonl, write_jsonl, write_text

TABLES, SPLITS = ("tracks.jsonl", "tracks.npy"), ("train", "valid", "")  # "": a split that is not chosen yet
NUMBER, SPLIT, SAMPLES = 2, 3, 4  # columns of tables
T = TypeVar("T")
S = TypeVar("S", bound="Table[Any]")


class Table(Sequence[T]):
    """The tracks of `lines`, the bytes of tracks.jsonl, and of `columns`, int64 [n_tracks, …]: place and size of the line, a
    number, index of the split, samples, …; or some `rows` of them. A track is built, and checked, on access."""

    def __init__(self, lines: np.ndarray, columns: np.ndarray, rows: np.ndarray | None = None):
        self.lines, self.columns = lines, columns
        self.rows = np.arange(len(columns)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> T:  # type: ignore[override] - no slices, see `take`
        start, n_bytes, *numbers = self.columns[self.rows[i]].tolist()
        facts = parse_line(self.lines[start : start + n_bytes].tobytes()) or {}
        return self.build(facts | {"split": SPLITS[numbers[1]]}, numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and list(self) == list(other)

    @classmethod
    def write(cls: type[S], rows: Iterable[tuple[Any, ...]], n_columns: int, path: Path | None = None) -> S:
        """The table of `rows` of facts and numbers. Its lines are written to a file, default a temporary one."""
        columns = array("q")
        with path.open("w+b") if path else tempfile.TemporaryFile() as file:
            for facts, *numbers in rows:
                line = json_line(facts)
                columns.extend((file.tell(), len(line), *numbers))
                file.write(line)
            file.flush()
            lines = np.memmap(file, np.uint8, "r") if columns else np.zeros(0, np.uint8)
        return cls(lines, np.array(columns, dtype=np.int64).reshape(-1, n_columns))

    def build(self, facts: dict[str, Any], numbers: list[int]) -> T:
        """A track from its line and its other columns; ValueError if it cannot be one."""
        raise NotImplementedError

    def take(self: S, rows: np.ndarray | slice) -> S:
        """Some of the tracks, by their index, or a bool for each."""
        return type(self)(self.lines, self.columns, self.rows[rows])

    def of(self: S, split: str | None) -> S:
        """The tracks of one split; all for None."""
        return self if split is None else self.take(self.column(SPLIT) == SPLITS.index(split))

    def column(self, i: int) -> np.ndarray:
        return self.columns[self.rows, i]

    def facts(self) -> Iterator[dict[str, Any]]:
        """What the lines say; much faster than building all tracks."""
        for start, n_bytes in map(np.ndarray.tolist, self.columns[self.rows, :2]):
            yield parse_line(self.lines[start : start + n_bytes].tobytes()) or {}

    def labels(self) -> Iterator[dict[str, str]]:
        return (facts.get("labels", {}) for facts in self.facts())


def mapped(path: Path) -> np.ndarray:
    """The bytes of a file, memory-mapped."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def crc32(path: Path) -> int:
    return zlib.crc32(mapped(path).data)


@dataclass(frozen=True)
class Track:
    path: str  # relative to the data folder
    sha256: str  # of the file
    sample_rate: PositiveInt
    channels: PositiveInt
    samples: PositiveInt  # as decoded, at its own rate
    split: str = "train"
    labels: dict[str, str] = field(default_factory=dict)
    peak: float = 0.0
    silent_fraction: float = 0.0
    clipped_fraction: float = 0.0
    audio_sha256: str = ""  # of the decoded samples: finds copies whose tags or container differ
    stamp: list[int] = field(default_factory=list)  # of the file when it was scanned, see `file_stamp`

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


TRACK = TypeAdapter(Track)  # built once, because that takes a millisecond


@dataclass(frozen=True)
class Rejected:
    path: str
    reason: str


class MusicTable(Table[Track]):
    """The number of a track is its sample rate."""

    def build(self, facts: dict[str, Any], numbers: list[int]) -> Track:
        return TRACK.validate_python(facts)

    @property
    def seconds(self) -> np.ndarray:
        return self.column(SAMPLES) / self.column(NUMBER)


def table_of(tracks: Iterable[Track], path: Path | None = None) -> MusicTable:
    """The table of tracks, whose lines are written to a file, default a temporary one."""
    rows = ((vars(track), track.sample_rate, SPLITS.index(track.split), track.samples) for track in tracks)
    return MusicTable.write(rows, 5, path)


@dataclass
class Scan:
    """The tracks of a folder. It is saved in the run, so that a resumed run has the same tracks."""

    folder: Path
    tracks: MusicTable
    rejected: list[Rejected]

    def only(self, patterns: Sequence[str], key: str = "codes.only") -> "Scan":
        """The tracks whose path matches one of the shell patterns (`*` also matches `/`), a recipe's `key`; all for none.
        Raises ValueError for a pattern that no track matches, or if no training track is left."""
        if not patterns:
            return self
        found = np.zeros(len(self.tracks), dtype=bool)
        for pattern in patterns:
            matches = (fnmatchcase(facts["path"], pattern) for facts in self.tracks.facts())
            if not (matching := np.fromiter(matches, bool, len(found))).any():
                wanted = f'no track of {self.folder} matches "{pattern}"'
                raise ValueError(f'{key}: {wanted}; expected such as "folder/*"')
            found |= matching
        result = replace(self, tracks=self.tracks.take(found))
        if not result.tracks.of("train"):
            raise ValueError(f"{key}: none of the {len(result.tracks)} tracks that match is a training track")
        return result

    def report(self) -> dict[str, Any]:
        """Hours, rates, silence, clipping and duplicates, for report.json."""
        return {
            "tracks": len(self.tracks), "hours": float(self.tracks.seconds.sum()) / 3600,
            "train_tracks": len(self.tracks.of("train")), "valid_tracks": len(self.tracks.of("valid")),
            "sample_rates": Counter(map(str, self.tracks.column(NUMBER).tolist())),
            "mostly_silent": [t["path"] for t in self.tracks.facts() if t["silent_fraction"] > 0.5],
            "clipped": [t["path"] for t in self.tracks.facts() if t["clipped_fraction"] > 1e-3],
            "duplicates": [r.path for r in self.rejected if r.reason.startswith("same audio")],
            "quarantined": len(self.rejected),
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write quarantine.jsonl, report.json, tracks.npy and, because it marks a complete scan, tracks.jsonl last."""
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "quarantine.jsonl", map(vars, self.rejected))
        with atomic_file(folder / "tracks.jsonl") as lines, atomic_file(folder / "tracks.npy") as columns:
            table = table_of(self.tracks, lines)
            with columns.open("wb") as file:
                np.save(file, table.columns)
            report = {"folder": str(self.folder), **self.report(), "crc32": [crc32(lines), crc32(columns)]}
            write_text(folder / "report.json", json.dumps(report, indent=2))

    @staticmethod
    def load(folder: Path) -> "Scan":
        """Raises ValueError if a file is missing or damaged."""
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            lines, columns = (folder / name for name in TABLES)
            # Version 0.1 wrote no columns.
            if columns.is_file() and report.get("crc32") == [crc32(lines), crc32(columns)]:
                tracks = MusicTable(mapped(lines), np.load(columns, mmap_mode="r", allow_pickle=False))
            else:
                tracks = table_of(map(TRACK.validate_python, read_jsonl(lines)))
            rejected = TypeAdapter(list[Rejected]).validate_python(read_jsonl(folder / "quarantine.jsonl"))
            expected, found = (report["tracks"], report["quarantined"]), (len(tracks), len(rejected))
            if found != expected:
                raise ValueError(f"tracks.jsonl, quarantine.jsonl: expected {expected} lines, found {found}")
            return Scan(Path(report["folder"]), tracks, rejected)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            advice = "delete recipe.yaml in the run folder and run the same command again"
            advice += ", which scans the music anew and keeps the rest"
            raise ValueError(f"{folder}: missing or damaged ({reason}); {advice}") from None
