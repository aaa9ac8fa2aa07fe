"""Audio files: soundfile reads and writes them (ffmpeg reads what it refuses), torchaudio resamples, and every problem is
one readable ValueError."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from einops import rearrange
from torch import Tensor

from audiovq.data import ffmpeg
from audiovq.utils.chunking import Window, Windows

SUFFIXES = {
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".w64", ".caf", ".au", *ffmpeg.SUFFIXES,
}  # fmt: skip
LOSSLESS = {"WAV", "WAVEX", "RF64", "FLAC", "AIFF", "W64", "CAF", "AU"}  # their headers say how many samples there are
WRITABLE = {".wav": "PCM_16", ".flac": "PCM_16"}
BLOCK_FRAMES = 1 << 16
UNKNOWN_BYTES = 0x7FFF0000  # from here on, a header written to a pipe only says that it did not know
RESAMPLE_SECONDS = 5.0  # of new audio that the resampler takes at once
WAV_BYTES = (1 << 32) - 4096  # a WAV file's sizes are 32-bit numbers

# How loud each channel of the usual layouts is in left and right (ITU-R BS.775-3, table 2; the LFE is left out).
_CENTRE = 2**-0.5
_LAYOUTS = {
    3: ([1, 0, _CENTRE], [0, 1, _CENTRE]),
    4: ([1, 0, _CENTRE, 0], [0, 1, 0, _CENTRE]),
    5: ([1, 0, _CENTRE, _CENTRE, 0], [0, 1, _CENTRE, 0, _CENTRE]),
    6: ([1, 0, _CENTRE, 0, _CENTRE, 0], [0, 1, _CENTRE, 0, 0, _CENTRE]),
}


@dataclass(frozen=True)
class AudioInfo:
    sample_rate: int
    channels: int
    samples: int  # as the header says; some formats only estimate it
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


class NotReadable(ValueError):
    """soundfile cannot read it; ffmpeg might."""


def open_audio(path: Path) -> soundfile.SoundFile:
    """Open a file for reading, or say in one line why not."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: expected an audio file, found a folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty file (0 bytes)")
    try:
        name = os.fsencode(path) if os.name == "posix" else path  # names need not be UTF-8
        return soundfile.SoundFile(name)  # type: ignore[arg-type] - bytes are fine
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise NotReadable(f"{path}: not audio that can be read (WAV, FLAC, OGG, Opus, MP3, AIFF): {reason}") from None


def audio_info(path: Path) -> AudioInfo:
    """What the header says; nothing is decoded."""
    try:
        with open_audio(path) as file:
            return AudioInfo(file.samplerate, file.channels, file.frames, file.format, file.subtype)
    except NotReadable as error:
        reason = error
    try:
        found = ffmpeg.probe(path)
    except ffmpeg.FFmpegError as error:
        raise ValueError(f"{reason}; {error}") from None
    n_samples, kind = round(found.seconds * found.sample_rate), f"{found.container.upper()} (ffmpeg)"
    return AudioInfo(found.sample_rate, found.channels, n_samples, kind, found.codec.upper())


def blocks(path: Path, start: int = 0, n_samples: int | None = None) -> Iterator[np.ndarray]:
    """Decode a file in float32 blocks [samples, channels], in bounded memory.

    Where soundfile gives up on a file that is not lossless, ffmpeg goes on from the same sample.

    Raises:
        ValueError: unreadable or truncated data, or samples that are not finite.
    """
    for block in _decoded(path, start, n_samples):
        if not np.isfinite(block).all():
            raise ValueError(f"{path}: samples that are not finite (NaN or infinity)")
        yield block


def _decoded(path: Path, start: int, n_samples: int | None) -> Iterator[np.ndarray]:
    done = 0
    try:
        for block in _soundfile_blocks(path, start, n_samples):
            done += len(block)
            yield block
        return
    except NotReadable as error:
        reason = error
    rest = None if n_samples is None else n_samples - done
    try:
        yield from ffmpeg.blocks(path, start + done, rest, BLOCK_FRAMES)
    except ffmpeg.FFmpegError as error:
        raise ValueError(f"{reason}; {error}") from None


