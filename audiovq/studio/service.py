"""Making and changing music for several people at once. Each has a session with a tree of versions.

Methods that generate music are iterators: they yield the takes with level 0 alone, then with each finer
level, and at last as versions in the tree. The caller makes sure that one runs at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq.api.generator import Generator
from audiovq.api.options import PieceOptions
from audiovq.data.codes import Codes
from audiovq.sampling.generate import CodesCallback
from audiovq.sampling.inpainting import CodeMask
from audiovq.studio import uploads
from audiovq.studio.uploads import Limits, OnProgress, Recording
from audiovq.studio.versions import Files, Tree, Version

MAX_SESSIONS = 100
CELL_SECONDS = 1.0  # of the parts that `vary` replaces
SETTINGS = ("temperature", "top_p", "top_k", "guidance")


class Stopped(Exception):
    """The user stopped the work."""


@dataclass(frozen=True)
class PieceRequest:
    """How new music is to be made."""

    seed: int | None = None  # the same seed gives the same music; None draws a seed
    takes: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    chroma: Path | None = None  # a recording whose melody and harmony to follow
    settings: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of SETTINGS, one value per level

    @classmethod
    def from_controls(cls, values: Sequence[Any], labels: Sequence[str], n_levels: int) -> PieceRequest:
        """From the controls of the page: seed, takes, text, chroma, each label, then each setting per level.

        Raises:
            ValueError: a seed that is not a number.
        """
        seed, takes, text, chroma, *rest = values
        if seed and not str(seed).strip().isdecimal():
            raise ValueError(f"the seed must be a whole number from 0 on, or empty; found {seed}")
        chosen = {name: value for name, value in zip(labels, rest, strict=False) if value}
        numbers = rest[len(labels) :]
        settings = {name: numbers[i * n_levels : (i + 1) * n_levels] for i, name in enumerate(SETTINGS)}
        settings["top_k"] = [int(value) for value in settings["top_k"]]
        reference = Path(chroma) if chroma else None
        return cls(int(seed) if seed else None, int(takes), chosen, text or "", reference, settings)

    @property
    def options(self) -> PieceOptions:
        """The options of `Generator.grow`."""
        settings: dict[str, Any] = {name: list(values) for name, values in self.settings.items()}
        options = PieceOptions(labels=dict(self.labels), text=self.text, chroma=self.chroma, **settings)
        return options if options.conditional else dataclasses.replace(options, guidance=None)


@dataclass(frozen=True)
class Takes:
    """Unfinished or finished takes."""

    n_levels: int
    sounds: list[Path]  # WAV of each take
    versions: list[Version]  # when they are finished


class Session:
    """The work of one user."""

    def __init__(self, token: str, tree: Tree, files: Files):
        self.token, self.tree, self.files = token, tree, files
        self.recording: Recording | None = None  # the last upload
        self.takes: list[Version] = []  # the last ones that were made
        self.stop = threading.Event()
        self.visitor = ""  # the browser page that has the session open
        self.shown: int | None = None  # the version on the page


@dataclass(frozen=True)
class Job:
    """A request for new music."""

    session: Session
    request: PieceRequest
    on_progress: OnProgress
    number: int | None = None  # of the version that is changed

    @property
    def version(self) -> Version:
        """Raises ValueError if there is no such version."""
        return self.session.tree.get(self.number)


class Service:
    """A model and the sessions of its users; their files are in `folder`."""

    def __init__(self, generator: Generator, folder: Path, limits: Limits | None = None):
        self.generator, self.folder, self.limits = generator, folder, limits or Limits()
        self._sessions: dict[str, Session] = {}  # the one used last comes last
        self._lock = threading.Lock()

    @property
    def n_levels(self) -> int:
        return len(self.generator.priors)

    @property
    def known(self) -> dict[str, Any]:
        """What the priors can follow besides labels: text (its greatest length in bytes) and chroma."""
        inputs = [prior.config.extra_inputs for prior in self.generator.priors]
        return {"text": max(i["text_bytes"] for i in inputs), "chroma": any(i["chroma"] for i in inputs)}

    # --- sessions -------------------------------------------------------------------------------------

    def enter(self, token: str | None, visitor: str = "") -> Session:
        """The session of a token, or a new one. Of too many, the one unused for longest is deleted."""
        with self._lock:
            session = self._sessions.pop(token, None) if token else None
            if session is None:
                token = secrets.token_urlsafe(18)
                files = Files(self.generator.tokenizer, self.folder / token)
                session = Session(token, Tree(self.limits.max_versions), files)
            session.visitor = visitor
            self._sessions[session.token] = session
            while len(self._sessions) > MAX_SESSIONS:
                old = self._sessions.pop(next(iter(self._sessions)))
                old.stop.set()
                shutil.rmtree(old.files.folder, ignore_errors=True)
            return session

    def session(self, token: str) -> Session:
        """Raises ValueError if there is none."""
        with self._lock:
            if token not in self._sessions:
                raise ValueError("the page was unused for long and its pieces were deleted; please reload it")
            self._sessions[token] = self._sessions.pop(token)
            return self._sessions[token]

    def renew_stop(self, token: str) -> None:
        """Called for a new request, before it waits for its turn: an earlier stop does not apply to it."""
        with self._lock:
            session = self._sessions.get(token)  # a deleted session is reported when the turn comes
            if session and session.stop.is_set():
                session.stop = threading.Event()

    def stop(self, visitor: str) -> None:
        """Stop the work for a page that was closed."""
        for session in list(self._sessions.values()):
            if session.visitor == visitor:
                session.stop.set()

    def warm_up(self) -> None:
        """Encode, decode and draw something, so that libraries load now what they load at first use."""
        tokenizer, session = self.generator.tokenizer, self.enter(None)
        codes = tokenizer.encode(torch.zeros(tokenizer.sample_rate), tokenizer.sample_rate)
        session.files.picture(session.tree.add("", codes))
        with self._lock:
            del self._sessions[session.token]
        shutil.rmtree(session.files.folder)

    # --- new music ------------------------------------------------------------------------------------

    def make(self, job: Job, seconds: float) -> Iterator[Takes]:
        """A new piece.

        Raises (as all methods below):
            ValueError: an impossible request.
            Stopped: `session.stop` was set.
        """
        self.limits.check_seconds(seconds)
        yield from self._draw(job, "new piece", self.generator.n_samples(seconds), None)

    def extend(self, job: Job, before: float, after: float) -> Iterator[Takes]:
        """Seconds of new music before and after a version, whose own codes stay."""
        piece = job.version.codes
        if min(before, after) < 0 or not before + after:
            raise ValueError("give the seconds of new music, above 0, before or after the piece")
        self.limits.check_seconds(piece.seconds + before + after)
        mask = self.generator.keep(piece, before=before, after=after)
        words = [f"{before:g} s before it"] * (before > 0) + [f"{after:g} s more"] * (after > 0)
        yield from self._draw(job, ", ".join(words), mask.n_samples, mask)

    def redraw(self, job: Job, start: float, end: float, keep_levels: int) -> Iterator[Takes]:
        """A part anew, from second to second. Everything else stays, and there the first `keep_levels`."""
        piece = job.version.codes
        end = min(end, piece.seconds)
        if not 0 <= start < end:
            raise ValueError(
                f"the part must begin before it ends, within the piece of {piece.seconds:.1f} s; "
                f"found {start:g} to {end:g} s"
            )
        mask = self.generator.keep(piece, stretch=(start, end), levels=keep_levels)
        yield from self._draw(job, f"new from {start:.1f} to {end:.1f} s", mask.n_samples, mask)

    def vary(self, job: Job, percent: float) -> Iterator[Takes]:
        """Parts here and there anew, in all so many per cent of the piece; other parts in each take."""
        piece = job.version.codes
        if not 0 < percent <= 100:
            raise ValueError(f"how much to vary must be above 0 and up to 100 %; found {percent:g} %")
        job = dataclasses.replace(job, request=self._with_seed(job.request))
        rngs = [random.Random(f"{job.request.seed} {i}") for i in range(job.request.takes)]
        takes = [self._gaps(piece, percent / 100, rng) for rng in rngs]
        mask = CodeMask(piece.n_samples, [torch.stack(rows) for rows in zip(*takes, strict=True)])
        yield from self._draw(job, f"varied by {percent:g} %", piece.n_samples, mask)

    def rerender(self, job: Job, keep_levels: int) -> Iterator[Takes]:
        """The finer levels anew; the first `keep_levels` stay."""
        if not 1 <= keep_levels < self.n_levels:
            raise ValueError(f"levels to keep: expected 1 to {self.n_levels - 1}, found {keep_levels}")
        mask = self.generator.keep(job.version.codes, levels=keep_levels)
        title = "new details" if keep_levels == 1 else f"new details from level {keep_levels}"
        yield from self._draw(job, title, mask.n_samples, mask)

    def _with_seed(self, request: PieceRequest) -> PieceRequest:
        if request.seed is not None and not 0 <= request.seed < 2**63:
            raise ValueError(f"the seed must be a whole number from 0 on; found {request.seed}")
        seed = secrets.randbelow(10**6) if request.seed is None else request.seed
        return dataclasses.replace(request, seed=seed)

    def _gaps(self, piece: Codes, share: float, rng: random.Random) -> list[Tensor]:
        """The levels of a piece, -1 where codes are to be drawn."""
        starts = [i * CELL_SECONDS for i in range(max(1, round(piece.seconds / CELL_SECONDS)))]
        ends = [*starts[1:], piece.seconds]
        chosen = rng.sample(list(zip(starts, ends, strict=True)), max(1, round(share * len(starts))))
        masks = [self.generator.keep(piece, stretch=stretch).levels for stretch in chosen]
        return [functools.reduce(torch.minimum, levels) for levels in zip(*masks, strict=True)]

    def _draw(self, job: Job, title: str, n_samples: int, mask: CodeMask | None) -> Iterator[Takes]:
        session, request = job.session, self._with_seed(job.request)
        if session.stop.is_set():
            raise Stopped  # while it waited for its turn
        if not 1 <= request.takes <= self.limits.max_takes:
            raise ValueError(f"takes: expected 1 to {self.limits.max_takes}, found {request.takes}")
        session.tree.check_room(request.takes)
        if request.chroma is not None:
            uploads.check_reference(request.chroma, self.limits)
        session.takes = []
        session.files.delete_kind("sketch")
        on_codes, items = self._callback(job, n_samples), range(request.takes)
        takes: list[Codes] = []
        with uploads.named_as_uploaded(request.chroma):
            growing = self.generator.grow(
                n_samples, request.seed or 0, items, request.options, given=mask, on_codes=on_codes
            )
            for takes in growing:
                n_levels = len(takes[0].levels)
                if n_levels < self.n_levels:
                    yield Takes(n_levels, [session.files.sketch(codes) for codes in takes], [])
        parent = job.number if mask else None
        for i, codes in enumerate(takes):
            name = f"{title}, take {i + 1}" if len(takes) > 1 else title
            session.takes.append(session.tree.add(name, codes, parent, request.seed))
        yield Takes(self.n_levels, [session.files.sound(version) for version in session.takes], session.takes)

    def _callback(self, job: Job, n_samples: int) -> CodesCallback:
        """Reports progress about a hundred times in all, and raises `Stopped` after `session.stop`."""
        n_codes = [-(-n_samples // hop_length) for hop_length in self.generator.hop_lengths]
        reported, stop = -1.0, job.session.stop

        def on_codes(level: int, codes: Tensor) -> None:
            nonlocal reported
            if stop.is_set():
                raise Stopped
            share = (sum(n_codes[:level]) + codes.shape[1]) / sum(n_codes)
            if share >= reported + 0.01 or reported < share == 1:
                reported = share
                job.on_progress(share, f"level {level} (the finest is {self.n_levels - 1})")

        return on_codes

    # --- uploads and versions -------------------------------------------------------------------------

    def open(self, session: Session, path: Path, on_progress: OnProgress) -> Iterator[Recording]:
        """Encode an uploaded file; see `read_recording`."""
        session.recording = None
        session.files.delete_kind("recording")
        new_path = functools.partial(session.files.new_path, "recording")
        tokenizer, limits = self.generator.tokenizer, self.limits
        for recording in uploads.read_recording(path, tokenizer, limits, new_path, on_progress):
            session.recording = recording
            yield recording

    def adopt(self, session: Session) -> Version:
        """The last upload as a version, which can be changed."""
        if session.recording is None:
            raise ValueError("there is no recording yet: drop one first")
        version = session.tree.add(session.recording.name, session.recording.codes)
        session.files.sound(version)
        return version

    def delete(self, session: Session, number: int | None) -> int | None:
        """Delete a version and all versions made from it; returns its parent, or else the newest version."""
        parent = session.tree.get(number).parent
        for version in session.tree.delete(number):
            session.files.delete(version)
        return parent if parent is not None else max(session.tree.versions, default=None)
