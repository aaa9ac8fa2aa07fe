"""A folder of music -> tracks that are checked, labelled and split, and a list of rejected files."""

import hashlib
import json
import math
import os
import posixpath
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PositiveInt, TypeAdapter

from audiovq.data import audio
from audiovq.data.data_config import DataConfig
from audiovq.data.scan_cache import SILENCE, ScanCache, ScannedFile, scan_file
from audiovq.utils import signals
from audiovq.utils.environment import cpu_count, errors_as
from audiovq.utils.files import file_sha256, parse_line, read_jsonl, write_jsonl, write_text
from audiovq.utils.progress import say, say_once, track as progress

LABEL_BYTES = 1 << 20  # of a file of labels, and of a line of a manifest
T = TypeVar("T")


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


@dataclass(frozen=True)
class Rejected:
    path: str
    reason: str


@dataclass
class Scan:
    """The tracks of a folder. It is saved in the run, so that a resumed run has the same tracks."""

    folder: Path
    tracks: list[Track]
    rejected: list[Rejected]

    def split(self, name: str) -> list[Track]:
        return [track for track in self.tracks if track.split == name]

    def only(self, patterns: Sequence[str], key: str = "codes.only") -> "Scan":
        """The tracks whose path matches one of the shell patterns (`*` also matches `/`), a recipe's `key`; all for none.
        Raises ValueError for a pattern that no track matches, or if no training track is left."""
        if not patterns:
            return self
        for pattern in patterns:
            if not any(fnmatchcase(track.path, pattern) for track in self.tracks):
                found = f'no track of {self.folder} matches "{pattern}"'
                raise ValueError(f'{key}: {found}; expected such as "folder/*"')
        matching = [t for t in self.tracks if any(fnmatchcase(t.path, pattern) for pattern in patterns)]
        if not any(track.split == "train" for track in matching):
            raise ValueError(f"{key}: none of the {len(matching)} tracks that match is a training track")
        return replace(self, tracks=matching)

    def report(self) -> dict[str, Any]:
        """Hours, rates, silence, clipping and duplicates, for report.json."""
        return {
            "tracks": len(self.tracks),
            "hours": sum(track.seconds for track in self.tracks) / 3600,
            "train_tracks": len(self.split("train")),
            "valid_tracks": len(self.split("valid")),
            "sample_rates": Counter(str(track.sample_rate) for track in self.tracks),
            "mostly_silent": [t.path for t in self.tracks if t.silent_fraction > 0.5],
            "clipped": [t.path for t in self.tracks if t.clipped_fraction > 1e-3],
            "duplicates": [r.path for r in self.rejected if r.reason.startswith("same audio")],
            "quarantined": len(self.rejected),
        }

    def save(self, folder: Path) -> None:
        """Write quarantine.jsonl, report.json and, because it marks a complete scan, tracks.jsonl last."""
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "quarantine.jsonl", map(vars, self.rejected))
        report = {"folder": str(self.folder), **self.report()}
        write_text(folder / "report.json", json.dumps(report, indent=2))
        write_jsonl(folder / "tracks.jsonl", map(vars, self.tracks))

    @staticmethod
    def load(folder: Path) -> "Scan":
        """Raises ValueError if a file is missing or damaged."""
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            tracks = TypeAdapter(list[Track]).validate_python(read_jsonl(folder / "tracks.jsonl"))
            rejected = TypeAdapter(list[Rejected]).validate_python(read_jsonl(folder / "quarantine.jsonl"))
            expected, found = (report["tracks"], report["quarantined"]), (len(tracks), len(rejected))
            if found != expected:
                raise ValueError(f"tracks.jsonl, quarantine.jsonl: expected {expected} lines, found {found}")
            return Scan(Path(report["folder"]), tracks, rejected)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            advice = "delete recipe.yaml in the run folder and run the same command again"
            advice += ", which scans the music anew and keeps the rest"
            raise ValueError(f"{folder}: missing or damaged ({reason}); {advice}") from None


def check_relative(path: str) -> None:
    """Raises ValueError for a path that leads out of its folder, on any system."""
    parts = path.replace("\\", "/").split("/")
    if not parts[0] or parts[0][1:2] == ":" or ".." in parts:
        raise ValueError(f"path: expected one within the music folder, found {path!r:.80}")


def check_music_folder(folder: Path) -> None:
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder; expected a folder of music (set --data)")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of music, found a file")