def _soundfile_blocks(path: Path, start: int, n_samples: int | None) -> Iterator[np.ndarray]:
    with open_audio(path) as file:
        lossless = file.format in LOSSLESS
        try:
            if start:
                file.seek(start)
            done, wanted = 0, n_samples if n_samples is not None else np.inf
            while done < wanted:
                block = file.read(int(min(BLOCK_FRAMES, wanted - done)), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                done += len(block)
                yield block
        except (soundfile.LibsndfileError, RuntimeError) as error:
            reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
            kind = ValueError if lossless else NotReadable  # lossless data that cannot be read is damaged for sure
            raise kind(f"{path}: truncated or damaged ({reason})") from None
        to_the_end = lossless and done < wanted
        if to_the_end and start + done < file.frames:
            raise ValueError(f"{path}: truncated: the header says {file.frames} samples, {start + done} are there")
    if to_the_end:
        _check_declared_bytes(path)


def _check_declared_bytes(path: Path) -> None:
    """soundfile takes what is there of a WAV or AIFF file and does not say that its end is missing."""
    with path.open("rb") as file:
        kind, size = file.read(4), file.read(4)
    if kind not in {b"RIFF", b"FORM"}:
        return
    declared = int.from_bytes(size, "little" if kind == b"RIFF" else "big") + 8
    found = path.stat().st_size
    if found + 1 < declared < UNKNOWN_BYTES:  # a last padding byte is often left out
        raise ValueError(f"{path}: truncated: the header says {declared} bytes, {found} are there")


def downmix(waveform: Tensor, channels: int) -> Tensor:
    """[c, samples] with 1 to 6 channels (or more) -> [1 or 2, samples].

    Surround goes to stereo by ITU-R BS.775 and is scaled so that nothing can clip; stereo to mono is the mean.
    """
    found = waveform.shape[0]
    if found == channels:
        return waveform
    if found > 2:
        left, right = _LAYOUTS.get(found, ([1.0] * found, [1.0] * found))
        matrix = torch.tensor([left, right], dtype=waveform.dtype)
        waveform = (matrix / matrix.sum(dim=1, keepdim=True)) @ waveform
    if channels == 1:
        return waveform.mean(dim=0, keepdim=True)
    return waveform.expand(2, -1) if waveform.shape[0] == 1 else waveform


class Resampler:
    """To another rate by windowed sinc, for a waveform that comes in blocks of any size.

    What is pushed and finished, put together, is [..., ceil(samples · to / from)]: torchaudio's resampling of the
    whole, computed with the whole filter's context, and the same bits for any block sizes.
    """

    def __init__(self, from_rate: int, to_rate: int, chunk_seconds: float = RESAMPLE_SECONDS):
        shared = math.gcd(from_rate, to_rate)
        self.old, self.new = from_rate // shared, to_rate // shared  # so many samples become so many
        self.kernel = torchaudio.transforms.Resample(from_rate, to_rate, lowpass_filter_width=16, dtype=torch.float32)
        width = self.kernel.width if from_rate != to_rate else 0
        chunk = max(1, int(chunk_seconds * from_rate) // self.old) * self.old
        self.windows = Windows(chunk, -(-width // self.old) * self.old)

    @property
    def latency_samples(self) -> int:
        """Samples at the old rate that must be known, from one on, until it comes at the new rate, at most."""
        return self.windows.step + self.windows.context if self.old != self.new else 0

    def push(self, waveform: Tensor) -> Tensor:
        """float32 [..., any n] at the old rate -> [..., what is certain now] at the new rate, maybe nothing."""
        if self.old == self.new:
            return waveform
        parts = [self._resample(window) for window in self.windows.push([waveform])]
        return torch.cat(parts, dim=-1) if parts else waveform[..., :0]

    def finish(self) -> Tensor | None:
        """The rest, or None if there is none."""
        last = self.windows.finish()
        return self._resample(last) if last else None

    def _resample(self, window: Window) -> Tensor:
        waveform = window.sequences[0]
        resampled = self.kernel.to(waveform.device)(waveform)
        first = (window.start - window.low) // self.old * self.new
        return resampled[..., first : -(-(window.end - window.low) * self.new // self.old)]


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """float32 [..., samples] to another rate, on the waveform's device; length ceil(samples · to / from)."""
    resampler = Resampler(from_rate, to_rate)
    parts = [resampler.push(waveform), resampler.finish()]
    return torch.cat([part for part in parts if part is not None], dim=-1)


def stream_audio(
    path: Path,
    sample_rate: int | None = None,
    channels: int | None = None,
    start: int = 0,
    n_samples: int | None = None,
) -> Iterator[Tensor]:
    """As `read_audio`, in blocks of float32 [channels, samples] and in bounded memory."""
    rate = audio_info(path).sample_rate
    resampler, empty = Resampler(rate, sample_rate or rate), True
    for block in blocks(path, start, n_samples):
        waveform, empty = torch.from_numpy(block).T, False
        yield resampler.push(downmix(waveform, channels or waveform.shape[0]))
    if empty:
        raise ValueError(f"{path}: holds no samples")
    rest = resampler.finish()
    if rest is not None:
        yield rest


def read_audio(
    path: Path | str, sample_rate: int | None = None, channels: int | None = None, start: int = 0,
    n_samples: int | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """Decode a file (or `n_samples` of it from `start`, both at the file's own rate).

    Returns:
        float32 [channels, samples] and its rate, resampled and downmixed if asked.
    Raises:
        ValueError: unreadable, truncated, empty or non-finite audio.
    """
    path = Path(path)
    waveform = torch.cat(list(stream_audio(path, sample_rate, channels, start, n_samples)), dim=-1)
    return waveform.contiguous(), sample_rate or audio_info(path).sample_rate


class AudioWriter:
    """Writes 16-bit WAV or FLAC piece by piece, by suffix; beyond [-1, 1] it clips. The file appears when it is whole.

    >>> with AudioWriter(path, 44100, channels=2) as file:
    ...     file.write(waveform)  # [channels, any n]

    Args:
        n_samples: how many will come, if known: then what cannot be written fails before the work.
        comment: goes into the file's own comment tag.
    Raises:
        ValueError: unknown suffix, a folder that is missing or cannot be written, or more than a WAV file holds.
    """

    def __init__(self, path: Path | str, sample_rate: int, channels: int, n_samples: int = 0, comment: str = ""):
        self.path, self.channels, self.n_samples = Path(path), channels, 0
        check_writable(self.path)
        self._check_size(n_samples)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        kind, subtype = self.path.suffix[1:].upper(), WRITABLE[self.path.suffix.lower()]
        try:  # the suffix of the temporary name does not tell the format, so say it
            self.file = soundfile.SoundFile(self.temporary, "w", sample_rate, channels, subtype, format=kind)
            if comment:
                self.file.comment = comment
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{self.path}: cannot be written ({error})") from None

    def write(self, waveform: Tensor) -> None:
        """float [channels, n] in [-1, 1]."""
        self.n_samples += waveform.shape[-1]
        self._check_size(self.n_samples)
        whole = (waveform.detach().float().clamp(-1, 1).cpu() * 32767).round().to(torch.int16)  # alike in every format
        try:
            self.file.write(rearrange(whole, "c n -> n c").numpy())
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{self.path}: cannot be written ({error})") from None

    def _check_size(self, n_samples: int) -> None:
        if self.path.suffix.lower() == ".wav" and n_samples * self.channels * 2 > WAV_BYTES:
            raise ValueError(f"{self.path}: a WAV file holds at most 4 GB, and this is more; write a .flac file")

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.file.close()
            if kind is None:
                os.replace(self.temporary, self.path)
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{self.path}: cannot be written ({error})") from None
        finally:
            self.temporary.unlink(missing_ok=True)


def write_audio(path: Path | str, waveform: Tensor, sample_rate: int) -> None:
    """Write [channels, samples] with `AudioWriter`, and its errors."""
    with AudioWriter(path, sample_rate, waveform.shape[0], waveform.shape[1]) as file:
        file.write(waveform)


def audio_comment(path: Path) -> str:
    """The comment tag of an audio file."""
    with open_audio(path) as file:
        return file.comment


def has_samples(path: Path, n_samples: int) -> bool:
    """True if the file has so many samples, to the last."""
    try:
        with open_audio(path) as file:
            file.seek(max(0, n_samples - 1))
            return file.frames == n_samples and len(file.read(1)) == min(1, n_samples)
    except (ValueError, soundfile.LibsndfileError):
        return False


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes: its provenance."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in WRITABLE:
        raise ValueError(
            f"{path}: expected a name that ends in {' or '.join(WRITABLE)}, found {path.suffix or 'no suffix'}"
        )
    check_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected the name of a file to write")


def check_folder(folder: Path) -> None:
    """Make a folder for output, or say why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".audiovq-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from None
