"""Music that is no folder: it is copied into a folder of the user's cache once, and then read as any other folder. A
source is a class with `takes`, for its places; `len`, of files; and `copy`, which adds what is missing and yields
after each file. Add one to SOURCES, and `--data` and `data.folder` know it."""

import contextlib
import hashlib
import importlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pooch
from filelock import FileLock

from audiovq.data import audio, storage
from audiovq.data.tracks import check_relative
from audiovq.utils.environment import errors_as, require
from audiovq.utils.files import atomic_file, atomic_folder, write_text
from audiovq.utils.progress import say, say_once, track

WANTED = {*audio.SUFFIXES, ".json", ".jsonl", ".txt", ".md", ".mid", ".midi", ""}  # tracks, labels, notes, credits
TARS = (".tar", ".tar.gz", ".tgz")
HELD_OUT = ("valid", "validation", "dev", "test")  # names of splits


class Files:
    """Files below a URL that fsspec knows. Tar files, also those on this machine, are unpacked: `key.flac` and
    `key.json`, as in WebDataset, are a track and its labels. Names may have * and {000..009}."""

    def __init__(self, place: str):
        self.base, self.files = storage.listing(place)
        is_web = self.base.startswith("http")
        self.local = {name: unquote(name.partition("?")[0]) if is_web else name for name in self.files}

    @staticmethod
    def takes(place: str) -> bool:
        return storage.is_url(place) or (place.endswith(TARS) and not os.path.isdir(place))

    def __len__(self) -> int:
        return len(self.files)

    def copy(self, folder: Path) -> Iterator[None]:
        for name, local in self.local.items():
            check_relative(local)
            target = folder / local
            if tar := next((suffix for suffix in TARS if local.endswith(suffix)), ""):
                self._unpack(name, folder / local.removesuffix(tar))
            elif _is_wanted(local) and not target.exists():
                storage.download(self.base, name, target, self.files[name])
            yield

    def _unpack(self, name: str, target: Path) -> None:
        if target.exists():
            return
        copy = target.with_name(f".{target.name}.download")
        storage.download(self.base, name, copy, self.files[name])
        failure = f"{self.base}/{name}: not a tar file, or damaged"
        with contextlib.ExitStack() as stack, errors_as(failure, tarfile.TarError, EOFError, zlib.error):
            stack.callback(copy.unlink, missing_ok=True)
            with tarfile.open(copy) as tar, atomic_folder(target) as folder:
                for member in tar:
                    if member.isfile() and _is_wanted(member.name):
                        check_relative(member.name)
                        tar.extract(member, folder, filter="data")


class Rows:
    """Rows of the library datasets, `datasets://owner/name` or `datasets:///folder`: a track has the `Audio` column of
    a row, and the other columns as labels. Options are as in `datasets://owner/name?name=…&split=…&column=…`."""

    def __init__(self, place: str):
        require("datasets://", "datasets", install="pip install 'audiovq[datasets]'")
        library, url = importlib.import_module("datasets"), urlsplit(place)
        name, options = (url.netloc + url.path).rstrip("/"), dict(parse_qsl(url.query))
        if unknown := options.keys() - {"name", "split", "column", "revision"}:
            raise ValueError(f"{place}: expected the options name, split, column or revision, found {min(unknown)}")
        is_saved = any(os.path.isfile(f"{name}/{file}") for file in ("dataset_dict.json", "state.json"))
        chosen = {key: options[key] for key in ("name", "revision") if key in options}
        advice = "; expected datasets://owner/name or datasets:///folder"
        with errors_as(f"{place}: cannot be opened", advice=advice):
            found = library.load_from_disk(name) if is_saved else library.load_dataset(name, **chosen)
        splits: dict[str, Any] = found if isinstance(found, dict) else {"train": found}
        if (only := options.get("split")) and only not in splits:
            raise ValueError(f"{place}: expected split {', '.join(splits)}, found {only}")
        self.splits = {name: rows for name, rows in splits.items() if only in (None, name)}
        for name, rows in self.splits.items():
            columns = [column for column, kind in rows.features.items() if isinstance(kind, library.Audio)]
            self.column = options.get("column") or (columns[0] if len(columns) == 1 else "")
            if self.column not in columns:
                asked = options.get("column") or f"{len(columns)} of them, choose with ?column="
                raise ValueError(f"{place}: expected one Audio column among {', '.join(rows.features)}, found {asked}")
            rows = rows.remove_columns([column for column in columns if column != self.column])
            self.splits[name] = rows.cast_column(self.column, library.Audio(decode=False))

    @staticmethod
    def takes(place: str) -> bool:
        return place.startswith("datasets://")

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def copy(self, folder: Path) -> Iterator[None]:
        for split, rows in self.splits.items():
            names = {name: kind.int2str for name, kind in rows.features.items() if hasattr(kind, "int2str")}
            (folder / split).mkdir(parents=True, exist_ok=True)
            for i, row in enumerate(rows):
                # A row without audio becomes an empty file, which the scan sets aside.
                sound, part = row.pop(self.column) or {"bytes": b""}, row.pop("split", None) or split
                path = PurePosixPath(str(sound.get("path") or "track"))
                suffix = "" if path.suffix.lower() in audio.SUFFIXES else ".wav"  # any: its content says what it is
                target = folder / split / f"{i:07d}-{path.name}{suffix}"
                labels = {name: names[name](x) if name in names and x is not None else x for name, x in row.items()}
                if len(self.splits) > 1 or part != split:  # else tracks are held out as of a folder
                    labels["split"] = "valid" if part in HELD_OUT else "train"
                if not target.exists():
                    content = Path(path).read_bytes() if sound["bytes"] is None else sound["bytes"]
                    write_text(target.with_suffix(".json"), json.dumps(labels, default=lambda value: None))
                    with atomic_file(target) as temporary:
                        temporary.write_bytes(content)
                yield


SOURCES = (Rows, Files)


def local_music(place: str) -> Path:
    """The folder of the music at a place: the folder itself, or the copy of a source, which is made first if it is not
    there. An interrupted copy goes on. Raises ValueError for a source that cannot be read."""
    kind = next((source for source in SOURCES if source.takes(place)), None)
    if kind is None:
        return Path(place)
    folder = Path(pooch.os_cache("audiovq")) / "music" / hashlib.sha256(place.encode()).hexdigest()[:16]
    done = folder / ".complete"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not done.is_file():
            source = kind(place)
            say(f"data: copies {place} to {folder}")
            for _ in track(source.copy(folder), "copy", len(source)):
                pass
            write_text(done, place)
    say_once(f"data: the copy of {place} is in {folder}; delete that folder to copy it again")
    return folder


def _is_wanted(name: str) -> bool:
    """Whether a file is music or belongs to it, and is not hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.suffix.lower() in WANTED and not hidden
