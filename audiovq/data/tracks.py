"""A folder of music -> tracks that are checked, labelled and split, and a list of rejected files."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import posixpath
import shutil
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from audiovq.data import audio
from audiovq.data.data_config import DataConfig
from audiovq.data.music import SPLIT, SPLITS, MusicTable, Rejected, Scan, Track, table_of
from audiovq.data.scan_cache import SILENCE, ScanCache, scan_file
from audiovq.distributed import collectives
from audiovq.utils import signals
from audiovq.utils.environment import cpu_count, errors_as
from audiovq.utils.files import file_sha256, json_line, parse_line, read_jsonl, write_jsonl
from audiovq.utils.progress import say, say_once, track as progress

LABEL_BYTES = 1 << 20  # of a file of labels, and of a line of a manifest
Result = Track | Rejected


def check_relative(path: str) -> None:
    """Raises ValueError for a path that leads out of its folder, on any system."""
    parts = path.replace("\\", "/").split("/")
    has_drive = parts[0][1:2] == ":" and (len(parts[0]) == 2 or os.name == "nt")  # elsewhere `1: Intro.flac` is a name
    if not parts[0] or has_drive or ".." in parts:
        raise ValueError(f"path: expected one within the music folder, found {path!r:.80}")


def check_music_folder(folder: Path) -> None:
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder; expected a folder of music (set --data)")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of music, found a file")


def find_audio(
    folder: Path, unreadable: list[Rejected] | None = None, suffixes: Collection[str] = audio.SUFFIXES
) -> list[Path]:
    """All audio files below a folder, by suffix, in a stable order; without hidden ones and samples of runs.
    Linked folders belong to it, each folder once. Unreadable folders are added to `unreadable`, or printed."""
    check_music_folder(folder)
    left_out, failures = list[Rejected](), list[OSError]()
    found, seen, tops = [], set[str](), [str(folder)]
    while tops:  # links come after all folders
        for place, folders, names in os.walk(tops.pop(0), onerror=failures.append):
            real = os.path.realpath(place)
            is_new = real not in seen
            seen.add(real)
            folders[:] = sorted(name for name in folders if is_new and not name.startswith("."))
            if "recipe.yaml" in names and "samples" in folders:
                folders.remove("samples")
                left_out.append(Rejected(os.path.relpath(f"{place}/samples", folder), "samples of a run"))
            tops += [f"{place}/{name}" for name in folders if os.path.islink(f"{place}/{name}")]
            paths = [Path(place, name) for name in names if is_new and not name.startswith(".")]
            found += [path for path in paths if path.suffix.lower() in suffixes]
    for error in failures:
        left_out.append(Rejected(os.path.relpath(error.filename, folder), f"cannot be read ({error.strerror})"))
    if unreadable is not None:
        unreadable += left_out
    else:
        for item in left_out:
            say(f"left out: {folder / item.path}: {item.reason}")
    # Links to nothing, and files in folders that cannot be entered, are named later.
    is_file = [path for path in found if os.path.isfile(path) or not os.path.exists(path)]
    return sorted(is_file, key=lambda path: path.parts)


def credits_files(music: Path) -> list[Path]:
    """The texts with credits or licences in a folder of music, credits first, and the credits one folder up."""
    names, files = ("credits", "attribution", "licence", "license", "copying"), sorted(music.iterdir())
    found = [path for name in names for path in files if path.stem.lower().startswith(name)]
    found += [path for path in sorted(music.parent.iterdir()) if path.stem.lower().startswith("credits")]
    return [path for path in found if path.is_file() and path.suffix.lower() in {"", ".md", ".txt"}]


def scan(folder: Path, config: DataConfig, cache_file: Path | None = None) -> Scan:
    """Decode every file once, in bounded memory and on all cores, and sort out those that cannot be used;
    ValueError if none is left. A `cache_file` keeps the results for later scans. All ranks call it. With a file
    each in one folder, rank 0 lists the music, every rank looks at its share of it, and rank 0 gets the tracks."""
    folder = Path(os.path.realpath(folder))  # unlike `resolve`, no error for a link to itself
    rank, n_ranks = (collectives.rank(), collectives.world_size()) if cache_file else (0, 1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        place = cache_file.parent / ".scan" if cache_file and n_ranks > 1 else Path(temporary)  # all ranks see it
        if rank == 0:
            place.mkdir(parents=True, exist_ok=True)
            write_jsonl(place / "files.jsonl", _list_files(folder, config))
        collectives.barrier()
        cache = ScanCache(cache_file or Path(temporary) / "scan_cache.jsonl")
        check = partial(_check_file, folder=folder, config=config, cache=cache)
        with (place / "files.jsonl").open("rb") as lines, (place / f"{rank}.jsonl").open("wb") as share:
            n_files = sum(1 for _ in lines)
            lines.seek(0)
            mine = itertools.islice(lines, rank, None, n_ranks)
            share.writelines(json_line(vars(result)) for result in _in_threads(check, mine, -(-n_files // n_ranks)))
        collectives.barrier()
        rejected: list[Rejected] = []
        if rank > 0:
            return Scan(folder, table_of([]), rejected)
        found = table_of(_joined([place / f"{i}.jsonl" for i in range(n_ranks)], rejected), place / "tracks.jsonl")
        if not found:
            is_file = ["labels" in row for row in read_jsonl(place / "files.jsonl")]
            first = ": ".join(vars(rejected[is_file.index(True)]).values())
            raise ValueError(f"{folder}: none of {sum(is_file)} files can be used; the first: {first}")
        shutil.rmtree(place)
    return Scan(folder, _split(found, config.valid_fraction), rejected)


def _list_files(folder: Path, config: DataConfig) -> Iterator[dict[str, str]]:
    """What is left out, with the reason, and then each file, with its labels in the manifest."""
    rejected: list[Rejected] = []
    names = [path.relative_to(folder).as_posix() for path in find_audio(folder, rejected)]
    if not names:
        suffixes = ", ".join(sorted(audio.SUFFIXES))
        raise ValueError(f"{folder}: no audio found; expected files ending in {suffixes}")
    manifest = _read_manifest(folder, config.manifest, names, rejected)
    yield from map(vars, rejected)
    for name in names:  # labels may have characters that files cannot, which are found later
        yield {"path": name, "labels": json.dumps(manifest.get(name, {}))}


def _joined(shares: Sequence[Path], rejected: list[Rejected]) -> Iterator[Track]:
    """The tracks of all ranks, in the order of the files. What is no track, or a copy of one, is added to `rejected`."""
    names_of_audio: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in shares]
        for line in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*files))):
            facts = parse_line(line) or {}
            if "reason" in facts:
                rejected.append(Rejected(**facts))
            elif (first := names_of_audio.setdefault(facts["audio_sha256"], facts["path"])) != facts["path"]:
                rejected.append(Rejected(facts["path"], f"same audio as {first}"))
            else:
                yield Track(**facts)


def _in_threads(check: Callable[[bytes], Result], lines: Iterator[bytes], n: int) -> Iterator[Result]:
    """The results in order. Threads run in parallel, because decoding, hashing and arithmetic release the interpreter's
    lock; as many as this process has cores, which may be fewer than the machine has."""
    pool = ThreadPoolExecutor(max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    blocks = iter(lambda: list(itertools.islice(lines, 1000)), [])  # few of millions wait at a time
    results = itertools.chain.from_iterable(pool.map(check, block) for block in blocks)
    try:
        for result in progress(results, "scan", n):
            signals.poll()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _rejected(name: str, path: Path, error: Exception) -> Rejected:
    return Rejected(name, str(getattr(error, "strerror", None) or error).removeprefix(f"{path}: "))


def _check_file(line: bytes, folder: Path, config: DataConfig, cache: ScanCache) -> Result:
    """The track of a line of `_list_files`, from the cache or else into it; or the reason against it."""
    row = parse_line(line) or {}
    if "reason" in row:
        return Rejected(**row)
    name, path = row["path"], folder / row["path"]
    try:
        # A file of the same size and time of change is taken to be unchanged.
        stamp = file_stamp(path)
        known = cache.find(name, stamp)
        found = known or scan_file(path)
        if not known and file_stamp(path) != stamp:
            raise ValueError("changed while it was read; start again when it is complete")
    except (ValueError, OSError) as error:
        return _rejected(name, path, error)
    if not known:
        cache.add(name, stamp, found)
    try:
        seconds = found.samples / found.sample_rate
        if seconds < config.min_seconds:
            raise ValueError(f"too short: expected at least {config.min_seconds:g} s, found {seconds:.3f} s")
        if found.peak < SILENCE:
            raise ValueError("silent: never above -60 dBFS")
        labels = found.tags | json.loads(row["labels"]) | _labels_of_files(path)
        split = labels.pop("split", "")
        for label, text in labels.items():  # JSON can hold half of a surrogate pair, and files cannot
            if any("\ud800" <= character <= "\udfff" for character in f"{label}{text}"):
                raise ValueError(f"label {label!a}: expected Unicode text, found {text!a:.80}")
        if split not in {"", "train", "valid"}:
            raise ValueError(f"split: expected train or valid, found {split!r:.40}")
    except (ValueError, OSError) as error:
        return _rejected(name, path, error)
    facts = found.sha256, found.sample_rate, found.channels, found.samples, split, labels
    levels = found.peak, found.silent / found.samples, found.clipped / found.samples
    return Track(name, *facts, *levels, found.audio_sha256, stamp)


def file_stamp(path: Path) -> list[int]:
    """Size and time of change: a file with the same ones is taken to be unchanged."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def check_unchanged(path: Path, stamp: Sequence[int], sha256: str) -> None:
    """Raises ValueError if a file is another one than was scanned. Runs of version 0.1 have no stamps."""
    if len(stamp) and file_stamp(path) != list(stamp) and file_sha256(path) != sha256:
        raise ValueError(f"{path}: another recording than when the run began; put that back, or choose another --out")


