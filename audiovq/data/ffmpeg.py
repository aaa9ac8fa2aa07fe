"""Decodes audio that soundfile cannot read (AAC, WMA, WebM, some Opus files) with the program `ffmpeg`."""

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {".m4a", ".aac", ".wma", ".webm", ".mka", ".ape", ".wv"}
SURE_SCORE = 26  # ffprobe's confidence, of 100; below it knows the file's name but not its content
ONLY_FILES = ("-protocol_whitelist", "file")  # a playlist under another name reaches no server
# Containers whose header has the length; for others ffprobe estimates it from the bit rate.
_WITH_LENGTH = {"MOV", "MATROSKA", "ASF", "FLAC", "WAV", "AIFF", "CAF", "W64", "APE", "WV"}
_SEEKABLE = {"MOV", "WV"}  # ffmpeg seeks exactly in them, by whole seconds; its decoders need a second of run-in
_SLACK_SECONDS = 0.5  # by which the length in a header may be too long: padding, times in milliseconds


class FFmpegError(ValueError):
    """ffmpeg is missing or cannot decode the file; the message lacks the file's name."""


@dataclass(frozen=True)
class AudioInfo:
    sample_rate: int
    channels: int
    samples: int  # some formats only estimate it
    format: str
    subtype: str
    tags: dict[str, str] = field(default_factory=dict)  # artist, album, genre and title, as far as they are there

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def probe(path: Path) -> AudioInfo:
    """The facts of the first audio stream; FFmpegError if ffmpeg is not installed, or finds none."""
    return _probe(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1 << 12)
def _probe(path: Path, *stamp: int) -> AudioInfo:  # a file that has changed has another stamp
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        raise FFmpegError("if it plays elsewhere, install ffmpeg, which reads more kinds")
    command = [
        "ffprobe", "-v", "error", *ONLY_FILES, "-select_streams", "a:0", "-of", "json", "-show_entries",
        "stream=codec_name,sample_rate,channels:format=format_name,probe_score,duration:format_tags", f"file:{path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    found: dict[str, Any] = json.loads(done.stdout or "{}") if done.returncode == 0 else {}
    stream, form = next(iter(found.get("streams", [])), {}), found.get("format", {})
    rate, channels = int(stream.get("sample_rate", 0)), int(stream.get("channels", 0))
    if not rate or not channels or form.get("probe_score", 0) < SURE_SCORE:
        raise FFmpegError("ffmpeg finds no audio in it, either")
    container, codec = form["format_name"].split(",")[0].upper(), stream.get("codec_name", "unknown").upper()
    tags = {name.lower(): text for name, text in form.get("tags", {}).items()}
    return AudioInfo(rate, channels, round(float(form.get("duration", 0)) * rate), f"{container} (ffmpeg)", codec, tags)


def blocks(path: Path, start: int, n_samples: int | None, block_frames: int) -> Iterator[np.ndarray]:
    """Decode a file from sample `start` on, in float32 blocks [samples, channels], at its own rate;
    FFmpegError if it is damaged. Where seeking is not exact, it is decoded from the beginning."""
    facts = probe(path)
    seek = max(0, start // facts.sample_rate - 1) if facts.format.split()[0] in _SEEKABLE else 0  # seconds
    first = start - seek * facts.sample_rate
    trim = f"atrim=start_sample={first}" + ("" if n_samples is None else f":end_sample={first + n_samples}")
    command = [
        "ffmpeg", "-v", "error", *ONLY_FILES, "-nostdin", "-xerror", *(("-ss", str(seek)) if seek else ()), "-i", f"file:{path}",
        "-map", "0:a:0", "-af", trim, "-c:a", "pcm_f32le", "-ar", str(facts.sample_rate), "-ac", str(facts.channels),
        "-f", "f32le", "-",
    ]  # fmt: skip
    frame = 4 * facts.channels  # bytes
    # A pipe for errors would fill up, because it is not read.
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child:
        assert child.stdout is not None, "requested by PIPE"
        try:
            end = start
            while data := child.stdout.read(block_frames * frame):
                block = np.frombuffer(data, "<f4", len(data) // frame * facts.channels)
                end += len(data) // frame
                yield block.reshape(-1, facts.channels).copy()  # writable
            seconds = np.inf if n_samples and end == start + n_samples else end / facts.sample_rate
            code = child.wait()
            errors.seek(0)
            messages = errors.read().decode(errors="replace").strip().splitlines()
            if code or messages:  # intact files print nothing
                raise FFmpegError(f"truncated or damaged (ffmpeg: {messages[0] if messages else f'exit code {code}'})")
            if facts.format.split()[0] in _WITH_LENGTH and seconds < facts.seconds - _SLACK_SECONDS:
                raise FFmpegError(f"truncated: the header says {facts.seconds:.2f} s, {seconds:.2f} s are there")
        finally:
            child.kill()
