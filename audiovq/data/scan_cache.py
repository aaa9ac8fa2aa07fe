"""Scans audio files, and caches the results: a later scan decodes only files that are new or changed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mutagen
import numpy as np

from audiovq.data import audio
from audiovq.utils.compat import OLD_SCAN_CACHE
from audiovq.utils.files import append_jsonl, file_sha256, read_jsonl

TAGS = ("artist", "album", "genre", "title")
SILENCE = 10 ** (-60 / 20)  # amplitude below which a sample counts as silent: -60 dBFS
CLIP = 0.999


@dataclass(frozen=True)
class ScannedFile:
    """The content of an audio file, whatever its name."""

    sample_rate: int
    channels: int
    samples: int  # as decoded
    peak: float
    silent: int  # samples below SILENCE in all channels
    clipped: int
    sha256: str  # of the file
    audio_sha256: str  # of the decoded samples
    tags: dict[str, str] = field(default_factory=dict)


def scan_file(path: Path) -> ScannedFile:
    """Decode a whole file in bounded memory.

    Raises:
        ValueError: audio that cannot be used.
    """
    info = audio.audio_info(path)
    samples, peak, silent, clipped, digest = 0, 0.0, 0, 0, hashlib.sha256(f"{info.sample_rate}".encode())
    for block in audio.blocks(path):
        level = np.abs(block).max(axis=1)
        samples += len(block)
        peak = max(peak, float(level.max()))
        silent += int((level < SILENCE).sum())
        clipped += int((level >= CLIP).sum())
        digest.update(block.tobytes())
    return ScannedFile(
        sample_rate=info.sample_rate,
        channels=info.channels,
        samples=samples,
        peak=peak,
        silent=silent,
        clipped=clipped,
        sha256=file_sha256(path),
        audio_sha256=digest.hexdigest(),
        tags=read_tags(path),
    )


def read_tags(path: Path) -> dict[str, str]:
    """artist, album, genre and title from the file's own tags; none if they cannot be read."""
    try:
        tags = mutagen.File(path, easy=True).tags or {}  # type: ignore[attr-defined]
        values = {name: tags.get(name) for name in TAGS}
    except Exception:  # mutagen raises many kinds on damaged tags, and audio without tags is still audio
        return {}
    texts = {name: str(v[0] if isinstance(v, list) and v else v or "").strip() for name, v in values.items()}
    return {name: text for name, text in texts.items() if text}


class ScanCache:
    """Results of this and earlier scans: one JSON line per file, with its name, size and time of change.

    Files that cannot be read are not in it: they may be readable with the next update of a decoder.

    Args:
        path: of the JSONL file; None for a cache that keeps nothing.
    """

    def __init__(self, path: Path | None):
        self.path, self.rows = path, {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for place in (path.with_name(OLD_SCAN_CACHE), path):
                self.rows |= {row.pop("path", None): row for row in read_jsonl(place, skip_damaged=True)}

    def find(self, name: str, stamp: list[int]) -> ScannedFile | None:
        """The result for a file, if it had the same stamp then."""
        row = self.rows.get(name, {})
        if row.pop("stamp", None) != stamp:
            return None
        try:
            return ScannedFile(**row)
        except TypeError:  # written by another version
            return None

    def add(self, name: str, stamp: list[int], found: ScannedFile) -> None:
        """Write a new result; `stamp` was read before the file was."""
        if self.path is not None:
            append_jsonl(self.path, {"path": name, "stamp": stamp, **asdict(found)})
