"""Files and folders that appear whole or not at all, checksums, and JSON lines."""

import codecs
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

CONFIG, WEIGHTS, SUMS = "config.json", "model.safetensors", "sha256.json"  # the files of a model's folder
MAX_NAME_BYTES = 255
fences: list[Callable[[], object]] = []  # called before anything appears or grows; one may end the process


@contextlib.contextmanager
def atomic_file(path: Path, flush: bool = True) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all.

    >>> with atomic_file(path) as temporary:
    ...     temporary.write_bytes(content)

    The temporary file is in a hidden folder next to it, which the next attempt removes if the process is
    killed. At the end it is flushed to the disk (if `flush`) and renamed. ValueError if it cannot be written.
    """
    place = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp")  # any name is fine
    try:
        with writing(path):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            temporary = place / "file"
            yield temporary
            _complete(temporary, flush)
            temporary.replace(path)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a folder so that it appears whole or not at all; it replaces one of that name. As `atomic_file`."""
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
            temporary.mkdir(parents=True)
            yield temporary
            for path in temporary.rglob("*"):
                _complete(path)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            _complete(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _complete(path: Path, flush: bool = True) -> None:
    """Give a file its folder's permissions (safetensors lets only its owner read it), and flush it to the disk."""
    for fence in fences:
        fence()
    is_file = path.is_file()
    if is_file:
        path.chmod(path.parent.stat().st_mode & 0o666)
    if flush and (is_file or os.name != "nt"):  # Windows flushes files alone, and only writable ones
        descriptor = os.open(path, os.O_RDWR if is_file else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of the system, of safetensors and of these `kinds` as a ValueError: a file or folder cannot be written."""
    try:
        for fence in fences:
            fence()
        yield
    except (OSError, SafetensorError, *kinds) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if "System error" in reason:  # all that libsndfile says
            reason = "the system reports an error, such as a full disk"
        advice = "free some space, or choose another place with --out"
        raise ValueError(f"{path}: cannot be written ({reason}); {advice}") from None


def check_folder(folder: Path) -> None:
    """Make a folder for output; ValueError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from None


def check_new_folder(folder: Path) -> None:
    """Raises ValueError for a file, or a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or empty folder, found files; choose another, or empty it")


def check_output(path: Path, beginnings: Iterable[bytes] = (), inputs: Iterable[Path | str | None] = ()) -> None:
    """Raises ValueError if a file written there would replace an input, or one that begins otherwise."""
    if not path.is_file():
        return
    for source in filter(None, inputs):
        if os.path.exists(source) and path.samefile(source):
            raise ValueError(f"{path}: is an input, which would be lost; choose another --out")
    with path.open("rb") as file:
        found = file.read(16)
    if found and beginnings and not any(found.startswith(beginning) for beginning in beginnings):
        raise ValueError(f"{path}: exists, and is a file of another kind; choose another --out, or delete it")


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A name of an existing file or folder for libraries that only take UTF-8, as long as the block runs."""
    # What is not UTF-8 is not printable. Windows and macOS have no such names, and no such folder.
    if str(path).isprintable() or not os.path.exists("/proc/self/fd"):
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def output_name(source: str, ending: str) -> str:
    """The name of a file that is made from one with the name `source`: a long one ends in a checksum."""
    name, most = os.fsencode(source), MAX_NAME_BYTES - len(os.fsencode(ending))
    if len(name) > most:
        name = name[: most - 9].decode(errors="ignore").encode() + b"-" + hashlib.sha256(name).hexdigest()[:8].encode()
    return os.fsdecode(name) + ending


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """Write sha256.json, with the checksum of every file in a folder."""
    sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / SUMS).write_text(json.dumps(sums, indent=1))


def is_whole(folder: Path) -> bool:
    """True if all files of a folder have the checksums that `write_checksums` noted."""
    try:
        sums = json.loads((folder / SUMS).read_text())
        return all(file_sha256(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line of a JSONL file. Names of files that are not UTF-8 keep their bytes."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="surrogateescape")


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if there is none, as after a line that was written half."""
    try:
        row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_jsonl(path: Path, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSONL file without blank lines; ValueError for a line that is none. With
    `skip_damaged` these are left out, and a missing file has no lines."""
    if skip_damaged and not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if (row := parse_line(line)) is not None:
            rows.append(row)
        elif line.strip() and not skip_damaged:
            found = line[:40].decode(errors="replace")
            raise ValueError(f"{path} line {number}: expected a JSON object, found {found}")
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.writelines(map(json_line, rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    with writing(path), path.open("ab", buffering=0) as file:
        file.write(json_line(row))
