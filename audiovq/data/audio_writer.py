"""Writes audio piece by piece: a sound file that appears when it is whole, or WAV in a pipe."""

import contextlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from einops import rearrange
from mutagen import id3
from torch import Tensor

from audiovq.data.resampling import Resampler
from audiovq.utils.files import atomic_file, check_folder, check_output, utf8_path, writing

Target = Path | str | BinaryIO
WAV_BYTES = (1 << 32) - 4096  # the sizes in a WAV file are 32-bit numbers
PIPE_BYTES = (1 << 32) - 1 - 36  # the largest size in a header; players take it for "until the end"
Tags = Mapping[str, str]  # title, comment, software and others of soundfile
NO_TAGS: Tags = {}
ID3_FRAMES = {"title": id3.TIT2, "comment": id3.COMM, "software": id3.TSSE}  # type: ignore[attr-defined]
# The name of each format and subtype in libsndfile; a PCM subtype has the bits.
FORMATS = {".wav": ("WAV", ""), ".flac": ("FLAC", ""), ".opus": ("OGG", "OPUS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
FORMATS[".ogg"] = FORMATS[".opus"]
BEGINNINGS = {"WAV": [b"RIFF"], "FLAC": [b"fLaC"], "OGG": [b"OggS"], "MP3": [b"ID3", b"\xff"]}
RATES = {"OGG": (8000, 12000, 16000, 24000, 48000), "MP3": (16000, 22050, 24000, 32000, 44100, 48000)}


class AudioWriter(contextlib.ExitStack):
    """Writes PCM, Opus or MP3; samples beyond [-1, 1] are clipped.

    >>> with AudioWriter(path, 44100, channels=2) as file:
    ...     file.write(waveform)  # [channels, any n]

    Args:
        target: path of a file, whose suffix is one of `FORMATS`; or an open binary file, such as a pipe, which gets a
            16-bit WAV header with the whole length first, and each piece as soon as it is written.
        sample_rate: of what is written; Opus and MP3 files have the next higher rate that they know.
        n_samples: how many will come. A pipe needs it; for a file it is checked before the work, if given.
        tags: title, comment, software and others of soundfile, for a file. MP3 has the first three.
        bits: 16 or 24, of WAV and FLAC.
    Raises:
        ValueError: unknown suffix, a folder that cannot be written, more than a WAV file holds, or a reader that stopped.
    """

    def __init__(
        self, target: Target, sample_rate: int, channels: int, n_samples: int = 0, tags: Tags = NO_TAGS, bits: int = 16
    ):
        super().__init__()
        self.target, self.channels, self.bits, self.n_samples = target, channels, bits, 0
        self.is_int16, rate = bits == 16, sample_rate
        if isinstance(target, str | Path):
            check_writable(Path(target))
            self._check_size(n_samples)
            form, lossy = FORMATS[Path(target).suffix.lower()]
            known = RATES.get(form, (rate,))
            rate = next((found for found in known if found >= rate), known[-1])
            self.is_int16 = bits == 16 and not lossy
            self.opened = _file(Path(target), form, lossy or f"PCM_{bits}", rate, channels, tags)
        else:
            self.opened = contextlib.nullcontext(_Pipe(target, sample_rate, channels, n_samples))
        self.resampler = Resampler(sample_rate, rate)

    def __enter__(self) -> "AudioWriter":
        self.file = self.enter_context(self.opened)
        self.push(self._finish)
        return self

    def _finish(self, kind: type[BaseException] | None, *exception: object) -> None:
        for rest in self.resampler.finish() if kind is None else ():
            self._write(rest)

    def write(self, waveform: Tensor) -> None:
        """float [channels, n] in [-1, 1]."""
        self.n_samples += waveform.shape[-1]
        if isinstance(self.target, str | Path):
            self._check_size(self.n_samples)
        self._write(self.resampler.push(waveform.detach().float().cpu()))

    def _write(self, waveform: Tensor) -> None:
        frames = rearrange(waveform.clamp(-1, 1), "c n -> n c")
        frames = (frames * 32768).round().clamp(max=32767).to(torch.int16) if self.is_int16 else frames
        self.file.write(frames.numpy())

    def _check_size(self, n_samples: int) -> None:
        is_wav = Path(str(self.target)).suffix.lower() == ".wav"
        if is_wav and n_samples * self.channels * self.bits // 8 > WAV_BYTES:
            raise ValueError(f"{self.target}: a WAV file holds at most 4 GB; write a .flac file")


@contextlib.contextmanager
def _file(path: Path, form: str, subtype: str, rate: int, channels: int, tags: Tags) -> Iterator[soundfile.SoundFile]:
    texts = {name: "".join(c for c in text if c.isprintable()) for name, text in tags.items()}
    failures = writing(path, soundfile.LibsndfileError)
    with failures, atomic_file(path) as temporary, utf8_path(temporary.parent) as folder:
        place = folder / temporary.name  # without the suffix
        with soundfile.SoundFile(place, "w", rate, channels, subtype, format=form) as file:
            for name, text in texts.items():
                if text and form != "MP3":
                    setattr(file, name, text)
            yield file
        if form == "MP3" and any(texts.values()):  # libsndfile takes their texts for Latin-1
            found = id3.ID3()
            for name in ID3_FRAMES.keys() & texts.keys():
                found.add(ID3_FRAMES[name](encoding=id3.Encoding.UTF8, lang="eng", text=texts[name]))
            found.save(place)


class _Pipe:
    """WAV into an open binary file that cannot seek."""

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, n_samples: int):
        self.file, frame = file, 2 * channels
        size = min(frame * n_samples, PIPE_BYTES)
        riff = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
        pcm = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, sample_rate, frame * sample_rate, frame, 16)
        self._send(riff + pcm + struct.pack("<4sI", b"data", size))

    def write(self, frames: np.ndarray) -> None:
        """int16 [n, channels]."""
        self._send(frames.astype("<i2").tobytes())

    def _send(self, content: bytes) -> None:
        try:
            self.file.write(content)
            self.file.flush()
        except BrokenPipeError:
            raise ValueError("stream: the program that reads it has stopped") from None


def write_audio(path: Path | str, waveform: Tensor, sample_rate: int) -> None:
    """Write [channels, samples] to a file; raises as `AudioWriter`."""
    with AudioWriter(path, sample_rate, waveform.shape[0], waveform.shape[1]) as file:
        file.write(waveform)


def piece_tags(title: str, model: str, seed: int | None, labels: dict[str, str], licence: str | None) -> dict[str, str]:
    """The tags of a generated piece; its comment has all that makes it again."""
    facts = [model, *([] if seed is None else [f"seed {seed}"]), *(f"{name} {value}" for name, value in labels.items())]
    comment = ", ".join(facts) + (f"; licence of the model: {licence}" if licence else "")
    return {"title": title, "comment": comment, "software": "audiovq", "license": licence or ""}


def check_writable(path: Path, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raises ValueError, before the work, if an audio file cannot be written there without the loss of another file."""
    if path.suffix.lower() not in FORMATS:
        found = path.suffix or "no suffix"
        raise ValueError(f"{path}: expected a name that ends in {', '.join(FORMATS)}, found {found}")
    check_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"{path}: expected the name of a file to write, found a folder")
    check_output(path, BEGINNINGS[FORMATS[path.suffix.lower()][0]], inputs)
