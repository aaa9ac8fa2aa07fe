"""Writes 16-bit audio piece by piece: a WAV or FLAC file that appears when it is whole, or WAV in a pipe."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from einops import rearrange
from torch import Tensor

from audiovq.utils.files import atomic_file, cannot_write, check_folder, check_output, utf8_path

WRITABLE = {".wav": [b"RIFF"], ".flac": [b"fLaC"]}  # how these files begin
WAV_BYTES = (1 << 32) - 4096  # the sizes in a WAV file are 32-bit numbers
PIPE_BYTES = (1 << 32) - 1 - 36  # the largest size in a header; players take it for "until the end"


class AudioWriter:
    """Writes 16-bit PCM; samples beyond [-1, 1] are clipped.

    >>> with AudioWriter(path, 44100, channels=2) as file:
    ...     file.write(waveform)  # [channels, any n]

    Args:
        target: path of a .wav or .flac file; or an open binary file, such as a pipe, which gets a WAV header with the whole
            length first, and each piece as soon as it is written.
        n_samples: how many will come. A pipe needs it; for a file it is checked before the work, if given.
        comment: for the comment tag of a file.
    Raises:
        ValueError: unknown suffix, a folder that cannot be written, more than a WAV file holds, or a reader that stopped.
    """

    def __init__(
        self, target: Path | str | BinaryIO, sample_rate: int, channels: int, n_samples: int = 0, comment: str = ""
    ):
        self.target, self.channels, self.n_samples = target, channels, 0
        if isinstance(target, str | Path):
            check_writable(Path(target))
            self._check_size(n_samples)
            self.opened = _file(Path(target), sample_rate, channels, comment)
        else:
            self.opened = contextlib.nullcontext(_Pipe(target, sample_rate, channels, n_samples))

    def __enter__(self) -> AudioWriter:
        self.file = self.opened.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.opened.__exit__(*exception)  # type: ignore[arg-type]

    def write(self, waveform: Tensor) -> None:
        """float [channels, n] in [-1, 1]."""
        self.n_samples += waveform.shape[-1]
        if isinstance(self.target, str | Path):
            self._check_size(self.n_samples)
        integers = (waveform.detach().float().clamp(-1, 1).cpu() * 32767).round().to(torch.int16)
        self.file.write(rearrange(integers, "c n -> n c").numpy())

    def _check_size(self, n_samples: int) -> None:
        if Path(str(self.target)).suffix.lower() == ".wav" and n_samples * self.channels * 2 > WAV_BYTES:
            raise ValueError(f"{self.target}: a WAV file holds at most 4 GB; write a .flac file")


@contextlib.contextmanager
def _file(path: Path, sample_rate: int, channels: int, comment: str) -> Iterator[soundfile.SoundFile]:
    form = path.suffix[1:].upper()  # given explicitly, because the temporary name does not have the suffix
    try:
        with (
            atomic_file(path) as temporary,
            utf8_path(temporary.parent) as folder,
            soundfile.SoundFile(folder / temporary.name, "w", sample_rate, channels, "PCM_16", format=form) as file,
        ):
            if comment:
                file.comment = comment
            yield file
    except soundfile.LibsndfileError as error:
        raise cannot_write(path, error) from None


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
    """Write [channels, samples] as a 16-bit WAV or FLAC file; raises as `AudioWriter`."""
    with AudioWriter(path, sample_rate, waveform.shape[0], waveform.shape[1]) as file:
        file.write(waveform)


def check_writable(path: Path, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raises ValueError, before the work, if an audio file cannot be written there without the loss of another file."""
    if path.suffix.lower() not in WRITABLE:
        found = path.suffix or "no suffix"
        raise ValueError(f"{path}: expected a name that ends in .wav or .flac, found {found}")
    check_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"{path}: expected the name of a file to write, found a folder")
    check_output(path, WRITABLE[path.suffix.lower()], inputs)
