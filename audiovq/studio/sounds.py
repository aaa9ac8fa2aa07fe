"""Sound files: recordings that are brought in, and how versions sound and are exported."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from audiovq.api.generator import Generator
from audiovq.api.splice import keep_original
from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.audio_writer import NO_TAGS, AudioWriter, Tags
from audiovq.data.codes import Codes
from audiovq.evaluation.loudness import normalized
from audiovq.sampling.inpainting import CodeMask
from audiovq.studio.projects import Kept, Library, Project, Recording
from audiovq.studio.requests import MB, Export, Limits

CACHE_MB, RECENT = 1000, 2
JUDGED_SECONDS = 60.0  # of a recording
UNLIKE = 1.25  # times the bits a second of the training music
Sound = tuple[Tensor, int]  # float [channels, n], and its sample rate
OnProgress = Callable[[float, str], object]  # the finished share from 0 to 1, and a description


class Sounds:
    """Sounds in a `folder` that is deleted in the end; the ones used last, at most CACHE_MB."""

    def __init__(self, tokenizer: Tokenizer, library: Library, folder: Path):
        self.tokenizer, self.library, self.folder = tokenizer, library, folder
        self._lock = threading.Lock()  # one is decoded at a time
        self._recent: dict[tuple[str, int], Sound] = {}  # waveforms that edits start from

    def version(self, project: Project, number: int, export: Export, tags: Tags = NO_TAGS) -> Path:
        key = f"{project.id} {number}"
        return self._file(key, export, lambda: self._waveform(project, number, export.levels), tags)

    def recording(self, project: Project, recording: Recording) -> Path:
        """The part of a recording that is used, as WAV, which every browser plays."""
        return self._file(f"{project.id} {recording.id}", Export(), lambda: self._original(project, recording))

    def _original(self, project: Project, recording: Recording) -> Sound:
        path = self.library.recording_path(project, recording)
        return audio.read_audio(path, channels=recording.channels, n_samples=recording.n_samples)

    def _waveform(self, project: Project, number: int, n_levels: int | None = None) -> Sound:
        """Float [channels, n] and its rate; of an edited recording in its own rate and channels, unless only
        the first `n_levels` are decoded."""
        if n_levels is not None:
            codes = Codes.load(self.library.codes_path(project, number))
            return self.tokenizer.decode(codes, n_levels), codes.sample_rate
        key = (project.id, number)
        if key not in self._recent:
            version = project.version(number)
            if version.kind == "recording" and version.recording:
                found = self._original(project, project.recording(version.recording))
            else:
                codes = Codes.load(self.library.codes_path(project, number))
                found = self.tokenizer.decode(codes), codes.sample_rate
                if version.kept and version.parent is not None:
                    source, rate = self._waveform(project, version.parent)
                    mask = kept_mask(version.kept, codes)
                    found = keep_original([found[0]], found[1], source, rate, mask, codes.hop_lengths), rate
            self._recent[key] = found
            while len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]
        return self._recent[key]

    def _file(self, key: str, export: Export, waveform: Callable[[], Sound], tags: Tags = NO_TAGS) -> Path:
        digest = hashlib.sha256(f"{key} {export} {tags}".encode()).hexdigest()
        path = self.folder / f"{digest[:32]}.{export.format}"
        with self._lock:
            if path.exists():
                os.utime(path)  # it is in use
            else:
                sound, rate = waveform()
                if export.lufs is not None:
                    sound = normalized(sound, rate, export.lufs)
                with AudioWriter(path, rate, sound.shape[0], tags=tags, bits=int(export.bits)) as file:
                    file.write(sound)
                files = sorted(self.folder.glob("*.*"), key=lambda path: path.stat().st_mtime)
                size = sum(other.stat().st_size for other in files)
                for other in files:
                    if size > CACHE_MB * MB and other != path:
                        size -= other.stat().st_size
                        other.unlink()
        return path


def kept_mask(kept: Kept, codes: Codes) -> CodeMask:
    """A mask that has the given stretches of `kept`."""
    levels = [torch.full_like(level, -1) for level in codes.levels]
    for start, end in kept.stretches:
        for level, hop in zip(levels, codes.hop_lengths, strict=False):
            level[start // hop : -(-end // hop)] = 0
    return CodeMask(codes.n_samples, levels, kept.source_start)


@contextlib.contextmanager
def named_as_uploaded(path: Path, name: str) -> Iterator[None]:
    """Error messages have the name that the user knows instead of a path on this machine."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), name)) from None


def check_reference(path: Path, name: str, limits: Limits) -> None:
    """Raises ValueError for a recording that is too long to be followed."""
    with named_as_uploaded(path, name):
        seconds = audio.audio_info(path).seconds
    if seconds > limits.max_seconds:
        raise ValueError(f"{name}: {seconds:.1f} s; up to {limits.max_seconds:g} s can be followed here")


def read_codes(path: Path, name: str, tokenizer: Tokenizer, limits: Limits) -> Codes:
    """Raises ValueError for a damaged file, or codes of another model."""
    with named_as_uploaded(path, name):
        codes = Codes.load(path)
        if codes.tokenizer_hash != tokenizer.hash:
            raise ValueError(f"{name}: codes of another model; open them in a studio of that model")
        tokenizer.check_codes(codes)
        limits.check_seconds(codes.seconds, slack=1.0)  # what makes a piece longer is rounded up to whole codes
    return codes


def read_recording(
    path: Path, name: str, tokenizer: Tokenizer, limits: Limits, on_progress: OnProgress
) -> tuple[Codes, Recording]:
    """Encode an audio file, whose name ends in the id of the recording; ValueError if it cannot be used."""
    done = 0.0
    with named_as_uploaded(path, name):
        info = audio.audio_info(path)
        seconds = min(limits.max_seconds, info.seconds)

        def advance(block_seconds: float) -> None:
            nonlocal done
            done += block_seconds
            on_progress(min(done / max(seconds, 1e-9), 1), f"encoding: {done:.0f} of {seconds:.0f} s")

        codes = tokenizer.encode_file(path, advance, limits.max_seconds)
    # Decoders count a compressed file's samples as they come, so the header's number is only an estimate.
    n_samples = round(min(done, limits.max_seconds) * info.sample_rate)
    is_cut = n_samples >= round(limits.max_seconds * info.sample_rate) and info.samples > n_samples
    note = f"only its first {limits.max_seconds:g} s are used" if is_cut else ""
    facts = {"id": path.stem[-16:], "name": name, "suffix": path.suffix, "note": note, "n_samples": n_samples}
    facts |= {"seconds": n_samples / info.sample_rate, "sample_rate": info.sample_rate}
    return codes, Recording(**facts, channels=min(info.channels, 2))


def unlikeness(generator: Generator, codes: Codes, training_bits: float | None) -> str | None:
    """A sentence if a piece is much less likely for the model than its training music; else None."""
    if training_bits is None or len(codes.levels) < len(generator.priors):
        return None
    n_samples = min(codes.n_samples, generator.n_samples(JUDGED_SECONDS))
    levels = [level[: -(-n_samples // hop)] for level, hop in zip(codes.levels, codes.hop_lengths, strict=False)]
    [found] = generator.bits_per_second([generator.tokenizer.make_codes(levels, n_samples)])
    if found < UNLIKE * training_bits:
        return None
    bits = f"it needs {found:.0f} bits a second, the training music {training_bits:.0f}"
    problem = "This recording is unlike the music that the model learned from, and what the model adds may not fit it"
    return f"{problem} ({bits})."
