"""Scans audio files, and caches the results: a later scan decodes only files that are new or changed."""

import contextlib
import hashlib
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import mutagen
import numpy as np
from pydantic import Field, TypeAdapter

from audiovq.data import audio
from audiovq.data.ffmpeg import AudioInfo
from audiovq.data.music import mapped
from audiovq.utils.compat import OLD_SCAN_CACHE
from audiovq.utils.files import append_jsonl, file_sha256, json_line, parse_line

# Labels, and their names in tags: of most files, in ID3 (MP3, WAV, AIFF) and in ASF (WMA).
TAGS = {
    "artist": ("artist", "TPE1", "Author"), "album": ("album", "TALB", "WM/AlbumTitle"),
    "genre": ("genre", "TCON", "WM/Genre"), "title": ("title", "TIT2", "Title"),
}  # fmt: skip
SILENCE = 10 ** (-60 / 20)  # amplitude below which a sample counts as silent: -60 dBFS
CLIP = 0.999


@dataclass(frozen=True)
class ScannedFile:
    """The content of an audio file, whatever its name."""

    sample_rate: Annotated[int, Field(gt=0)]
    channels: Annotated[int, Field(gt=0)]
    samples: Annotated[int, Field(gt=0)]  # as decoded
    peak: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    silent: Annotated[int, Field(ge=0)]  # samples below SILENCE in all channels
    clipped: Annotated[int, Field(ge=0)]
    sha256: str  # of the file
    audio_sha256: str  # of the decoded samples
    tags: dict[str, str] = field(default_factory=dict)


SCANNED_FILE = TypeAdapter(ScannedFile)  # built once, because that takes a millisecond


def scan_file(path: Path) -> ScannedFile:
    """Decode a whole file in bounded memory. Raises ValueError for audio that cannot be used."""
    info = audio.audio_info(path)
    samples, peak, silent, clipped, digest = 0, 0.0, 0, 0, hashlib.sha256(f"{info.sample_rate}".encode())
    for block in audio.blocks(path):
        level = np.abs(block).max(axis=1)
        samples += len(block)
        peak = max(peak, float(level.max()))
        silent += int((level < SILENCE).sum())
        clipped += int((level >= CLIP).sum())
        digest.update(block.tobytes())
    found = info.sample_rate, info.channels, samples, peak, silent, clipped
    return ScannedFile(*found, file_sha256(path), digest.hexdigest(), read_tags(path, info))


def read_tags(path: Path, info: AudioInfo) -> dict[str, str]:
    """artist, album, genre and title from the file's own tags, as far as they can be read."""
    try:
        tags = mutagen.File(path, easy=True).tags or {}  # type: ignore[attr-defined]
    except Exception:  # mutagen raises many kinds on damaged tags, and audio without tags is still audio
        tags = {}
    texts = {
        name: next(filter(None, (_text(tags, key) for key in keys)), info.tags.get(name, ""))
        for name, keys in TAGS.items()
    }
    return {name: text for name, text in texts.items() if text}


def _text(tags: Any, key: str) -> str:
    try:
        value = tags.get(key)
        values = getattr(value, "genres", None) or getattr(value, "text", value)  # ID3 frames; numbers of genres
        return ", ".join(dict.fromkeys(map(str, values))) if isinstance(values, list) else str(values or "").strip()
    except Exception:  # one damaged tag; the others may be readable
        return ""


class ScanCache:
    """One JSON line per file that could be read, with its name, size and time of change. It reads the caches of all
    processes in the same folder, and writes its own. Lines stay on the disk; only their places are held."""

    def __init__(self, path: Path):
        self.path, self.files = path, list[np.ndarray]()
        found = array("q")  # hash of a line up to the name, file, begin and end
        path.parent.mkdir(parents=True, exist_ok=True)
        places = path.with_name(OLD_SCAN_CACHE), *sorted(path.parent.glob("scan_cache*.jsonl"))
        for place in filter(Path.is_file, places):
            end = 0
            for line in place.open("rb"):
                start, end = end, end + len(line)
                found.extend((hash(line[: line.find(b', "stamp": ')]), len(self.files), start, end))
            self.files.append(mapped(place))
        rows = np.array(found, dtype=np.int64).reshape(-1, 4)
        self.places = rows[np.argsort(rows[:, 0], kind="stable")]

    def find(self, name: str, stamp: list[int]) -> ScannedFile | None:
        """The result for a file, if it had the same stamp then."""
        key = hash(json_line({"path": name})[: -len(b"}\n")])
        first, last = (np.searchsorted(self.places[:, 0], key, side) for side in ("left", "right"))
        for file, start, end in self.places[first:last, 1:].tolist():
            row = parse_line(self.files[file][start:end].tobytes()) or {}
            if (row.pop("path", None), row.pop("stamp", None)) == (name, stamp):
                with contextlib.suppress(ValueError):  # damaged, or written by another version
                    return SCANNED_FILE.validate_python(row)
        return None

    def add(self, name: str, stamp: list[int], found: ScannedFile) -> None:
        """Write a new result; `stamp` was read before the file was."""
        append_jsonl(self.path, {"path": name, "stamp": stamp, **asdict(found)})