def _labels_of_files(path: Path) -> dict[str, str]:
    """Labels from `track.json`, for all tracks of the folder, `<name>.json`, and `<name>.txt` (the label `text`)."""
    labels: dict[str, str] = {}
    for candidate in (path.with_name("track.json"), path.with_suffix(".json"), path.with_suffix(".txt")):
        if os.path.isfile(candidate):  # False for a name that is too long
            if (size := candidate.stat().st_size) > LABEL_BYTES:
                raise ValueError(f"{candidate.name}: expected labels of at most 1 MB, found {size} bytes")
            is_json = candidate.suffix == ".json"
            failure = f"{candidate.name}: not valid {'JSON' if is_json else 'text in UTF-8'}"
            with errors_as(failure, ValueError, RecursionError):
                text = candidate.read_text(encoding="utf-8-sig").strip()
                content = json.loads(text) if is_json else {"text": text}
            labels |= _as_labels(content, candidate.name)
    return labels


def _as_labels(content: Any, source: str) -> dict[str, str]:
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected an object of labels, found {type(content).__name__}")
    labels = {}
    for name, value in content.items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, str | int | float) for v in values):
            labels[str(name)] = ", ".join(map(str, values))
        elif value is not None:
            expected = "expected text, a number or a list of them, found nested values; it is left out"
            say_once(f"label {str(name)!a:.80}: {expected}")
    return {name: value for name, value in labels.items() if value}


