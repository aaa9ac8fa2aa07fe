"""What strangers drop on the page: audio or codes, within limits, and one friendly line for what cannot be used."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audiovq.api import Tokenizer
from audiovq.data import audio
from audiovq.data.audio_writer import AudioWriter
from audiovq.data.codes import Codes
from audiovq.studio.code_images import draw_codes
from audiovq.studio.files import Files

MEGABYTE = 1 << 20
KIND = "recording"  # of files on the shelf
RATES = (4000, 400_000)  # Hz
MOST_TAPS = 40_000_000  # of a resampler between rates with no large common divisor: each is a float in memory


@dataclass(frozen=True)
class Limits:
    """What one user may ask for."""

    max_seconds: float = 120.0  # of a piece, and of what is used of an upload
    max_upload_mb: float = 50.0
    max_takes: int = 4
    max_versions: int = 100

    def check_seconds(self, seconds: float) -> None:
        """Raises ValueError for a piece that is too long, or has no length."""
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"the length of a piece must be above 0 s; found {seconds:g}")
        if seconds > self.max_seconds + 1e-6:
            raise ValueError(
                f"a piece may be up to {self.max_seconds:g} s here, and this would be {seconds:.1f} s "
                "(whoever starts the studio may allow more: --max-seconds)"
            )


@dataclass(frozen=True)
class Recording:
    """An upload as codes."""

    name: str
    is_audio: bool  # else codes
    codes: Codes
    note: str  # for people, if something of it was not used
    original: Path  # WAV of what was used, or of the codes in full
    prefixes: list[Path]  # WAV of the first level, the first two, ...: as many as are done
    picture: Path
    file: Path  # the codes
    made_at: float  # seconds since 1970: when the codes were there


@contextlib.contextmanager
def called_by_name(path: Path | None) -> Iterator[None]:
    """Errors name the file as its owner does, not where it lies here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name) if path else str(error)) from None


def check_reference(path: Path, wanted: int, limits: Limits) -> None:
    """Raises ValueError for a recording that cannot be followed: too large, too long, or not audio."""
    check_upload(path, limits)
    with called_by_name(path):
        check_rate(path, wanted)
        seconds = audio.audio_info(path).seconds
    if seconds > limits.max_seconds:
        raise ValueError(f"{path.name}: up to {limits.max_seconds:g} s can be followed here; it has {seconds:.1f} s")


def check_upload(path: Path, limits: Limits) -> None:
    """Raises ValueError for a file that is too large, or is not there any more."""
    if not path.is_file():
        raise ValueError(f"{path.name}: the upload is gone; drop the file again")
    size = path.stat().st_size / MEGABYTE
    if size > limits.max_upload_mb:
        raise ValueError(f"{path.name}: files may have up to {limits.max_upload_mb:g} MB here; this one has {size:.1f}")


def read_recording(
    path: Path,
    tokenizer: Tokenizer,
    limits: Limits,
    shelf: Files,
    tell: Callable[[float, str], object] = lambda *_: None,
) -> Iterator[Recording]:
    """An uploaded audio or codes file as codes: first with its picture, then with the sound of one prefix more each time.

    Raises:
        ValueError: too large, not audio, damaged, or codes of another model; the file is called by its name alone.
    """
    check_upload(path, limits)
    shelf.drop_sketches(KIND)
    is_audio = path.suffix != ".codes"
    with called_by_name(path):
        if is_audio:
            codes, note, original = _read_audio(path, tokenizer, limits, shelf, tell)
        else:
            codes, note = _read_codes(path, tokenizer, limits), ""
            original = shelf.sketch(codes, kind=KIND)
    made_at, waveform, rate = time.time(), *audio.read_audio(original)
    picture, file = shelf.new_path(KIND, ".png"), shelf.new_path(KIND, ".codes")
    draw_codes(waveform, rate, codes, picture)
    codes.save(file)
    recording = Recording(path.name, is_audio, codes, note, original, [], picture, file, made_at)
    yield recording
    for k in range(1, len(codes.levels) + 1):
        tell(0.9, f"listening to {k} of {len(codes.levels)} levels")
        recording.prefixes.append(shelf.sketch(codes, k, KIND))
        yield recording


def _read_codes(path: Path, tokenizer: Tokenizer, limits: Limits) -> Codes:
    codes = Codes.load(path)
    if codes.tokenizer_hash != tokenizer.hash:
        raise ValueError(f"{path}: these codes were made by another model; open them in a studio of that model")
    limits.check_seconds(codes.seconds)
    return codes


def _read_audio(
    path: Path, tokenizer: Tokenizer, limits: Limits, shelf: Files, tell: Callable[[float, str], object]
) -> tuple[Codes, str, Path]:
    check_rate(path, tokenizer.sample_rate)
    info = audio.audio_info(path)
    most = round(limits.max_seconds * info.sample_rate)
    original, channels = shelf.new_path(KIND, ".wav"), min(info.channels, 2)
    with AudioWriter(original, info.sample_rate, channels) as file:  # whatever it was, a browser plays this
        for block in audio.stream_audio(path, channels=channels, n_samples=most):
            file.write(block)
    done, whole = 0.0, min(limits.max_seconds, file.n_samples / info.sample_rate)

    def listen(seconds: float) -> None:
        nonlocal done
        done += seconds
        tell(0.9 * min(done / whole, 1), f"turning {done:.0f} of {whole:.0f} s into codes")

    codes = tokenizer.encode_file(path, listen, limits.max_seconds)
    cut = file.n_samples == most and info.samples > most
    return codes, f"only its first {limits.max_seconds:g} s are used" if cut else "", original


def check_rate(path: Path, wanted: int) -> None:
    """Raises ValueError for audio at a rate from which resampling would take gigabytes."""
    rate = audio.audio_info(path).sample_rate
    shared = math.gcd(rate, wanted)
    if not RATES[0] <= rate <= RATES[1] or (rate // shared) * (wanted // shared) > MOST_TAPS:
        raise ValueError(f"{path}: a sample rate of {rate} Hz is too unusual here; convert it to 44100 Hz first")