def find_audio(
    folder: Path, unreadable: list[Rejected] | None = None, suffixes: Collection[str] = audio.SUFFIXES
) -> list[Path]:
    """All audio files below a folder, by suffix, in a stable order; without hidden ones and samples of runs.
    Linked folders belong to it, each folder once. Unreadable folders are added to `unreadable`, or printed."""
    check_music_folder(folder)
    left_out: list[Rejected] = []

    def cannot_list(error: OSError) -> None:
        left_out.append(Rejected(os.path.relpath(error.filename, folder), f"cannot be read ({error.strerror})"))

    found, seen, tops = [], set[str](), [str(folder)]
    while tops:  # links come after all folders
        for place, folders, names in os.walk(tops.pop(0), onerror=cannot_list):
            real = os.path.realpath(place)
            is_new = real not in seen
            seen.add(real)
            folders[:] = sorted(name for name in folders if is_new and not name.startswith("."))
            if "recipe.yaml" in names and "samples" in folders:
                folders.remove("samples")
                left_out.append(Rejected(os.path.relpath(f"{place}/samples", folder), "samples of a run"))
            tops += [f"{place}/{name}" for name in folders if os.path.islink(f"{place}/{name}")]
            paths = [Path(place, name) for name in names if is_new and not name.startswith(".")]
            found += [path for path in paths if path.suffix.lower() in suffixes]
    if unreadable is not None:
        unreadable += left_out
    else:
        for item in left_out:
            say(f"left out: {folder / item.path}: {item.reason}")
    is_file = [path for path in found if path.is_file() or not path.exists()]  # links to nothing are named later
    return sorted(is_file, key=lambda path: path.parts)


def credits_files(music: Path) -> list[Path]:
    """The texts with credits or licences in a folder of music, credits first, and the credits one folder up."""
    names, files = ("credits", "attribution", "licence", "license", "copying"), sorted(music.iterdir())
    found = [path for name in names for path in files if path.stem.lower().startswith(name)]
    found += [path for path in sorted(music.parent.iterdir()) if path.stem.lower().startswith("credits")]
    return [path for path in found if path.is_file() and path.suffix.lower() in {"", ".md", ".txt"}]


def scan(folder: Path, config: DataConfig, cache_file: Path | None = None) -> Scan:
    """Decode every file once, in bounded memory and on all cores, and sort out those that cannot be used;
    ValueError if none is left. A `cache_file` keeps the results for later scans."""
    folder = Path(os.path.realpath(folder))  # unlike `resolve`, no error for a link to itself
    rejected: list[Rejected] = []
    names = [path.relative_to(folder).as_posix() for path in find_audio(folder, rejected)]
    if not names:
        suffixes = ", ".join(sorted(audio.SUFFIXES))
        raise ValueError(f"{folder}: no audio found; expected files ending in {suffixes}")
    manifest = _read_manifest(folder, config.manifest, names, rejected)
    n_other, tracks = len(rejected), list[Track]()
    names_of_audio: dict[str, str] = {}
    cache = ScanCache(cache_file)
    check = partial(_check_file, folder=folder, config=config, manifest=manifest, cache=cache)
    for result in _in_threads(check, names):
        if isinstance(result, Track) and result.audio_sha256 in names_of_audio:
            result = Rejected(result.path, f"same audio as {names_of_audio[result.audio_sha256]}")
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            names_of_audio[result.audio_sha256] = result.path
            tracks.append(result)
    if not tracks:
        first = f"{rejected[n_other].path}: {rejected[n_other].reason}"
        raise ValueError(f"{folder}: none of {len(names)} files can be used; the first: {first}")
    return Scan(folder, _split(tracks, config.valid_fraction), rejected)


def scan_share(folder: Path, cache_file: Path, rank: int, n_ranks: int) -> None:
    """Decode every n-th file into the cache of this process, so that `scan` on one process only reads caches."""
    folder = Path(os.path.realpath(folder))
    names = [path.relative_to(folder).as_posix() for path in find_audio(folder, [])][rank::n_ranks]
    deque(_in_threads(partial(_scanned, folder=folder, cache=ScanCache(cache_file)), names), maxlen=0)


