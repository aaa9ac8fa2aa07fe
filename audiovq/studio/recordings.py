"""Sounds and codes that are brought in: checked, encoded, and compared with the training music."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from audiovq.api.generator import Generator
from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.studio.limits import MEGABYTE, Limits
from audiovq.studio.projects import Recording

JUDGED_SECONDS = 60.0  # of a recording
UNLIKE = 1.25  # times the bits a second of the training music
OnProgress = Callable[[float, str], object]  # the finished share from 0 to 1, and a description


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
        limits.check_seconds(codes.seconds)
    return codes


def read_recording(
    path: Path, name: str, tokenizer: Tokenizer, limits: Limits, on_progress: OnProgress
) -> tuple[Codes, Recording]:
    """Encode an audio file, whose own name ends in the id of the recording.

    Raises:
        ValueError: too large, not audio, or damaged.
    """
    size = path.stat().st_size / MEGABYTE
    if size > limits.max_upload_mb:
        raise ValueError(f"{name}: {size:.1f} MB; files may have up to {limits.max_upload_mb:g} MB here")
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
    recording = Recording(
        id=path.stem[-16:],
        name=name,
        suffix=path.suffix,
        seconds=n_samples / info.sample_rate,
        channels=min(info.channels, 2),
        sample_rate=info.sample_rate,
        n_samples=n_samples,
        note=f"only its first {limits.max_seconds:g} s are used" if is_cut else "",
    )
    return codes, recording


def unlikeness(generator: Generator, codes: Codes, training_bits: float | None) -> str | None:
    """A sentence if a piece is much less likely for the model than its training music; else None."""
    if training_bits is None or len(codes.levels) < len(generator.priors):
        return None
    n_samples = min(codes.n_samples, generator.n_samples(JUDGED_SECONDS))
    levels = [level[: -(-n_samples // hop)] for level, hop in zip(codes.levels, codes.hop_lengths, strict=False)]
    [found] = generator.bits_per_second([generator.tokenizer.make_codes(levels, n_samples)])
    if found < UNLIKE * training_bits:
        return None
    return (
        f"This recording is unlike the music that the model learned from: it needs {found:.0f} bits a second, the "
        f"training music {training_bits:.0f}. What the model adds may not fit it."
    )
