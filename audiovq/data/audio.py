"""Audio files: soundfile reads and writes them, torchaudio resamples, and every problem is one readable ValueError."""

from __future__ import annotations

import hashlib
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

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".w64", ".caf", ".au"}
WRITABLE = {".wav": "PCM_16", ".flac": "PCM_16"}
BLOCK_FRAMES = 1 << 16

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


def open_audio(path: Path) -> soundfile.SoundFile:
    """Open a file for reading, or say in one line why not."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: expected an audio file, found a folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty file (0 bytes)")
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise ValueError(f"{path}: not audio that can be read (WAV, FLAC, OGG, Opus, MP3, AIFF): {reason}") from None


def audio_info(path: Path) -> AudioInfo:
    """What the header says; nothing is decoded."""
    with open_audio(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, file.format, file.subtype)


def blocks(path: Path, start: int = 0, n_samples: int | None = None) -> Iterator[np.ndarray]:
    """Decode a file in float32 blocks [samples, channels], in bounded memory.

    Raises:
        ValueError: unreadable or truncated data, or samples that are not finite.
    """
    with open_audio(path) as file:
        lossless_end = file.frames if file.format in {"WAV", "FLAC", "AIFF", "W64", "CAF", "AU"} else None
        try:
            if start:
                file.seek(start)
            done, wanted = 0, n_samples if n_samples is not None else np.inf
            while done < wanted:
                block = file.read(int(min(BLOCK_FRAMES, wanted - done)), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                if not np.isfinite(block).all():
                    raise ValueError(f"{path}: samples that are not finite (NaN or infinity)")
                done += len(block)
                yield block
        except (soundfile.LibsndfileError, RuntimeError) as error:
            reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
            raise ValueError(f"{path}: truncated or damaged ({reason})") from None
        if n_samples is None and lossless_end is not None and start + done < lossless_end:
            raise ValueError(f"{path}: truncated: the header says {lossless_end} samples, {start + done} are there")


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


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """[..., samples] to another rate by windowed sinc, on the waveform's device; length ceil(samples · to / from)."""
    if from_rate == to_rate:
        return waveform
    return torchaudio.functional.resample(waveform, from_rate, to_rate, lowpass_filter_width=16)


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
    parts = list(blocks(path, start, n_samples))
    if not parts:
        raise ValueError(f"{path}: holds no samples")
    with open_audio(path) as file:
        rate = file.samplerate
    waveform = rearrange(torch.from_numpy(np.concatenate(parts)), "n c -> c n")
    if channels is not None:
        waveform = downmix(waveform, channels)
    if sample_rate is not None:
        waveform, rate = resample(waveform, rate, sample_rate), sample_rate
    return waveform.contiguous(), rate


class AudioWriter:
    """Writes 16-bit WAV or FLAC piece by piece, by suffix; beyond [-1, 1] it clips. The file appears when it is whole.

    Raises:
        ValueError: unknown suffix, or a folder that is missing or cannot be written.
    """

    def __init__(self, path: Path | str, sample_rate: int, channels: int):
        self.path = Path(path)
        check_writable(self.path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        kind, subtype = self.path.suffix[1:].upper(), WRITABLE[self.path.suffix.lower()]
        try:  # the suffix of the temporary name does not tell the format, so say it
            self.file = soundfile.SoundFile(self.temporary, "w", sample_rate, channels, subtype, format=kind)
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{self.path}: cannot be written ({error})") from None

    def write(self, waveform: Tensor) -> None:
        """float [channels, n] in [-1, 1]."""
        whole = (waveform.detach().float().clamp(-1, 1).cpu() * 32767).round().to(torch.int16)  # alike in every format
        try:
            self.file.write(rearrange(whole, "c n -> n c").numpy())
        except (OSError, soundfile.LibsndfileError) as error:
            raise ValueError(f"{self.path}: cannot be written ({error})") from None

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
    """Write [channels, samples] as 16-bit WAV or FLAC; see `AudioWriter`."""
    with AudioWriter(path, sample_rate, waveform.shape[0]) as file:
        file.write(waveform)


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
