"""Audio files ↔ codes files: one, or all below a folder. What is finished is not done again; what is broken is named."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audiovq import api
from audiovq.data import audio
from audiovq.data.codes import Codes, file_kbps, read_header
from audiovq.data.tracks import find_audio
from audiovq.utils.files import check_folder, file_sha256
from audiovq.utils.progress import ProgressBar, say

Job = tuple[Path, Path]  # source and target
Progress = Callable[[float], None]  # is told seconds of audio
Facts = dict[str, Any]  # what was done; `summary` says it in one line


class Encoding:
    """Audio files to codes files."""

    title, suffix = "encode", ".codes"

    def __init__(self, tokenizer: api.Tokenizer, compress: bool):
        self.tokenizer, self.compress = tokenizer, compress

    def seconds(self, source: Path) -> float:
        return audio.audio_info(source).seconds

    def is_done(self, source: Path, target: Path) -> bool:
        """True if the target holds codes of just this file by this tokenizer, coded as asked."""
        if not target.exists():
            return False
        header = read_header(target)
        return (
            header.get("tokenizer_hash") == self.tokenizer.hash
            and ("coding" in header) == self.compress
            and header.get("source_sha256") == file_sha256(source)
        )

    def convert(self, source: Path, target: Path, progress: Progress) -> Facts:
        codes = self.tokenizer.encode_file(source, progress)
        codes.save(target, self.compress)
        alone, whole = file_kbps(target, codes.seconds)
        raw, coding = codes.bits_per_second / 1000, "compressed" if self.compress else "stored"
        return {
            "file": str(target), "source": str(source), "seconds": codes.seconds, "kbps_raw": raw, "coding": coding,
            "kbps_stored": alone, "kbps_stored_with_header": whole,
            "summary": f"{target}: {codes.seconds:.3f} s, {raw:.2f} kbps raw, {coding} {alone:.2f} kbps, "
            f"{whole:.2f} with the header",
        }  # fmt: skip


class Decoding:
    """Codes files to audio files."""

    title = "decode"

    def __init__(self, tokenizer: api.Tokenizer, n_levels: int | None, suffix: str = ".wav"):
        self.tokenizer, self.n_levels, self.suffix = tokenizer, n_levels, suffix

    def seconds(self, source: Path) -> float:
        header = read_header(source)
        return header["n_samples"] / header["sample_rate"]

    def is_done(self, source: Path, target: Path) -> bool:
        """True if the target is whole and says that it was decoded from just these codes; they name the tokenizer.

        Raises:
            ValueError: the target is somebody else's music.
        """
        if not target.exists():
            return False
        comment = audio.audio_comment(target)
        if not comment.startswith("audiovq "):
            raise ValueError(f"{target}: exists, and was not decoded by audiovq; choose another --out")
        return comment == self._comment(source) and audio.has_samples(target, read_header(source)["n_samples"])

    def _comment(self, source: Path) -> str:
        return f"audiovq codes={file_sha256(source)} levels={self.n_levels or 'all'}"

    def convert(self, source: Path, target: Path, progress: Progress) -> Facts:
        codes = Codes.load(source)
        self.tokenizer.decode_file(codes, target, self.n_levels, self._comment(source), progress)
        return {
            "file": str(target), "source": str(source), "seconds": codes.seconds, "samples": codes.n_samples,
            "summary": f"{target}: {codes.n_samples} samples, {codes.seconds:.3f} s",
        }  # fmt: skip


class Meter:
    """A progress bar in seconds of audio, with the speed."""

    def __init__(self, bar: ProgressBar):
        self.bar, self.done, self.worked, self.began = bar, 0.0, 0.0, time.monotonic()

    def add(self, seconds: float) -> None:
        self.worked += seconds
        self.reach(self.done + seconds)

    def reach(self, done: float) -> None:
        speed = self.worked / max(time.monotonic() - self.began, 1e-9)
        self.done = done
        self.bar.advance(max(0, int(done) - self.bar.done), f"{speed:.0f} audio-seconds a second")


def convert_file(kind: Encoding | Decoding, source: Path, target: Path) -> Facts:
    """Raises ValueError if the source or the place of the target is no good."""
    with ProgressBar(f"{kind.title}, s", int(kind.seconds(source))) as bar:
        return kind.convert(source, target, Meter(bar).add)


def convert_folder(kind: Encoding | Decoding, folder: Path, out: Path) -> Facts:
    """Convert every file below a folder into the same place below `out`; `set_aside` says why which could not be.

    Raises:
        ValueError: nothing there to convert.
    """
    sources = find_audio(folder) if isinstance(kind, Encoding) else find_codes(folder)
    if not sources:
        raise ValueError(f"{folder}: nothing there to {kind.title}")
    check_folder(out)
    lengths = [_seconds(kind, source) for source in sources]
    n_done, files, set_aside = 0, [], []
    with ProgressBar(f"{kind.title}, s", int(sum(lengths))) as bar:
        meter, end = Meter(bar), 0.0
        for (source, target), length in zip(mirrored(sources, folder, out, kind.suffix), lengths, strict=True):
            end += length
            try:
                if kind.is_done(source, target):
                    n_done += 1
                else:
                    files.append(kind.convert(source, target, meter.add))
            except (ValueError, OSError) as error:
                set_aside.append(" ".join(str(error).split()))
                say(f"set aside: {set_aside[-1]}")
            meter.reach(end)
    summary = f"{out}: {len(files)} files {kind.title}d, {n_done} were done before"
    if set_aside:
        summary += f", {len(set_aside)} of {len(sources)} could not be {kind.title}d (each is named above)"
    return {"folder": str(out), "done_before": n_done, "files": files, "set_aside": set_aside, "summary": summary}


def _seconds(kind: Encoding | Decoding, source: Path) -> float:
    try:
        return kind.seconds(source)
    except (ValueError, OSError):  # said when its turn comes
        return 0.0


def find_codes(folder: Path) -> list[Path]:
    """All codes files below a folder, in a stable order; hidden ones are left out."""
    found = (path for path in folder.rglob("*.codes") if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def mirrored(sources: Sequence[Path], folder: Path, out: Path, suffix: str) -> list[Job]:
    """Each source with its place below `out`. Files that differ in their suffix alone keep it: a.wav.codes."""
    stems = Counter(source.with_suffix("") for source in sources)
    jobs = []
    for source in sources:
        name = source.stem if stems[source.with_suffix("")] == 1 else source.name
        jobs.append((source, out / source.relative_to(folder).parent / f"{name}{suffix}"))
    return jobs
