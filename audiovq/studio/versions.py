"""The versions of a piece as a tree, and their files. Every change makes a new version."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.report.code_images import draw_codes
from audiovq.utils.files import atomic_file


@dataclass(frozen=True)
class Version:
    number: int  # from 1 on, never used again
    parent: int | None
    title: str  # how it was made
    codes: Codes
    seed: int | None = None  # None for a recording
    made_at: float = field(default_factory=time.time)  # when its last code was drawn, seconds since 1970

    @property
    def name(self) -> str:
        return f"{self.number} · {self.title} · {self.codes.seconds:.1f} s"


class Tree:
    """Versions by number, in the order in which they were made; at most `max_versions`."""

    def __init__(self, max_versions: int = 100):
        self.max_versions = max_versions
        self.versions: dict[int, Version] = {}
        self._next = 1

    def check_room(self, n: int) -> None:
        """Raises ValueError if there is no room for n more versions."""
        n_versions = len(self.versions)
        if n_versions + n > self.max_versions:
            raise ValueError(f"you have {n_versions} versions of at most {self.max_versions}: delete some of them")

    def add(self, title: str, codes: Codes, parent: int | None = None, seed: int | None = None) -> Version:
        """A new version, made from `parent` or from nothing. Raises ValueError without room or parent."""
        self.check_room(1)
        if parent is not None:
            self.get(parent)
        version = Version(self._next, parent, title, codes, seed)
        self.versions[version.number] = version
        self._next += 1
        return version

    def get(self, number: int | None) -> Version:
        """Raises ValueError if there is no such version."""
        if number not in self.versions:
            if not self.versions:
                raise ValueError("there is no version yet: make a piece first")
            raise ValueError(f"version {number}: expected one of {', '.join(map(str, self.versions))}")
        return self.versions[number]

    def parent(self, number: int | None) -> int:
        """The version that a version was made from. Raises ValueError for one that was made from nothing."""
        parent = self.get(number).parent
        if parent is None:
            raise ValueError(f"version {number} is a beginning: there is nothing to undo")
        return parent

    def children(self, number: int | None) -> list[Version]:
        """The versions made from a version; for None, those made from nothing."""
        return [version for version in self.versions.values() if version.parent == number]

    def lines(self) -> list[tuple[str, int]]:
        """The tree as text: a line and a number for each version, parents above their children."""
        found: list[tuple[str, int]] = []
        waiting = [(root, "", "") for root in reversed(self.children(None))]
        while waiting:
            version, mark, indent = waiting.pop()
            found.append((mark + version.name, version.number))
            children = self.children(version.number)
            marks = [("├─ ", "│  ")] * (len(children) - 1) + [("└─ ", "   ")]
            rows = zip(children, marks, strict=False)
            waiting += reversed([(child, indent + mark, indent + rest) for child, (mark, rest) in rows])
        return found

    def delete(self, number: int | None) -> list[Version]:
        """Delete a version and all versions made from it, and return them. Raises ValueError as `get`."""
        deleted, waiting = [], [self.get(number)]
        while waiting:
            version = waiting.pop()
            waiting += self.children(version.number)
            deleted.append(self.versions.pop(version.number))
        return deleted


class Files:
    """Sounds, pictures and codes in a new `folder`. Those of a version are written at first use."""

    def __init__(self, tokenizer: Tokenizer, folder: Path):
        self.tokenizer, self.folder = tokenizer, folder
        folder.mkdir(parents=True)
        self.n_temporary = 0

    def sound(self, version: Version) -> Path:
        """16-bit WAV, as `Tokenizer.decode_file` writes it."""
        path = self._path(version, ".wav")
        if not path.exists():
            self.tokenizer.decode_file(version.codes, path)
        return path

    def codes(self, version: Version) -> Path:
        path = self._path(version, ".codes")
        if not path.exists():
            version.codes.save(path)
        return path

    def picture(self, version: Version) -> Path:
        path = self._path(version, ".png")
        if not path.exists():
            waveform, rate = audio.read_audio(self.sound(version))
            with atomic_file(path, flush=False) as temporary:
                draw_codes(waveform, rate, version.codes, temporary)
        return path

    def sketch(self, codes: Codes) -> Path:
        """16-bit WAV of codes that are not a version."""
        path = self.new_path("sketch", ".wav")
        self.tokenizer.decode_file(codes, path)
        return path

    def new_path(self, kind: str, suffix: str) -> Path:
        """A path for a file that is no version's."""
        self.n_temporary += 1
        return self.folder / f"{kind}-{self.n_temporary}{suffix}"

    def delete_kind(self, kind: str) -> None:
        """Delete the files with paths of `new_path(kind, …)`."""
        for path in self.folder.glob(f"{kind}-*"):
            path.unlink(missing_ok=True)

    def delete(self, version: Version) -> None:
        for suffix in (".wav", ".codes", ".png"):
            self._path(version, suffix).unlink(missing_ok=True)

    def _path(self, version: Version, suffix: str) -> Path:
        return self.folder / f"audiovq-{version.number}{suffix}"
