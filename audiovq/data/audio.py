"""Reads audio files by soundfile, or by ffmpeg if soundfile cannot. Problems are one-line ValueErrors."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from audiovq.data import ffmpeg
from audiovq.data.completeness import check_whole
from audiovq.data.ffmpeg import AudioInfo
from audiovq.data.resampling import Resampler, check_rate

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".w64", ".caf", ".au"}
SUFFIXES |= ffmpeg.SUFFIXES
# Formats whose header has the number of samples.
LOSSLESS = {"WAV", "WAVEX", "RF64", "FLAC", "AIFF", "W64", "CAF", "AU"}
BLOCK_FRAMES = 1 << 16
Number = int | None  # None: that of the file
LARGEST_PEAK = 100.0  # 40 dB above full scale; larger numbers are PCM
# Decoders of these are only exact some time after the place where they begin.
INEXACT, RUN_IN_FRAMES = {"MP3", "VORBIS"}, 1 << 16

# Weights of each channel of the usual layouts in left and right (ITU-R BS.775-3, table 2; without LFE).
_CENTRE = 2**-0.5
_LAYOUTS = {
    3: ([1, 0, _CENTRE], [0, 1, _CENTRE]),
    4: ([1, 0, _CENTRE, 0], [0, 1, 0, _CENTRE]),
    5: ([1, 0, _CENTRE, _CENTRE, 0], [0, 1, _CENTRE, 0, _CENTRE]),
    6: ([1, 0, _CENTRE, 0, _CENTRE, 0], [0, 1, _CENTRE, 0, 0, _CENTRE]),
}
# Ogg has other places for the channels (Vorbis I specification, section 4.3.9): where those of a WAV file are in it.
OGG_ORDERS = {3: [0, 2, 1], 5: [0, 2, 1, 3, 4], 6: [0, 2, 1, 5, 3, 4]}


class NotReadable(ValueError):
    """soundfile cannot read a file; ffmpeg might."""


class Reader(soundfile.SoundFile):
    """A file that is read on from where it stopped. soundfile itself seeks after each read, which damages MP3."""

    def seekable(self) -> bool:
        return False


def open_audio(path: Path) -> Reader:
    """A file for soundfile; NotReadable for another format, ValueError if there is none or it is empty."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "a pipe or a device; write it to a file first"
        raise ValueError(f"{path}: expected an audio file, found {found}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: empty file (0 bytes)")
    try:
        name = os.fsencode(path) if os.name == "posix" else path  # names need not be UTF-8
        return Reader(name)  # type: ignore[arg-type] - bytes are fine
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        with path.open("rb") as file:
            start = file.read(200)
        reason = "it is a text file" if start.isascii() and b"\0" not in start else _reason(error)
        what = "not audio that can be read (WAV, FLAC, OGG, Opus, MP3, AIFF)"
        raise NotReadable(f"{path}: {what}: {reason}") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def audio_info(path: Path) -> AudioInfo:
    """The facts in a file's header; nothing is decoded. Raises ValueError for a file that is not audio."""
    try:
        with open_audio(path) as file:
            tags = {name: text.strip() for name, text in file.copy_metadata().items()}
            info = AudioInfo(file.samplerate, file.channels, file.frames, file.format, file.subtype, tags)
    except NotReadable as reason:
        try:
            info = ffmpeg.probe(path)
        except ffmpeg.FFmpegError as error:
            raise ValueError(f"{reason}; {error}") from None
    check_rate(info.sample_rate, f"{path}: sample rate")
    return info


def blocks(path: Path, start: int = 0, n_samples: int | None = None) -> Iterator[np.ndarray]:
    """Decode a file in float32 blocks [samples, channels], in bounded memory. Where soundfile fails in a file
    that is not lossless, ffmpeg continues from the same sample. ValueError for damaged data."""
    end = start
    for block in _decode(path, start, n_samples):
        peak = float(np.abs(block).max())
        if not np.isfinite(peak):
            raise ValueError(f"{path}: samples that are not finite (NaN or infinity)")
        if peak > LARGEST_PEAK:
            advice = "divide them by the largest PCM number"
            raise ValueError(f"{path}: expected samples in [-1, 1], found {peak:g}; {advice}")
        end += len(block)
        yield block
    if n_samples is None or end < start + n_samples:
        check_whole(path, end)


