"""Sound files of versions, recordings and sketches, and their export. They are made at first use and kept a
while."""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import soundfile
import torch
from torch import Tensor

from audiovq.api.splice import keep_original
from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.audio_writer import write_audio
from audiovq.data.codes import Codes
from audiovq.data.resampling import resample
from audiovq.evaluation.loudness import headroom, loudness
from audiovq.sampling.inpainting import CodeMask
from audiovq.studio.limits import MEGABYTE
from audiovq.studio.projects import Kept, Library, Project, Recording
from audiovq.utils.files import atomic_file

CACHE_MB, RECENT = 1000, 2
Format = Literal["wav", "flac", "opus", "mp3"]
LIBSNDFILE = {"wav": "WAV", "flac": "FLAC", "opus": "OGG", "mp3": "MP3"}
RATES = {"opus": [8000, 12000, 16000, 24000, 48000], "mp3": [16000, 22050, 24000, 32000, 44100, 48000]}


@dataclass(frozen=True)
class Export:
    """How a sound is written."""

    format: Format = "wav"
    bits: Literal[16, 24] = 16  # of WAV and FLAC
    lufs: float | None = None  # the loudness it gets, as far as peaks stay below -1 dBFS; None leaves it as it is
    tags: Mapping[str, str] = field(default_factory=dict)  # of soundfile: title, comment, software, copyright


class Sounds:
    """Sounds in a `folder` that is deleted in the end; the ones used last, at most CACHE_MB."""

    def __init__(self, tokenizer: Tokenizer, library: Library, folder: Path):
        self.tokenizer, self.library, self.folder = tokenizer, library, folder
        self._lock = threading.Lock()  # one is decoded at a time
        self._recent: dict[tuple[str, int], tuple[Tensor, int]] = {}  # waveforms that edits start from

    def version(self, project: Project, number: int, n_levels: int | None, export: Export) -> Path:
        """A version as it sounds; with `n_levels`, its first levels decoded."""
        with self.library.lock:
            project.version(number)

        def waveform() -> tuple[Tensor, int]:
            if n_levels is None:
                return self._waveform(project, number)
            codes = Codes.load(self.library.codes_path(project, number))
            return self.tokenizer.decode(codes, n_levels), self.tokenizer.sample_rate

        return self._file(f"{project.id} {number} {n_levels}", export, waveform)

    def sketch(self, job: str, codes: Codes, take: int) -> Path:
        """Codes that are not a version yet."""
        key = f"{job} {len(codes.levels)} {take}"
        return self._file(key, Export(), lambda: (self.tokenizer.decode(codes), self.tokenizer.sample_rate))

    def recording(self, project: Project, recording: Recording) -> Path:
        """The part of a recording that is used, as WAV, which every browser plays."""
        return self._file(f"{project.id} {recording.id}", Export(), lambda: self._original(project, recording))

    def _original(self, project: Project, recording: Recording) -> tuple[Tensor, int]:
        path = self.library.recording_path(project, recording)
        return audio.read_audio(path, channels=recording.channels, n_samples=recording.n_samples)

    def _waveform(self, project: Project, number: int) -> tuple[Tensor, int]:
        """Float [channels, n] and its rate; of an edited recording in the recording's own rate and
        channels."""
        key = (project.id, number)
        if key not in self._recent:
            version = project.version(number)
            if version.kind == "recording" and version.recording:
                found = self._original(project, project.recording(version.recording))
            else:
                codes, rate = Codes.load(self.library.codes_path(project, number)), self.tokenizer.sample_rate
                if version.kept and version.parent is not None:
                    found = self._edited(codes, version.kept, *self._waveform(project, version.parent))
                else:
                    found = self.tokenizer.decode(codes), rate
            self._recent[key] = found
            while len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]
        return self._recent[key]

    def _edited(self, codes: Codes, kept: Kept, source: Tensor, rate: int) -> tuple[Tensor, int]:
        mask = kept_mask(kept, codes)
        decoded = self.tokenizer.decode(codes)
        return keep_original([decoded], codes.sample_rate, source, rate, mask, codes.hop_lengths), rate

    def _file(self, key: str, export: Export, waveform: Callable[[], tuple[Tensor, int]]) -> Path:
        digest = hashlib.sha256(f"{key} {export}".encode()).hexdigest()
        path = self.folder / f"{digest[:32]}.{export.format}"
        with self._lock:
            if path.exists():
                os.utime(path)  # it is in use
            else:
                write_sound(path, *waveform(), export)
                self._evict(path)
        return path

    def _evict(self, newest: Path) -> None:
        """Delete the files that were not used for longest."""
        files = sorted(self.folder.glob("*.*"), key=lambda path: path.stat().st_mtime)
        size = sum(path.stat().st_size for path in files)
        for path in files:
            if size > CACHE_MB * MEGABYTE and path != newest:
                size -= path.stat().st_size
                path.unlink()


def kept_mask(kept: Kept, codes: Codes) -> CodeMask:
    """A mask that has the given stretches of `kept`."""
    levels = [torch.full((n,), -1) for n in codes.lengths(len(codes.levels))]
    for start, end in kept.stretches:
        for level, hop in zip(levels, codes.hop_lengths, strict=False):
            level[start // hop : -(-end // hop)] = 0
    return CodeMask(codes.n_samples, levels, kept.source_start)


def write_sound(path: Path, waveform: Tensor, rate: int, export: Export) -> None:
    """Write float [channels, n] to a file in the format of `export`, with its tags.

    Opus and MP3 know some sample rates only; others become the next higher one that they know.
    """
    if export.lufs is not None:
        found = loudness(waveform, rate)
        if found > -torch.inf:  # silence stays
            waveform = waveform * 10 ** (min(export.lufs - found, headroom(waveform)) / 20)
    known = RATES.get(export.format, [rate])
    if rate not in known:
        new_rate = next((higher for higher in known if higher > rate), known[-1])
        waveform, rate = resample(waveform, rate, new_rate), new_rate
    if export.format in ("wav", "flac") and export.bits == 16 and not export.tags:
        write_audio(path, waveform, rate)
        return
    subtype = {"opus": "OPUS", "mp3": "MPEG_LAYER_III"}.get(export.format, f"PCM_{export.bits}")
    frames = waveform.clamp(-1, 1).mul(32767).round().to(torch.int16) if subtype == "PCM_16" else waveform.clamp(-1, 1)
    with (
        atomic_file(path, flush=False) as temporary,
        soundfile.SoundFile(temporary, "w", rate, waveform.shape[0], subtype, format=LIBSNDFILE[export.format]) as file,
    ):
        for name, text in export.tags.items():
            setattr(file, name, "".join(c for c in text if c.isprintable()) or " ")
        file.write(frames.T.numpy())