def _in_threads(check: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
    """The results in order. Threads run in parallel, because decoding, hashing and arithmetic release the interpreter's
    lock; as many as this process has cores, which may be fewer than the machine has."""
    pool = ThreadPoolExecutor(max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        for result in progress(pool.map(check, names), "scan", len(names)):
            signals.poll()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _scanned(name: str, folder: Path, cache: ScanCache) -> tuple[list[int], ScannedFile] | Rejected:
    """A file's stamp and content, from the cache or else into it; or the reason against it."""
    path = folder / name
    try:
        # A file of the same size and time of change is taken to be unchanged.
        stamp = file_stamp(path)
        if (known := cache.find(name, stamp)) is not None:
            return stamp, known
        found = scan_file(path)
        if file_stamp(path) != stamp:
            raise ValueError("changed while it was read; start again when it is complete")
    except (ValueError, OSError) as error:
        return _rejected(name, path, error)
    cache.add(name, stamp, found)
    return stamp, found


def _rejected(name: str, path: Path, error: Exception) -> Rejected:
    return Rejected(name, str(getattr(error, "strerror", None) or error).removeprefix(f"{path}: "))


def _check_file(
    name: str, folder: Path, config: DataConfig, manifest: dict[str, dict[str, str]], cache: ScanCache
) -> Track | Rejected:
    """A file's track, or the reason against it."""
    result = _scanned(name, folder, cache)
    if isinstance(result, Rejected):
        return result
    path, (stamp, found) = folder / name, result
    try:
        seconds = found.samples / found.sample_rate
        if seconds < config.min_seconds:
            raise ValueError(f"too short: expected at least {config.min_seconds:g} s, found {seconds:.3f} s")
        if found.peak < SILENCE:
            raise ValueError("silent: never above -60 dBFS")
        labels = found.tags | manifest.get(name, {}) | _labels_of_files(path)
        split = labels.pop("split", "")
        for label, text in labels.items():  # JSON can hold half of a surrogate pair, and files cannot
            if any("\ud800" <= character <= "\udfff" for character in f"{label}{text}"):
                raise ValueError(f"label {label!a}: expected Unicode text, found {text!a:.80}")
        if split not in {"", "train", "valid"}:
            raise ValueError(f"split: expected train or valid, found {split!r:.40}")
    except (ValueError, OSError) as error:
        return _rejected(name, path, error)
    shared = ("sha256", "sample_rate", "channels", "samples", "peak", "audio_sha256")
    facts: dict[str, Any] = {key: getattr(found, key) for key in shared}
    facts |= {"silent_fraction": found.silent / found.samples, "clipped_fraction": found.clipped / found.samples}
    return Track(name, split=split, labels=labels, stamp=stamp, **facts)


def file_stamp(path: Path) -> list[int]:
    """Size and time of change: a file with the same ones is taken to be unchanged."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def check_unchanged(path: Path, stamp: Sequence[int], sha256: str) -> None:
    """Raises ValueError if a file is another one than was scanned. Runs of version 0.1 have no stamps."""
    if len(stamp) and file_stamp(path) != list(stamp) and file_sha256(path) != sha256:
        raise ValueError(f"{path}: another recording than when the run began; put that back, or choose another --out")


def _labels_of_files(path: Path) -> dict[str, str]:
    """Labels from `track.json`, for all tracks of the folder, `<name>.json`, and `<name>.txt` (the label `text`)."""
    labels: dict[str, str] = {}
    for candidate in (path.with_name("track.json"), path.with_suffix(".json"), path.with_suffix(".txt")):
        if os.path.isfile(candidate):  # False for a name that is too long
            if (size := candidate.stat().st_size) > LABEL_BYTES:
                raise ValueError(f"{candidate.name}: expected labels of at most 1 MB, found {size} bytes")
            is_json = candidate.suffix == ".json"
            failure = f"{candidate.name}: not valid {'JSON' if is_json else 'text in UTF-8'}"
            with errors_as(failure, ValueError, RecursionError):
                text = candidate.read_text(encoding="utf-8-sig").strip()
                content = json.loads(text) if is_json else {"text": text}
            labels |= _as_labels(content, candidate.name)
    return labels


def _as_labels(content: Any, source: str) -> dict[str, str]:
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected an object of labels, found {type(content).__name__}")
    labels = {}
    for name, value in content.items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, str | int | float) for v in values):
            labels[str(name)] = ", ".join(map(str, values))
        elif value is not None:
            expected = "expected text, a number or a list of them, found nested values; it is left out"
            say_once(f"label {str(name)!a:.80}: {expected}")
    return {name: value for name, value in labels.items() if value}


def _read_manifest(
    folder: Path, manifest: str | None, names: Sequence[str], rejected: list[Rejected]
) -> dict[str, dict[str, str]]:
    """Labels by the path of the track. Lines that cannot be used are added to `rejected`."""
    if manifest is None:
        return {}
    path = folder / manifest
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest; expected JSONL with a `path` in each line")
    similar = defaultdict[str, list[str]](list)
    for name in names:
        similar[_similar(name, folder)].append(name)
    known, rows = set(names), dict[str, dict[str, str]]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            labels = _as_labels((len(line) <= LABEL_BYTES and parse_line(line)) or {}, manifest)
            written = labels.pop("path", "")
            matches = [written] if written in known else similar[_similar(written, folder)]
            if len(matches) == 1:
                rows[matches[0]] = labels
            elif line.strip():
                found = f"the path of no track, or of several: {written!a}" if written else ascii(line[:40])[1:]
                reason = f"expected an object with the `path` of a track in at most 1 MB, found {found:.200}"
                rejected.append(Rejected(f"{manifest} line {number}", reason))
    return rows


def _similar(path: str, folder: Path) -> str:
    """The same for all ways to write a path: absolute, with ./ or backslashes, in other Unicode forms or case."""
    path = path.replace("\\", "/")
    if path.startswith("/"):
        path = os.path.relpath(os.path.realpath(path), folder)
    return unicodedata.normalize("NFC", posixpath.normpath(path)).casefold()


def _split(tracks: list[Track], valid_fraction: float) -> list[Track]:
    """Choose a split for each track that has none: the tracks whose path has the lowest hash are held out. It
    depends on the paths alone, and not on their order, the machine or the run."""
    free = [track for track in tracks if not track.split]
    free.sort(key=lambda track: hashlib.sha256(os.fsencode(track.path)).hexdigest())
    missing = math.ceil(valid_fraction * len(tracks)) - sum(t.split == "valid" for t in tracks)
    held_out = {t.path for t in free[: max(0, min(missing, len(free) - 1))]}
    return [replace(t, split=t.split or ("valid" if t.path in held_out else "train")) for t in tracks]
