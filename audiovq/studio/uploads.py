"""Uploaded files: audio or codes within limits, and one friendly line for a file that cannot be used."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.audio_writer import AudioWriter
from audiovq.data.codes import Codes
from audiovq.report.code_images import draw_codes

MEGABYTE = 1 << 20
ENCODING = 0.9  # the share of the work that is encoding
OnProgress = Callable[[float, str], object]  # the finished share from 0 to 1, and a description


@dataclass(frozen=True)
class Limits:
    """Limits for each user."""

    max_seconds: float = 120.0  # of a piece, and of the part of an upload that is used
    max_upload_mb: float = 50.0
    max_takes: int = 4
    max_versions: int = 100

    def check_seconds(self, seconds: float) -> None:
        """Raises ValueError for a piece that is too long or has no length."""
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"the length of a piece must be above 0 s; found {seconds:g}")
        if seconds > self.max_seconds + 1e-6:
            raise ValueError(
                f"a piece may be up to {self.max_seconds:g} s long here, and this would be {seconds:.1f} s "
                "(the option --max-seconds of audiovq studio allows more)"
            )


@dataclass(frozen=True)
class Recording:
    """An upload and its codes."""

    name: str
    is_audio: bool  # else codes
    codes: Codes
    note: str  # what was not used
    original: Path  # WAV of the part that is used, or of all levels of uploaded codes
    prefixes: list[Path]  # WAV of level 0, of levels 0 and 1, …: those that are finished
    picture: Path
    made_at: float  # when it was encoded, seconds since 1970


@contextlib.contextmanager
def named_as_uploaded(path: Path | None) -> Iterator[None]:
    """Error messages have the name of the file instead of its path on this machine."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name) if path else str(error)) from None


def check_reference(path: Path, limits: Limits) -> None:
    """Raises ValueError for a recording that cannot be followed: too large, too long, or not audio."""
    check_upload(path, limits)
    with named_as_uploaded(path):
        seconds = audio.audio_info(path).seconds
    if seconds > limits.max_seconds:
        raise ValueError(f"{path.name}: {seconds:.1f} s; up to {limits.max_seconds:g} s can be followed here")


def check_upload(path: Path, limits: Limits) -> None:
    """Raises ValueError for a file that is too large or does not exist any more."""
    if not path.is_file():
        raise ValueError(f"{path.name}: the upload is gone; drop the file again")
    size = path.stat().st_size / MEGABYTE
    if size > limits.max_upload_mb:
        raise ValueError(f"{path.name}: {size:.1f} MB; files may have up to {limits.max_upload_mb:g} MB here")


def read_recording(
    path: Path, tokenizer: Tokenizer, limits: Limits, new_path: Callable[[str], Path], on_progress: OnProgress
) -> Iterator[Recording]:
    """Encode an uploaded audio file, or read uploaded codes.

    Args:
        new_path: gives a path for a file with this suffix.
    Returns:
        The recording: first with its picture, then with the sound of one more prefix each time.
    Raises:
        ValueError: too large, not audio, damaged, or codes of another model.
    """
    check_upload(path, limits)
    is_audio, original = path.suffix != ".codes", new_path(".wav")
    with named_as_uploaded(path):
        if is_audio:
            codes, note = _encode(path, tokenizer, limits, original, on_progress)
        else:
            codes, note = _read_codes(path, tokenizer, limits), ""
            tokenizer.decode_file(codes, original)
    made_at, waveform, rate = time.time(), *audio.read_audio(original)
    picture = new_path(".png")
    draw_codes(waveform, rate, codes, picture)
    recording = Recording(path.name, is_audio, codes, note, original, [], picture, made_at)
    yield recording
    for level in range(len(codes.levels)):
        on_progress(ENCODING, f"decoding level {level}")
        recording.prefixes.append(new_path(".wav"))
        tokenizer.decode_file(codes, recording.prefixes[-1], level + 1)
        yield recording


def _read_codes(path: Path, tokenizer: Tokenizer, limits: Limits) -> Codes:
    codes = Codes.load(path)
    if codes.tokenizer_hash != tokenizer.hash:
        raise ValueError(f"{path}: codes of another model; open them in a studio of that model")
    limits.check_seconds(codes.seconds)
    return codes


def _encode(
    path: Path, tokenizer: Tokenizer, limits: Limits, original: Path, on_progress: OnProgress
) -> tuple[Codes, str]:
    """The codes of the beginning of an audio file and a note. The browser gets that part as WAV."""
    info = audio.audio_info(path)
    most, channels = round(limits.max_seconds * info.sample_rate), min(info.channels, 2)
    with AudioWriter(original, info.sample_rate, channels) as file:
        for block in audio.stream_audio(path, channels=channels, n_samples=most):
            file.write(block)
    done, seconds = 0.0, min(limits.max_seconds, file.n_samples / info.sample_rate)

    def advance(block_seconds: float) -> None:
        nonlocal done
        done += block_seconds
        on_progress(ENCODING * min(done / seconds, 1), f"encoding: {done:.0f} of {seconds:.0f} s")

    codes = tokenizer.encode_file(path, advance, limits.max_seconds)
    is_cut = file.n_samples == most and info.samples > most
    return codes, f"only its first {limits.max_seconds:g} s are used" if is_cut else ""
