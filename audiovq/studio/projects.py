"""Projects: folders with the versions of pieces, which are written after every change. A folder has `project.json`,
`codes/N.codes` for each version and `recordings/ID.suffix` for each recording. A version is in `project.json` only
after its codes are on the disk, so a kill at any moment loses at most unfinished work."""

import contextlib
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from audiovq.studio.requests import MANY, MB, Labels, Limits, Name, Number, Refused, Settings, Strict, Text, sentence
from audiovq.utils.files import write_text
from audiovq.utils.progress import say

LARGEST_PROJECT_FILE = 16 * MB
ARRIVING = ".arriving-"  # how the names of folders for uploads begin


class Kept(Strict):
    """Where a version sounds as the one that it was made from, in samples of the model's rate."""

    source_start: int = Field(ge=0)  # where the other one begins in this one
    stretches: list[tuple[int, int]] = Field(max_length=10_000)


class Version(Strict):
    number: int = Field(ge=1)  # never used again within a project
    parent: int | None = None
    title: Name  # how it was made, or what the user calls it
    kind: Literal["new", "change", "recording"]
    seconds: Number
    n_samples: int = Field(ge=1)  # at the model's rate
    n_levels: int = Field(ge=1)
    seed: int | None = None
    labels: Labels = Field(default={})
    text: Text = ""
    chords: Text = ""
    settings: Settings = Field(default={})
    starred: bool = False
    made_at: Number = Field(default_factory=time.time)  # seconds since 1970, as all times here
    take: int = 1
    recording: Name | None = None  # id of the recording that this is
    warning: Text | None = None
    kept: Kept | None = None  # None: all is decoded from codes


class Recording(Strict):
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: Name
    suffix: str = Field(pattern=r"^\.[a-z0-9]{1,8}$")
    seconds: Number  # that are used
    channels: int = Field(ge=1, le=2)
    sample_rate: int = Field(ge=1)
    n_samples: int = Field(ge=1)  # at its own rate
    note: Text = ""


class Project(Strict):
    """What `project.json` has."""

    format: Literal["audiovq-project-1"] = "audiovq-project-1"
    id: str = Field(default_factory=lambda: secrets.token_hex(8), pattern=r"^[0-9a-f]{16}$")
    name: Name = "Untitled"
    owner: str = ""  # the visitor it belongs to; "" is everybody
    tokenizer_hash: str
    starred: bool = False
    created_at: Number = Field(default_factory=time.time)
    changed_at: Number = Field(default_factory=time.time)
    shown: int | None = None  # number of the version on the page
    next_number: int = Field(default=1, ge=1)
    versions: list[Version] = Field(default=[], max_length=10_000)
    recordings: list[Recording] = Field(default=[], max_length=10_000)

    @model_validator(mode="after")
    def _is_a_tree(self) -> "Project":
        """Parents come before their children, and all that is named exists."""
        numbers: set[int] = set()
        names = {recording.id for recording in self.recordings}
        for version in self.versions:
            if version.number in numbers or version.parent not in {None, *numbers}:
                raise ValueError(f"version {version.number} does not fit into the tree of versions")
            if (version.recording and version.recording not in names) or (version.kept and not version.parent):
                raise ValueError(f"version {version.number} needs a sound that is not there")
            numbers.add(version.number)
        if max(numbers, default=0) >= self.next_number or self.shown not in {None, *numbers}:
            raise ValueError("its numbers of versions contradict each other")
        return self

    def version(self, number: int | None) -> Version:
        """Raises Refused if there is no such version."""
        if found := next((version for version in self.versions if version.number == number), None):
            return found
        raise Refused(f"there is no version {number} in this project; it may have been deleted", 404)

    def recording(self, name: str | None) -> Recording:
        """Raises Refused if there is no such recording."""
        if found := next((recording for recording in self.recordings if recording.id == name), None):
            return found
        raise Refused("there is no such recording in this project", 404)

    def add(self, version: Version) -> None:
        """Raises Refused if the version that it was made from was deleted meanwhile."""
        if version.parent is not None:
            self.version(version.parent)
        self.versions.append(version)
        self.next_number = version.number + 1
        self.shown = version.number if version.take == 1 else self.shown

    def remove(self, number: int) -> list[Version]:
        """Take out a version and all that was made from it; its parent, or else the newest, is shown."""
        gone, removed = {number}, [self.version(number)]
        for version in self.versions:  # children come after their parents
            if version.parent in gone:
                gone.add(version.number)
                removed.append(version)
        self.versions = [version for version in self.versions if version.number not in gone]
        if self.shown in gone:
            left = [version.number for version in self.versions]
            self.shown = removed[0].parent if removed[0].parent in left else max(left, default=None)
        return removed

    @property
    def summary(self) -> dict[str, Any]:
        facts = self.model_dump(include={"id", "name", "starred", "created_at", "changed_at"})
        seconds = max((version.seconds for version in self.versions), default=0.0)
        return facts | {"n_versions": len(self.versions), "seconds": seconds}


def parse(content: bytes, name: str) -> Project:
    """A project from what `project.json` has. Raises ValueError in one sentence."""
    try:
        return Project.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{name}: not a project, or damaged ({sentence(error)})") from None


