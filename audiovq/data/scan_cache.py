"""One look at an audio file: decode it once and note what is found. Looks are kept in a file as they are done, so that a
scan that was cut off, or a later one, only looks at what is new or changed."""

from __future__ import annotations

import collections
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mutagen
import numpy as np

from audiovq.data import audio

TAGS = ("artist", "album", "genre", "title")
SILENCE = 10 ** (-60 / 20)  # amplitude below which a block is silent: -60 dBFS
CLIP = 0.999
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Look:
    """What is in a file, whatever its name and whatever is wanted of it."""

    sample_rate: int
    channels: int
    samples: int  # as decoded
    peak: float
    silent: int  # samples below SILENCE in all channels
    clipped: int
    sha256: str  # of the file
    audio_sha256: str  # of the decoded samples
    tags: dict[str, str] = field(default_factory=dict)


def look(path: Path) -> Look:
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
    sha256 = audio.file_sha256(path)
    return Look(
        info.sample_rate, info.channels, samples, peak, silent, clipped, sha256, digest.hexdigest(), read_tags(path)
    )


def read_tags(path: Path) -> dict[str, str]:
    """artist, album, genre, title from the file's own tags; a file without readable tags has none."""
    try:
        file = mutagen.File(path, easy=True)  # type: ignore[attr-defined]
    except Exception:  # mutagen raises many kinds on damaged tags, and audio without tags is still audio
        return {}
    if file is None or file.tags is None:
        return {}
    tags: dict[str, str] = {}
    for name in TAGS:
        try:
            value = file.tags.get(name)
        except (KeyError, ValueError):
            continue
        text = str(value[0] if isinstance(value, list) and value else value or "").strip()
        if text:
            tags[name] = text
    return tags


class ScanCache:
    """The looks of earlier scans and of this one: a JSON line a file, with its name, size and time of change.

    Only good looks are kept: a file that could not be read may be readable with the next update of a decoder.

    Args:
        path: of the JSONL file; None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self.known: dict[str, bytes] = {}  # lines, parsed when they are asked for
        self.file = None
        if path is not None:
            content = path.read_bytes() if path.is_file() else b""
            for line in content.splitlines():
                name = _parsed(line).get("path")
                if name:
                    self.known[name] = line
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab", buffering=0)
            if content and not content.endswith(b"\n"):  # cut off in the middle of a line
                self.file.write(b"\n")

    def __enter__(self) -> ScanCache:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()

    def find(self, name: str, stamp: list[int]) -> Look | None:
        """The look at a file that had this stamp when it was made."""
        facts = _parsed(self.known.get(name, b""))
        if facts.pop("path", None) != name or facts.pop("stamp", None) != stamp:
            return None
        try:
            return Look(**facts)
        except TypeError:  # of another version
            return None

    def keep(self, name: str, stamp: list[int], found: Look) -> None:
        """Write a new look, made of a file that had this stamp."""
        if self.file is not None:
            self.file.write(json.dumps({"path": name, "stamp": stamp, **asdict(found)}).encode() + b"\n")


def stamp_of(path: Path) -> list[int]:
    """Size and time of change: a file that has the same ones is taken to be the same."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:  # half a line, or damaged
        return {}
    return content if isinstance(content, dict) else {}


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, on all cores; few are waiting at any time, however many items there are.

    Threads, because decoding, hashing and arithmetic leave the interpreter's lock alone.
    """
    waiting: collections.deque[Future[Result]] = collections.deque()
    n_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * n_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