def _decode(path: Path, start: int, n_samples: int | None) -> Iterator[np.ndarray]:
    done = 0
    try:
        for block in _soundfile_blocks(path, start, n_samples):
            done += len(block)
            yield block
    except NotReadable as reason:
        rest = None if n_samples is None else n_samples - done
        try:
            yield from ffmpeg.blocks(path, start + done, rest, BLOCK_FRAMES)
        except ffmpeg.FFmpegError as error:
            raise ValueError(f"{reason}; {error}") from None


def _soundfile_blocks(path: Path, start: int, n_samples: int | None) -> Iterator[np.ndarray]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_audio(path))
        lossless, is_ogg, at = file.format in LOSSLESS, file.subtype in ("VORBIS", "OPUS"), start
        if file.format in INEXACT or file.subtype in INEXACT:
            at = max(0, start - RUN_IN_FRAMES)
        try:
            if at:
                file.seek(at)
        except soundfile.LibsndfileError:  # can only be decoded from the beginning, as GSM and some ADPCM
            file, at = stack.enter_context(open_audio(path)), 0
        try:
            while at < start and (skipped := len(file.read(min(BLOCK_FRAMES, start - at), always_2d=True))):
                at += skipped
            done, wanted = 0, np.inf if n_samples is None else n_samples
            if file.format != "MP3":  # whose number is an estimate; there may be tags behind the last sample
                wanted = min(wanted, file.frames - start)
            while done < wanted:
                block = file.read(int(min(BLOCK_FRAMES, wanted - done)), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                done += len(block)
                yield block[:, OGG_ORDERS[file.channels]] if is_ogg and file.channels in OGG_ORDERS else block
        except (soundfile.LibsndfileError, RuntimeError) as error:
            kind = ValueError if lossless else NotReadable  # ffmpeg cannot help with damaged lossless data
            raise kind(f"{path}: truncated or damaged ({_reason(error)})") from None
        if file.format != "MP3" and done < wanted:
            raise ValueError(f"{path}: truncated: the header says {file.frames} samples, {start + done} are there")


def downmix(waveform: Tensor, channels: int) -> Tensor:
    """[1 to 6 channels or more, samples] -> [1 or 2, samples]. Surround becomes stereo by ITU-R BS.775,
    scaled so that it cannot clip. Mono is the mean of both channels."""
    found = waveform.shape[0]
    if found == channels:
        return waveform
    if found > 2:
        left, right = _LAYOUTS.get(found, ([1.0] * found, [1.0] * found))
        matrix = torch.tensor([left, right], dtype=waveform.dtype, device=waveform.device)
        waveform = (matrix / matrix.sum(dim=1, keepdim=True)) @ waveform
    if channels == 1:
        return waveform.mean(dim=0, keepdim=True)
    return waveform.expand(2, -1) if waveform.shape[0] == 1 else waveform


def stream_audio(
    path: Path, sample_rate: Number = None, channels: Number = None, start: int = 0, n_samples: Number = None
) -> Iterator[Tensor]:
    """As `read_audio`, in blocks of float32 [channels, samples] and in bounded memory."""
    rate, empty = audio_info(path).sample_rate, True
    resampler = Resampler(rate, sample_rate or rate)
    for block in blocks(path, start, n_samples):
        waveform, empty = torch.from_numpy(block).T, False
        yield resampler.push(downmix(waveform, channels or waveform.shape[0]))
    if empty:
        raise ValueError(f"{path}: holds no samples")
    yield from resampler.finish()


def read_audio(
    path: Path | str, sample_rate: Number = None, channels: Number = None, start: int = 0, n_samples: Number = None
) -> tuple[Tensor, int]:
    """Decode a file, or a part of it.

    Args:
        sample_rate, channels: of the result; default those of the file.
        start, n_samples: the part, in samples at the file's own rate.
    Returns:
        float32 [channels, samples], and its sample rate.
    Raises:
        ValueError: unreadable, truncated, empty or non-finite audio.
    """
    path = Path(path)
    waveform = torch.cat(list(stream_audio(path, sample_rate, channels, start, n_samples)), dim=-1)
    return waveform.contiguous(), sample_rate or audio_info(path).sample_rate


def has_samples(path: Path, n_samples: int) -> bool:
    """True if an audio file is complete and has this number of samples."""
    try:
        with open_audio(path) as file:
            file.seek(max(0, n_samples - 1))
            return file.frames == n_samples and len(file.read(1)) == min(1, n_samples)
    except (ValueError, soundfile.LibsndfileError):
        return False