def _read_manifest(
    folder: Path, manifest: str | None, names: Sequence[str], rejected: list[Rejected]
) -> dict[str, dict[str, str]]:
    """Labels by the path of the track. Lines that cannot be used are added to `rejected`."""
    if manifest is None:
        return {}
    path = folder / manifest
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest; expected JSONL with a `path` in each line")
    similar = defaultdict[str, list[str]](list)
    for name in names:
        similar[_similar(name, folder)].append(name)
    known, rows = set(names), dict[str, dict[str, str]]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            labels = _as_labels((len(line) <= LABEL_BYTES and parse_line(line)) or {}, manifest)
            written = labels.pop("path", "")
            matches = [written] if written in known else similar[_similar(written, folder)]
            if len(matches) == 1:
                rows[matches[0]] = labels
            elif line.strip():
                found = f"the path of no track, or of several: {written!a}" if written else ascii(line[:40])[1:]
                reason = f"expected an object with the `path` of a track in at most 1 MB, found {found:.200}"
                rejected.append(Rejected(f"{manifest} line {number}", reason))
    return rows


def _similar(path: str, folder: Path) -> str:
    """The same for all ways to write a path: absolute, with ./ or backslashes, in other Unicode forms or case."""
    path = path.replace("\\", "/")
    if path.startswith("/"):
        path = os.path.relpath(os.path.realpath(path), folder)
    return unicodedata.normalize("NFC", posixpath.normpath(path)).casefold()


def _split(tracks: MusicTable, valid_fraction: float) -> MusicTable:
    """Choose a split for each track that has none: the tracks whose path has the lowest hash are held out. It
    depends on the paths alone, and not on their order, the machine or the run. Files of one name, such as `x.flac` and
    `x.mp3`, are on the same side, because they are likely one recording."""
    pairs = ((facts["path"], os.path.splitext(facts["path"])[0]) for facts in tracks.facts())
    digests = [[hashlib.sha256(os.fsencode(name)).digest() for name in pair] for pair in pairs]
    of_paths, of_names = np.array(digests, dtype="S32").T
    _, first, group = np.unique(of_names, return_index=True, return_inverse=True)
    hashes = of_paths[first[group]]  # of files of one name, that of the first
    order = np.argsort(hashes, kind="stable")
    free, splits = order[tracks.column(SPLIT)[order] == SPLITS.index("")], tracks.columns[:, SPLIT]
    n = max(0, min(math.ceil(valid_fraction * len(tracks)) - len(tracks.of("valid")), len(free) - 1))
    while 0 < n < len(free) and hashes[free[n]] == hashes[free[n - 1]]:
        n += 1 if n < len(free) - 1 else -1
    splits[free] = SPLITS.index("train")
    splits[free[:n]] = SPLITS.index("valid")
    return tracks
