"""The versions of a piece as a tree: whatever is made of a version is its child, and nothing is ever overwritten."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from audiovq.data.codes import Codes


@dataclass(frozen=True)
class Version:
    number: int  # from 1 on, never used again
    parent: int | None
    title: str  # how it came about, for people
    codes: Codes
    seed: int | None = None  # None: it was not drawn
    made_at: float = field(default_factory=time.time)  # seconds since 1970: when its last code was there

    @property
    def name(self) -> str:
        return f"{self.number} · {self.title} · {self.codes.seconds:.1f} s"


class Tree:
    """Versions by number, in the order in which they were made.

    Args:
        most: how many there may be at once.
    """

    def __init__(self, most: int = 100):
        self.most = most
        self.versions: dict[int, Version] = {}
        self._next = 1

    def check_room(self, n: int) -> None:
        """Raises ValueError if there is no room for n more."""
        if len(self.versions) + n > self.most:
            raise ValueError(
                f"your tree has {len(self.versions)} versions and may have {self.most}: forget some that you do not need"
            )

    def add(self, title: str, codes: Codes, parent: int | None = None, seed: int | None = None) -> Version:
        """A new version, a child of `parent` or a root. Raises ValueError if there is no room, or no such parent."""
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
            known = ", ".join(map(str, self.versions)) or "none yet: make a piece first"
            raise ValueError(f"version {number or ''}: expected one of {known}".replace(" :", ":"))
        return self.versions[number]

    def before(self, number: int | None) -> int:
        """The version that a version was made from. Raises ValueError for a beginning."""
        parent = self.get(number).parent
        if parent is None:
            raise ValueError(f"version {number} is where it began: there is nothing to undo")
        return parent

    def children(self, number: int | None) -> list[Version]:
        """What was made of a version; the roots for None."""
        return [version for version in self.versions.values() if version.parent == number]

    def lines(self) -> list[tuple[str, int]]:
        """The tree as text, a line and a number for each version: parents above their children."""
        found: list[tuple[str, int]] = []
        waiting = [(root, "", "") for root in reversed(self.children(None))]
        while waiting:
            version, before, below = waiting.pop()
            found.append((before + version.name, version.number))
            children = self.children(version.number)
            branches = [("├─ ", "│  ")] * (len(children) - 1) + [("└─ ", "   ")] * bool(children)
            waiting += reversed(
                [(child, below + mark, below + space) for child, (mark, space) in zip(children, branches, strict=True)]
            )
        return found

    def forget(self, number: int | None) -> list[Version]:
        """Take a version away with all that was made of it; returns them. Raises ValueError if there is no such version."""
        gone, waiting = [], [self.get(number)]
        while waiting:
            version = waiting.pop()
            waiting += self.children(version.number)
            gone.append(self.versions.pop(version.number))
        return gone
