"""Finds audio files that end early, or hold more than decoders read: several joined ones, or a wrong length."""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from mutagen.ogg import OggPage, error as OggError

TAGS = (b"ID3", b"id3 ", b"LIST", b"APETAGEX")  # may follow the end that a WAV file's header names
TAIL_BYTES = 1 << 16  # anything may follow that is not longer
UNKNOWN_BYTES = 0x7FFF0000  # from here on, the size in a header that was written to a pipe means "unknown"
FLAC_START = b"fLaC\0\0\0\x22"

# MPEG audio, layer III (ISO 11172-3, section 2.4.2.3); version 3 is MPEG-1, 2 is MPEG-2 and 0 is MPEG-2.5.
_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44100, 48000, 32000)
_DELAY_FRAMES = 6  # that an encoder's delay and padding may take


def check_whole(path: Path, n_samples: int) -> None:
    """Raises ValueError if a container promises more or less than `n_samples`, decoded from the first to the end."""
    if path.stat().st_size < 12:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if data[:4] in {b"RIFF", b"FORM"}:
                _check_declared_bytes(data)
            elif data[:4] == b"OggS":
                _check_ogg_pages(data)
            elif data[:4] == b"fLaC" and data.find(FLAC_START, 4) > 0:
                raise ValueError("several files joined into one; split it")
            elif path.suffix.lower() == ".mp3" or _mp3_frame(data[:4])[0]:
                _check_mp3_frames(data, n_samples)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _check_declared_bytes(data: mmap.mmap) -> None:
    declared, found = int.from_bytes(data[4:8], "little" if data[:1] == b"R" else "big") + 8, len(data)
    if found + 1 < declared < UNKNOWN_BYTES:  # a last padding byte is often left out
        raise ValueError(f"truncated: the header says {declared} bytes, {found} are there")
    tail = data[declared : declared + 8]
    is_large = found - declared > TAIL_BYTES and not tail.startswith(TAGS)
    if declared > 8 and (is_large or tail[:4] in {b"RIFF", b"FORM"}):
        advice = "split it, or write it as FLAC, RF64 or W64 if it is over 4 GB"
        raise ValueError(f"holds more than it says: the header says {declared} bytes, {found} are there; {advice}")
    at, n_parts = 12, 0
    while at + 8 <= min(declared, found):
        n_parts += data[at : at + 4] in {b"data", b"SSND"}
        size = int.from_bytes(data[at + 4 : at + 8], "little" if data[:1] == b"R" else "big")
        at += 8 + size + size % 2
    if n_parts > 1:
        raise ValueError(f"has {n_parts} parts with audio, and decoders read one of them; write it anew")


def _check_ogg_pages(data: mmap.mmap) -> None:
    """A stream has a first page and a last one, which is flagged."""
    unfinished, has_ended = set(), False
    with contextlib.suppress(EOFError, OggError):  # tags of other formats may follow the last page
        while True:
            page = OggPage(data)
            if page.first and has_ended:
                raise ValueError("several recordings one after another (chained Ogg); split it")
            if page.first:
                unfinished.add(page.serial)
            if page.last:
                unfinished.discard(page.serial)
                has_ended = True
    if unfinished:
        raise ValueError("truncated: the last Ogg page is missing")


def _check_mp3_frames(data: mmap.mmap, n_samples: int) -> None:
    """The first frame may say how many follow (Xing, Info or VBRI header)."""
    frames = list(_mp3_frames(data))
    promised = _promised_frames(data[slice(*frames[0][:2])]) if frames else None
    n_frames = len(frames) - (promised is not None)  # the frame of the header has no audio
    if promised is None:
        if frames and frames[-1][1] > len(data):
            raise ValueError("truncated in the middle of its last frame")
    elif n_frames < promised - 1:
        raise ValueError(f"truncated: the header says {promised} frames, {n_frames} are there")
    elif n_frames > promised + 1:
        found = f"the header says {promised} frames, {n_frames} are there"
        raise ValueError(f"holds more than it says: {found}; split or convert it")
    there = sum(samples for *_, samples in frames[_DELAY_FRAMES:])
    if n_samples < there:
        raise ValueError(f"damaged or joined: of {there} samples, {n_samples} can be read; convert it anew")


def _mp3_frames(data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """Start, end and samples of each frame. The last one may end after the file."""
    at = 0
    while 0 <= at <= len(data) - 4:
        if data[at : at + 3] == b"ID3":
            size = data[at + 6 : at + 10]
            at += 10 + sum((byte & 127) << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
            continue
        size, samples = _mp3_frame(data[at : at + 4])
        follower = data[at + size : at + size + 4]
        if size and (len(follower) < 4 or follower[:3] in {b"ID3", b"TAG", b"APE", b"LYR"} or _mp3_frame(follower)[0]):
            yield at, at + size, samples
            at += size
        else:
            at = data.find(b"\xff", at + 1)


def _mp3_frame(header: bytes) -> tuple[int, int]:
    """Bytes and samples of the frame with this header of 4 bytes; 0, 0 if it is none."""
    version, layer, kbps, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    if header[0] != 0xFF or header[1] < 0xE0 or version == 1 or layer != 1 or kbps in {0, 15} or rate == 3:
        return 0, 0
    samples = 1152 if version == 3 else 576
    bits_per_second = 1000 * (_KBPS if version == 3 else _KBPS_LOW)[kbps - 1]
    return samples // 8 * bits_per_second // (_RATES[rate] >> (3 - version + 1) // 2) + (header[2] >> 1 & 1), samples


def _promised_frames(frame: bytes) -> int | None:
    for mark, place in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        at = frame.find(mark)
        if at > 0 and (mark == b"VBRI" or frame[at + 7] & 1):
            return int.from_bytes(frame[at + place : at + place + 4], "big")
    return None
