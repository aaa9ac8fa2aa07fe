"""Making and changing music for several people at once: each has a desk with a tree of versions of its own.

All that draws codes is an iterator: it gives the takes with their top level first, then with each finer level, and at
last as versions in the tree. It knows no page; whoever calls it sees to it that one thing is made at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq.api import Generator
from audiovq.data.codes import Codes
from audiovq.sampling.generate import CodesCallback
from audiovq.sampling.inpainting import CodeMask
from audiovq.studio.files import Files
from audiovq.studio.uploads import Limits, Recording, called_by_name, check_reference, read_recording
from audiovq.studio.versions import Tree, Version

MAX_DESKS = 100
CELL_SECONDS = 1.0  # of the stretches that `vary` draws anew
Tell = Callable[[float, str], object]  # how far it is, from 0 to 1, and what is being done


class Stopped(Exception):
    """Whoever asked for it does not want it any more."""


@dataclass(frozen=True)
class PieceRequest:
    """What new music should be like."""

    seed: int | None = None  # the same seed, the same music; None takes a new one
    takes: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    chroma: Path | None = None  # a recording whose melody and harmony are followed
    settings: Mapping[str, Sequence[float]] = field(default_factory=dict)  # temperature, top_k, ...: a value a level

    @property
    def options(self) -> dict[str, Any]:
        """For `Generator.grow`."""
        asked = {"labels": dict(self.labels), "text": self.text, "chroma": self.chroma}
        settings = {name: list(values) for name, values in self.settings.items()}
        if not any(asked.values()):
            settings.pop("guidance", None)  # there is nothing to be followed
        return asked | settings


@dataclass(frozen=True)
class Takes:
    """Candidates on their way: what can be heard of them by now."""

    n_levels: int
    sounds: list[Path]  # WAV, one a take
    versions: list[Version]  # when they are finished


class Session:
    """What one person has made."""

    def __init__(self, token: str, tree: Tree, shelf: Files):
        self.token, self.tree, self.shelf = token, tree, shelf
        self.recording: Recording | None = None  # the last one that was taken apart
        self.takes: list[Version] = []  # the last ones that were made, side by side
        self.stop = threading.Event()
        self.visitor = ""  # the page that has it open
        self.shown: int | None = None  # the version that it shows


class Service:
    """A model and the desks of those who use it; sounds and pictures go into `folder`."""

    def __init__(self, generator: Generator, folder: Path, limits: Limits | None = None):
        self.generator, self.folder, self.limits = generator, folder, limits or Limits()
        self._desks: dict[str, Session] = {}  # the one that was used last comes last
        self._lock = threading.Lock()

    @property
    def n_levels(self) -> int:
        return len(self.generator.priors)

    @property
    def known(self) -> dict[str, Any]:
        """What the priors were trained to follow: text (its longest, in bytes) and chroma."""
        beside = [prior.config.beside for prior in self.generator.priors]
        return {"text": max(b["text_bytes"] for b in beside), "chroma": any(b["chroma"] for b in beside)}

    def enter(self, token: str | None, visitor: str = "") -> Session:
        """The desk of a token, or a new one; with too many, the one that was not used for longest is cleared."""
        with self._lock:
            desk = self._desks.pop(token, None) if token else None
            if desk is None:
                token = secrets.token_urlsafe(18)
                shelf = Files(self.generator.tokenizer, self.folder / token)
                desk = Session(token, Tree(self.limits.max_versions), shelf)
            desk.visitor = visitor
            self._desks[desk.token] = desk
            while len(self._desks) > MAX_DESKS:
                old = self._desks.pop(next(iter(self._desks)))
                old.stop.set()
                shutil.rmtree(old.shelf.folder, ignore_errors=True)
            return desk

    def desk(self, token: str) -> Session:
        """Raises ValueError if there is none."""
        with self._lock:
            if token not in self._desks:
                raise ValueError("this page was left for so long that its pieces were cleared away; please reload it")
            self._desks[token] = self._desks.pop(token)
            return self._desks[token]

    def want(self, token: str) -> None:
        """Something new is asked for, which waits its turn: what was stopped before stays stopped, this is not."""
        with self._lock:
            desk = self._desks.get(token)  # if it was cleared away, whoever takes its turn says so
            if desk and desk.stop.is_set():
                desk.stop = threading.Event()

    def stop(self, visitor: str) -> None:
        """Stop what is being made for a page that was closed."""
        for desk in list(self._desks.values()):
            if desk.visitor == visitor:
                desk.stop.set()

    def make(self, desk: Session, wish: PieceRequest, seconds: float, tell: Tell) -> Iterator[Takes]:
        """A new piece. Raises ValueError, as all that follow, for what cannot be; `Stopped` if `desk.stop` gets set."""
        self.limits.check_seconds(seconds)
        yield from self._draw(desk, None, "new piece", wish, self.generator.n_samples(seconds), None, tell)

    def extend(
        self, desk: Session, number: int, wish: PieceRequest, before: float, after: float, tell: Tell
    ) -> Iterator[Takes]:  # fmt: skip
        """New music before and after a version, in seconds; its own whole top codes stay as they are."""
        piece = desk.tree.get(number).codes
        self.limits.check_seconds(piece.seconds + before + after)
        given = self.generator.keep(piece, before=before, after=after)
        words = [f"{before:g} s before it"] * (before > 0) + [f"{after:g} s more"] * (after > 0)
        yield from self._draw(desk, number, ", ".join(words), wish, given.n_samples, given, tell)

    def redraw(
        self, desk: Session, number: int, wish: PieceRequest, start: float, end: float, keep_levels: int, tell: Tell
    ) -> Iterator[Takes]:  # fmt: skip
        """A stretch anew, from second to second; there the first `keep_levels` stay, and outside everything."""
        piece = desk.tree.get(number).codes
        end = min(end, piece.seconds)
        given = self.generator.keep(piece, stretch=(start, end), levels=keep_levels)
        yield from self._draw(desk, number, f"anew {start:.1f} to {end:.1f} s", wish, given.n_samples, given, tell)

    def vary(self, desk: Session, number: int, wish: PieceRequest, share: float, tell: Tell) -> Iterator[Takes]:
        """Stretches here and there anew, in all a `share` of the piece (0 to 1); each take has its own."""
        piece = desk.tree.get(number).codes
        if not 0 < share <= 1:
            raise ValueError(f"how much to vary: expected above 0 and up to 100 %, found {100 * share:g} %")
        wish = self._seeded(wish)
        takes = [self._with_holes(piece, share, random.Random(f"{wish.seed} {i}")) for i in range(wish.takes)]
        given = CodeMask(piece.n_samples, [torch.stack(rows) for rows in zip(*takes, strict=True)])
        yield from self._draw(desk, number, f"varied by {share:.0%}", wish, piece.n_samples, given, tell)

    def rerender(self, desk: Session, number: int, wish: PieceRequest, keep_levels: int, tell: Tell) -> Iterator[Takes]:
        """The finer levels anew; the first `keep_levels` stay."""
        piece = desk.tree.get(number).codes
        if not 1 <= keep_levels < self.n_levels:
            raise ValueError(f"levels to keep: expected 1 to {self.n_levels - 1}, found {keep_levels}")
        given = self.generator.keep(piece, levels=keep_levels)
        words = "new details" if keep_levels == 1 else f"new details, level {keep_levels + 1} on"
        yield from self._draw(desk, number, words, wish, given.n_samples, given, tell)

    def open(self, desk: Session, path: Path, tell: Tell) -> Iterator[Recording]:
        """Take an uploaded file apart; see `read_recording`."""
        desk.recording = None
        for recording in read_recording(path, self.generator.tokenizer, self.limits, desk.shelf, tell):
            desk.recording = recording
            yield recording

    def adopt(self, desk: Session) -> Version:
        """The recording that was taken apart last as a version, to go on from."""
        if desk.recording is None:
            raise ValueError("there is no recording yet: drop one first")
        version = desk.tree.add(desk.recording.name, desk.recording.codes)
        desk.shelf.sound(version)
        return version

    def forget(self, desk: Session, number: int | None) -> int | None:
        """Take a version away with all that was made of it; returns its parent, else the newest that is left."""
        parent = desk.tree.get(number).parent
        for version in desk.tree.forget(number):
            desk.shelf.drop(version)
        return parent if parent is not None else max(desk.tree.versions, default=None)

    def warm_up(self) -> None:
        """Decode and draw a second of anything: what libraries load at first use is loaded then."""
        tokenizer, desk = self.generator.tokenizer, self.enter(None)
        codes = tokenizer.encode(torch.zeros(tokenizer.sample_rate), tokenizer.sample_rate)
        desk.shelf.picture(desk.tree.add("", codes))
        with self._lock:
            del self._desks[desk.token]
        shutil.rmtree(desk.shelf.folder)

    def _seeded(self, wish: PieceRequest) -> PieceRequest:
        if wish.seed is not None and not 0 <= wish.seed < 2**63:
            raise ValueError(f"seed: expected a whole number from 0 on, found {wish.seed}")
        seed = secrets.randbelow(10**6) if wish.seed is None else wish.seed
        return dataclasses.replace(wish, seed=seed)

    def _with_holes(self, piece: Codes, share: float, chance: random.Random) -> list[Tensor]:
        """A piece's levels, -1 where they are to be drawn."""
        starts = [i * CELL_SECONDS for i in range(max(1, round(piece.seconds / CELL_SECONDS)))]
        chosen = chance.sample(starts, max(1, round(share * len(starts))))
        ends = {start: start + CELL_SECONDS for start in starts[:-1]} | {starts[-1]: piece.seconds}
        kept = [self.generator.keep(piece, stretch=(start, ends[start])).levels for start in chosen]
        return [functools.reduce(torch.minimum, levels) for levels in zip(*kept, strict=True)]

    def _draw(
        self, desk: Session, parent: int | None, title: str, wish: PieceRequest, n_samples: int, given: CodeMask | None, tell: Tell
    ) -> Iterator[Takes]:
        if desk.stop.is_set():
            raise Stopped  # while it waited for its turn
        if not 1 <= wish.takes <= self.limits.max_takes:
            raise ValueError(f"takes: expected 1 to {self.limits.max_takes}, found {wish.takes}")
        desk.tree.check_room(wish.takes)
        if wish.chroma is not None:
            check_reference(wish.chroma, self.generator.sample_rate, self.limits)
        wish = self._seeded(wish)
        desk.takes = []
        desk.shelf.drop_sketches()
        listener = self._listener(desk, n_samples, tell)
        takes: list[Codes] = []
        with called_by_name(wish.chroma):
            for takes in self.generator.grow(
                n_samples, wish.seed or 0, range(wish.takes), given=given, on_codes=listener, **wish.options
            ):
                n_levels = len(takes[0].levels)
                if n_levels < self.n_levels:
                    yield Takes(n_levels, [desk.shelf.sketch(codes) for codes in takes], [])
        names = [f"{title}, take {i + 1}" if wish.takes > 1 else title for i in range(wish.takes)]
        versions = [desk.tree.add(name, codes, parent, wish.seed) for name, codes in zip(names, takes, strict=True)]
        desk.takes = versions
        yield Takes(self.n_levels, [desk.shelf.sound(version) for version in versions], versions)

    def _listener(self, desk: Session, n_samples: int, tell: Tell) -> CodesCallback:
        """Tells how far it is, a hundred times in all, and listens for being stopped."""
        n_codes = [-(-n_samples // hop) for hop in self.generator.tokenizer.config.hop_lengths[: self.n_levels]]
        told, stop = -1.0, desk.stop

        def listen(level: int, codes: Tensor, n_done: int) -> None:
            nonlocal told
            if stop.is_set():
                raise Stopped
            share = (sum(n_codes[:level]) + n_done) / sum(n_codes)
            if share >= told + 0.01 or told < share == 1:
                told = share
                tell(share, f"level {level + 1} of {self.n_levels}")

        return listen
