"""A folder of music -> tracks: found, checked, labelled, split; what cannot be used is set aside with its reason."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
from pydantic import Field

from audiovq.config import Config
from audiovq.data import audio
from audiovq.terminal import track as progress

TAGS = ("artist", "album", "genre", "title")
SILENCE = 10 ** (-60 / 20)  # amplitude below which a block is silent: -60 dBFS
CLIP = 0.999


class DataConfig(Config):
    folder: str = ""  # searched recursively; relative to the recipe's file
    manifest: str | None = None  # JSONL, one track a line: {"path": …, labels…}; relative to the folder
    valid_fraction: float = Field(default=0.1, ge=0, lt=1)  # of the tracks, at least one if there are two
    min_seconds: float = Field(default=1.0, gt=0)  # shorter tracks are set aside
    cache_gigabytes: float = Field(default=2.0, ge=0)  # data sets that fit are decoded once and kept in memory
    credits: str | None = (
        None  # file with licences and authors, for the model card; relative to the folder; else CREDITS.*
    )
    workers: int = Field(default=0, ge=0)  # processes that prepare batches; 0 does it in the training process


@dataclass(frozen=True)
class Track:
    path: str  # relative to the data folder
    sha256: str  # of the file
    sample_rate: int
    channels: int
    samples: int  # as decoded, at its own rate
    split: str = "train"
    labels: dict[str, str] = field(default_factory=dict)
    peak: float = 0.0
    silent_fraction: float = 0.0
    clipped_fraction: float = 0.0
    audio_sha256: str = ""  # of the decoded samples: finds copies whose tags or container differ

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Rejected:
    path: str
    reason: str


@dataclass
class Scan:
    """The result of looking at a folder once; saved in the run so that a resumed run sees the same tracks."""

    folder: Path
    tracks: list[Track]
    rejected: list[Rejected]

    def split(self, name: str) -> list[Track]:
        return [track for track in self.tracks if track.split == name]

    def report(self) -> dict[str, Any]:
        """Hours, rates, silence, clipping and duplicates, for people and for report.json."""
        rates: dict[str, int] = {}
        for track in self.tracks:
            rates[str(track.sample_rate)] = rates.get(str(track.sample_rate), 0) + 1
        return {
            "tracks": len(self.tracks),
            "hours": sum(track.seconds for track in self.tracks) / 3600,
            "train_tracks": len(self.split("train")),
            "valid_tracks": len(self.split("valid")),
            "sample_rates": rates,
            "mostly_silent": [t.path for t in self.tracks if t.silent_fraction > 0.5],
            "clipped": [t.path for t in self.tracks if t.clipped_fraction > 1e-3],
            "duplicates": [r.path for r in self.rejected if r.reason.startswith("same audio")],
            "quarantined": len(self.rejected),
        }

    def save(self, folder: Path) -> None:
        """tracks.jsonl, quarantine.jsonl and report.json; tracks.jsonl last, so that its presence means complete."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_lines(folder / "quarantine.jsonl", [asdict(item) for item in self.rejected])
        (folder / "report.json").write_text(json.dumps({"folder": str(self.folder), **self.report()}, indent=2))
        _write_lines(folder / "tracks.jsonl", [asdict(item) for item in self.tracks])

    @staticmethod
    def load(folder: Path) -> Scan:
        source = json.loads((folder / "report.json").read_text())["folder"]
        tracks = [Track(**json.loads(line)) for line in (folder / "tracks.jsonl").read_text().splitlines()]
        rejected = [Rejected(**json.loads(line)) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
        return Scan(Path(source), tracks, rejected)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def find_audio(folder: Path) -> list[Path]:
    """All audio files below a folder, by suffix, in a stable order; hidden ones are left out."""
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder; expected a folder of music (set --data)")
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of music, found a file")
    found = (p for p in folder.rglob("*") if p.suffix.lower() in audio.SUFFIXES and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def scan(folder: Path, config: DataConfig) -> Scan:
    """Decode every file once, in bounded memory and on all cores, and sort it into tracks and quarantine.

    Raises:
        ValueError: no such folder, no audio in it, or nothing in it that can be used.
    """
    folder = folder.resolve()
    paths = find_audio(folder)
    if not paths:
        raise ValueError(f"{folder}: no audio found; expected files ending in {', '.join(sorted(audio.SUFFIXES))}")
    manifest = _read_manifest(folder, config.manifest)
    with ThreadPoolExecutor() as pool:
        results = list(progress(pool.map(lambda p: _look(p, folder, config, manifest), paths), "scan", len(paths)))
    tracks, rejected, seen = [], [], {}
    for result in results:
        if isinstance(result, Track) and result.audio_sha256 in seen:
            result = Rejected(result.path, f"same audio as {seen[result.audio_sha256]}")
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            seen[result.audio_sha256] = result.path
            tracks.append(result)
    if not tracks:
        raise ValueError(
            f"{folder}: none of {len(paths)} files can be used; the first: {rejected[0].path}: {rejected[0].reason}"
        )
    return Scan(folder, _split(tracks, config.valid_fraction), rejected)


def _look(path: Path, folder: Path, config: DataConfig, manifest: dict[str, dict[str, str]]) -> Track | Rejected:
    """One file -> its track, or the reason why not."""
    name = path.relative_to(folder).as_posix()
    try:
        info = audio.audio_info(path)
        samples, peak, silent, clipped, digest = 0, 0.0, 0, 0, hashlib.sha256(f"{info.sample_rate}".encode())
        for block in audio.blocks(path):
            level = np.abs(block).max(axis=1)
            samples += len(block)
            peak = max(peak, float(level.max()))
            silent += int((level < SILENCE).sum())
            clipped += int((level >= CLIP).sum())
            digest.update(block.tobytes())
        if samples < config.min_seconds * info.sample_rate:
            found = samples / info.sample_rate
            return Rejected(name, f"too short: expected at least {config.min_seconds:g} s, found {found:.3f} s")
        if peak < SILENCE:
            return Rejected(name, "silent: never above -60 dBFS")
        labels = read_tags(path) | manifest.get(name, {}) | _track_json(path) | _text_file(path)
        split = labels.pop("split", "")
        if split not in {"", "train", "valid"}:
            return Rejected(name, f"split: expected train or valid, found {split!r}")
        return Track(
            name, audio.file_sha256(path), info.sample_rate, info.channels, samples, split, labels, peak,
            silent / samples, clipped / samples, digest.hexdigest(),
        )  # fmt: skip
    except (ValueError, OSError) as error:
        return Rejected(name, str(error).removeprefix(f"{path}: "))


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


def _track_json(path: Path) -> dict[str, str]:
    """Labels from `track.json` in the same folder (for all its tracks), then from `<name>.json` (for this one)."""
    labels: dict[str, str] = {}
    for candidate in (path.with_name("track.json"), path.with_suffix(".json")):
        if candidate.is_file():
            try:
                content = json.loads(candidate.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{candidate.name}: not valid JSON ({error})") from None
            labels |= _as_labels(content, candidate.name)
    return labels


def _text_file(path: Path) -> dict[str, str]:
    """Caption or lyrics in `<name>.txt`, as the label `text`."""
    candidate = path.with_suffix(".txt")
    if not candidate.is_file():
        return {}
    try:
        text = candidate.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{candidate.name}: expected text in UTF-8") from None
    return {"text": text} if text else {}


def _as_labels(content: Any, source: str) -> dict[str, str]:
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected an object of labels, found {type(content).__name__}")
    return {str(k): str(v) for k, v in content.items() if isinstance(v, str | int | float) and str(v)}


def _read_manifest(folder: Path, name: str | None) -> dict[str, dict[str, str]]:
    if name is None:
        return {}
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest; expected JSONL with a `path` a line")
    rows: dict[str, dict[str, str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except ValueError:
                raise ValueError(f"{path} line {number}: not valid JSON") from None
            labels = _as_labels(content, f"{path} line {number}")
            if "path" not in labels:
                raise ValueError(f"{path} line {number}: expected a key `path`, found {', '.join(labels) or 'none'}")
            rows[labels.pop("path")] = labels
    return rows


def _split(tracks: list[Track], valid_fraction: float) -> list[Track]:
    """Give each track without a split of its own one: those whose path hashes lowest are held out.

    By path alone, so that it never depends on order, machine or run.
    """
    free = sorted((t for t in tracks if not t.split), key=lambda t: hashlib.sha256(t.path.encode()).hexdigest())
    wanted = math.ceil(valid_fraction * len(tracks)) - sum(t.split == "valid" for t in tracks)
    held_out = {t.path for t in free[: max(0, min(wanted, len(free) - 1))]}
    return [Track(**{**asdict(t), "split": t.split or ("valid" if t.path in held_out else "train")}) for t in tracks]