class Library:
    def __init__(self, root: Path, limits: Limits):
        self.root, self.limits = root, limits
        self.lock = threading.RLock()
        self._projects: dict[str, Project] = {}
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{ARRIVING}*"):  # of a studio that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in sorted(root.iterdir()):
            if (folder / "project.json").is_file() and not folder.name.startswith("."):
                self._read(folder)

    def _read(self, folder: Path) -> None:
        path = folder / "project.json"
        try:
            if path.stat().st_size > LARGEST_PROJECT_FILE:
                raise ValueError(f"{path}: not a project, or damaged (too large)")
            project = parse(path.read_bytes(), str(path))
            if project.id != folder.name:
                raise ValueError(f"{path}: its id is not the name of its folder")
            self._projects[project.id] = project
            for leftover in folder.glob("recordings/*-*"):  # uploads that a kill interrupted
                leftover.unlink()
        except (ValueError, OSError) as error:
            aside = path.with_name("project.json.damaged")
            with contextlib.suppress(OSError):
                path.replace(aside)
            say(f"{error}; it was set aside as {aside}, and its codes are in {folder / 'codes'}")

    def folder(self, project: Project) -> Path:
        return self.root / project.id

    def codes_path(self, project: Project, number: int) -> Path:
        return self.folder(project) / "codes" / f"{number}.codes"

    def recording_path(self, project: Project, recording: Recording) -> Path:
        return self.folder(project) / "recordings" / (recording.id + recording.suffix)

    def mine(self, owner: str, tokenizer_hash: str) -> list[Project]:
        """The projects of a visitor and a model; those that changed last come first."""
        with self.lock:
            found = [p for p in self._projects.values() if (p.owner, p.tokenizer_hash) == (owner, tokenizer_hash)]
        return sorted(found, key=lambda project: -project.changed_at)

    def get(self, name: str, owner: str, tokenizer_hash: str) -> Project:
        """Raises Refused for a project that does not exist, is somebody else's, or is of another model."""
        project = self._projects.get(name)
        if project is None or project.owner != owner:
            raise Refused("there is no such project; it may have been deleted", 404)
        if project.tokenizer_hash != tokenizer_hash:
            raise Refused(f"{project.name}: a project of another model; open it in a studio of that model", 409)
        return project

    def create(self, project: Project) -> Project:
        """Add a project, whose folder may be there already. Raises Refused beyond the limits."""
        with self.lock:
            self.check_room(project.owner)
            n_mine = sum(other.owner == project.owner for other in self._projects.values())
            if n_mine >= self.limits.max_projects:
                raise Refused(f"you have {n_mine} projects, which is the most; delete some of them", 409)
            if len(self._projects) >= MANY * self.limits.max_projects:
                raise Refused("this studio has as many projects as it can have", 409)
            for part in ("codes", "recordings"):
                (self.folder(project) / part).mkdir(parents=True, exist_ok=True)
            self._projects[project.id] = project
            self._write(project)
        return project

    @contextlib.contextmanager
    def changing(self, project: Project) -> Iterator[None]:
        """Change a project within the block; it is written at its end, or as it was if the block fails."""
        with self.lock:
            if project.id not in self._projects:
                raise Refused("the project was deleted meanwhile", 404)
            before = project.model_copy(deep=True)
            try:
                yield
                project.changed_at = time.time()
                self._write(project)
            except BaseException:
                for name in Project.model_fields:
                    setattr(project, name, getattr(before, name))
                raise

    def _write(self, project: Project) -> None:
        write_text(self.folder(project) / "project.json", project.model_dump_json(indent=1))

    def delete(self, project: Project) -> None:
        with self.lock:
            self._projects.pop(project.id, None)
            folder = self.folder(project)
            (folder / "project.json").unlink(missing_ok=True)  # a kill from here on leaves no project
            shutil.rmtree(folder, ignore_errors=True)

    def delete_version(self, project: Project, number: int) -> None:
        """Delete a version, all that was made from it, and recordings that nothing needs any more."""
        with self.changing(project):
            removed = project.remove(number)
            names = {version.recording for version in removed}
            unused = [recording for recording in project.recordings if recording.id in names]
            project.recordings = [recording for recording in project.recordings if recording not in unused]
        for version in removed:
            self.codes_path(project, version.number).unlink(missing_ok=True)
        for recording in unused:
            self.recording_path(project, recording).unlink(missing_ok=True)

    def check_versions(self, project: Project, n: int) -> None:
        """Raises Refused if there is no room for n more versions."""
        found, most = len(project.versions), self.limits.max_versions
        if found + n > most:
            raise Refused(f"this project has {found} versions of at most {most}; delete some of them", 409)
        self.check_room(project.owner)

    def check_room(self, owner: str, n_bytes: int = 0) -> None:
        """Raises Refused if with `n_bytes` more a visitor, or all together, would have too much."""
        with self.lock:
            sizes = [(_size(self.folder(project)), project.owner) for project in self._projects.values()]
            mine = (sum(size for size, other in sizes if other == owner) + n_bytes) / MB
            arriving = sum(map(_size, self.root.glob(f"{ARRIVING}*")))
            everything = (sum(size for size, _ in sizes) + arriving + n_bytes) / MB
        if mine > self.limits.quota_mb:
            found = f"your projects would have {mine:.1f} MB of at most {self.limits.quota_mb:g} MB"
            raise Refused(f"{found}; delete some of them (the option --quota of audiovq studio allows more)", 413)
        if everything > self.limits.total_mb:
            raise Refused("the disk space of this studio is used up; ask its owner for more", 413)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
