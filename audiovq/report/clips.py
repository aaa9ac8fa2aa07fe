"""Audio files → what the page has of each: the sound in a data: URI, equally loud, and its pictures."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from audiovq.data import audio
from audiovq.evaluation.loudness import Gain, matching_gains
from audiovq.report.contents import Clip, Group
from audiovq.report.spectrograms import Picture, spectrogram_picture
from audiovq.utils.progress import ProgressBar

MAX_CLIPS = 40
PICTURE_BYTES = 56_000  # of a spectrogram of noise and an outline, as they stand in the page
EXCERPT_SECONDS, TOTAL_SECONDS = 30.0, 360.0  # at most: of a clip, and of all together
SHORTEST_SECONDS = 3.0
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, of MP3, which every browser plays
FORMATS = {"flac": ("FLAC", "PCM_16", "audio/flac"), "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg")}
MP3: dict[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}  # about 160 kbps at 44.1 kHz
WAVE_COLUMNS = 360


@dataclass
class Heard:
    """A clip, read."""

    clip: Clip
    waveform: Tensor  # float [1 or 2, samples], equally loud as the others
    sample_rate: int
    whole_seconds: float  # of the file
    gain: Gain


def choose(groups: Sequence[Group]) -> tuple[list[Group], int]:
    """Whole groups, as many as a page holds, the first one cut if need be; and the number of clips left out."""
    chosen: list[Group] = []
    for group in groups:
        room = MAX_CLIPS - sum(len(each.clips) for each in chosen)
        if len(group.clips) <= room or not chosen:
            chosen.append(dataclasses.replace(group, clips=group.clips[:room]))
    n_all = sum(len(group.clips) for group in groups)
    return chosen, n_all - sum(len(group.clips) for group in chosen)


def render(groups: Sequence[Group], max_bytes: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All clips of the groups as the template wants them, and facts of their sound; together at most `max_bytes`.

    Sound is FLAC; if that is too much, MP3; if that is too much, shorter excerpts of MP3.

    Raises:
        ValueError: a file that cannot be read.
    """
    clips = [clip for group in groups for clip in group.clips]
    heard, pictures = [], []
    longest = min(EXCERPT_SECONDS, TOTAL_SECONDS / max(len(clips), 1))
    with ProgressBar("report", 2 * len(clips)) as bar:
        for clip in clips:
            heard.append(_read(clip, longest))
            bar.advance(1, clip.path.name)
        for each, gain in zip(heard, _gains(heard), strict=True):
            each.gain = gain
            each.waveform = each.waveform * 10 ** (gain.decibels / 20)
        bar.advance(0, "encoding")
        kind, seconds, sounds = _encode_all(heard, longest, max_bytes - len(clips) * PICTURE_BYTES)
        for each in heard:
            each.waveform = each.waveform[:, : round(seconds * each.sample_rate)]
            pictures.append(spectrogram_picture(each.waveform, each.sample_rate))
            bar.advance(1, each.clip.path.name)
    peak = max([float(each.waveform.abs().max()) for each in heard], default=1.0) or 1.0
    rendered = [_facts(i, *each, kind, peak) for i, each in enumerate(zip(heard, sounds, pictures, strict=True))]
    used = sum(len(clip["audio"]) for clip in rendered)
    longest = max((clip["seconds"] for clip in rendered), default=0.0)
    return rendered, {"format": kind, "bytes": used, "excerpt_seconds": longest}


def _read(clip: Clip, longest: float) -> Heard:
    info = audio.audio_info(clip.path)
    n_samples = round(longest * info.sample_rate)
    start = min(round(clip.start * info.sample_rate), max(0, info.samples - n_samples))
    wanted = clip.sample_rate or info.sample_rate
    rate = next((rate for rate in RATES if rate >= wanted), RATES[-1])
    waveform, _ = audio.read_audio(clip.path, rate, min(info.channels, 2), start, n_samples)
    placed = dataclasses.replace(clip, start=start / info.sample_rate)
    return Heard(placed, waveform, rate, info.seconds, Gain(0.0, 0.0))


def _gains(heard: Sequence[Heard]) -> list[Gain]:
    return matching_gains([each.waveform for each in heard], [each.sample_rate for each in heard])


def _encode_all(heard: Sequence[Heard], seconds: float, max_bytes: int) -> tuple[str, float, list[bytes]]:
    """The format, the seconds of an excerpt at most, and the encoded sounds, whose base64 is within `max_bytes`."""
    kind = "flac"
    while True:
        cut = [each.waveform[:, : round(seconds * each.sample_rate)] for each in heard]
        with ThreadPoolExecutor() as pool:
            sounds = list(pool.map(_encode, cut, [each.sample_rate for each in heard], itertools.repeat(kind)))
        size = sum(4 * (len(sound) // 3 + 1) for sound in sounds)
        if size <= max_bytes or seconds <= SHORTEST_SECONDS:
            return kind, seconds, sounds
        if kind == "flac":
            kind = "mp3"
        else:
            longest = max(each.waveform.shape[1] / each.sample_rate for each in heard)
            seconds = max(SHORTEST_SECONDS, 0.95 * min(seconds, longest) * max_bytes / size)


def _encode(waveform: Tensor, sample_rate: int, kind: str) -> bytes:
    file = io.BytesIO()
    container, subtype, _ = FORMATS[kind]
    whole = (waveform.clamp(-1, 1).T.numpy() * 32767).round().astype(np.int16)
    settings = MP3 if kind == "mp3" else {}
    soundfile.write(file, whole, sample_rate, format=container, subtype=subtype, **settings)
    return file.getvalue()


def _facts(index: int, heard: Heard, sound: bytes, picture: Picture, kind: str, peak: float) -> dict[str, Any]:
    clip, seconds = heard.clip, heard.waveform.shape[1] / heard.sample_rate
    return {
        "id": f"clip-{index}", "name": clip.name, "note": clip.note, "path": clip.path, "seconds": seconds,
        "start": clip.start, "is_excerpt": seconds < heard.whole_seconds - 0.05, "whole_seconds": heard.whole_seconds,
        "gain": heard.gain, "silent": heard.gain.loudness == -math.inf, "audio": data_uri(FORMATS[kind][2], sound),
        "spectrogram": data_uri("image/webp", picture.webp), "frequencies": picture.frequencies,
        "wave": wave_path(heard.waveform / peak),
    }  # fmt: skip


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def wave_path(waveform: Tensor) -> str:
    """The outline of float [channels, samples] as an SVG path, WAVE_COLUMNS wide, from -100 (the bottom) to 100."""
    mono = waveform.mean(dim=0)
    edges = torch.linspace(0, len(mono), WAVE_COLUMNS + 1).long().tolist()
    columns = [mono[a : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
    high = [max(1, round(100 * float(column.max()))) if len(column) else 1 for column in columns]
    low = [min(-1, round(100 * float(column.min()))) if len(column) else -1 for column in columns]
    there = "".join(f"L{x} {-y}" for x, y in enumerate(high))
    back = "".join(f"L{x} {-y}" for x, y in reversed(list(enumerate(low))))
    return f"M0 0{there}{back}Z"
