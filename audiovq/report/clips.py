"""Audio files for the page: equally loud sound, a spectrogram, and the outline of the waveform."""

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
from audiovq.evaluation.loudness import matching_gains
from audiovq.report.contents import Clip, Group
from audiovq.report.spectrograms import spectrogram_picture
from audiovq.utils.progress import ProgressBar

MAX_CLIPS = 40
PICTURE_BYTES = 56_000  # in the page, of the spectrogram of noise and an outline
EXCERPT_SECONDS, TOTAL_SECONDS = 30.0, 360.0  # at most, of a clip and of all clips
SHORTEST_SECONDS = 3.0
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, of MP3
FORMATS = {"flac": ("FLAC", "PCM_16", "audio/flac"), "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg")}
MP3: dict[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}  # about 160 kbps at 44.1 kHz
OUTLINE_COLUMNS = 360


@dataclass
class LoadedClip:
    clip: Clip
    waveform: Tensor  # float [1 or 2, samples]
    sample_rate: int
    file_seconds: float


def choose(groups: Sequence[Group]) -> tuple[list[Group], int]:
    """As many whole groups as a page holds, but the beginning of the first; the number of clips left out."""
    chosen: list[Group] = []
    for group in groups:
        room = MAX_CLIPS - sum(len(each.clips) for each in chosen)
        if len(group.clips) <= room or not chosen:
            chosen.append(dataclasses.replace(group, clips=group.clips[:room]))
    n_left_out = sum(len(group.clips) for group in groups) - sum(len(group.clips) for group in chosen)
    return chosen, n_left_out


def render(groups: Sequence[Group], max_bytes: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All clips as the template shows them, and facts about their sound, within `max_bytes`.

    The sound is FLAC if that fits, else MP3, else shorter excerpts in MP3.

    Raises:
        ValueError: a file that cannot be read.
    """
    clips = [clip for group in groups for clip in group.clips]
    seconds = min(EXCERPT_SECONDS, TOTAL_SECONDS / max(len(clips), 1))
    with ProgressBar("report", 2 * len(clips)) as bar:
        loaded = []
        for clip in clips:
            loaded.append(_load(clip, seconds))
            bar.advance(1, clip.path.name)
        gains = matching_gains([each.waveform for each in loaded], [each.sample_rate for each in loaded])
        for each, gain in zip(loaded, gains, strict=True):
            each.waveform = each.waveform * 10 ** (gain.decibels / 20)
        kind, seconds, sounds = _encode_all(loaded, seconds, max_bytes - len(clips) * PICTURE_BYTES)
        for each in loaded:
            each.waveform = each.waveform[:, : round(seconds * each.sample_rate)]
        peak = max((float(each.waveform.abs().max()) for each in loaded), default=0.0) or 1.0
        rendered = []
        for i, (each, gain, sound) in enumerate(zip(loaded, gains, sounds, strict=True)):
            shown_seconds = each.waveform.shape[1] / each.sample_rate
            picture = spectrogram_picture(each.waveform, each.sample_rate)
            rendered.append({
                "id": f"clip-{i}", "name": each.clip.name, "note": each.clip.note, "path": each.clip.path,
                "seconds": shown_seconds, "start": each.clip.start, "whole_seconds": each.file_seconds,
                "is_excerpt": shown_seconds < each.file_seconds - 0.05,
                "gain": gain, "silent": gain.loudness == -math.inf,
                "audio": data_uri(FORMATS[kind][2], sound),
                "spectrogram": data_uri("image/webp", picture.webp),
                "ticks": picture.ticks, "outline": outline(each.waveform / peak),
            })  # fmt: skip
            bar.advance(1, each.clip.path.name)
    longest = max((clip["seconds"] for clip in rendered), default=0.0)
    n_bytes = sum(len(clip["audio"]) for clip in rendered)
    return rendered, {"format": kind, "bytes": n_bytes, "excerpt_seconds": longest}


def _load(clip: Clip, seconds: float) -> LoadedClip:
    """The first `seconds` from the start of a clip, or the last ones of the file."""
    info = audio.audio_info(clip.path)
    n_samples = round(seconds * info.sample_rate)
    start = min(round(clip.start * info.sample_rate), max(0, info.samples - n_samples))
    wanted = clip.sample_rate or info.sample_rate
    rate = next((rate for rate in RATES if rate >= wanted), RATES[-1])
    waveform, _ = audio.read_audio(clip.path, rate, min(info.channels, 2), start, n_samples)
    return LoadedClip(dataclasses.replace(clip, start=start / info.sample_rate), waveform, rate, info.seconds)


def _encode_all(loaded: Sequence[LoadedClip], seconds: float, max_bytes: int) -> tuple[str, float, list[bytes]]:
    """The format, the length of an excerpt, and the sounds, whose base64 takes at most `max_bytes`."""
    kind = "flac"
    while True:
        cut = [each.waveform[:, : round(seconds * each.sample_rate)] for each in loaded]
        with ThreadPoolExecutor() as pool:
            rates = [each.sample_rate for each in loaded]
            sounds = list(pool.map(_encode, cut, rates, itertools.repeat(kind)))
        n_bytes = sum(4 * (len(sound) // 3 + 1) for sound in sounds)
        if n_bytes <= max_bytes or seconds <= SHORTEST_SECONDS:
            return kind, seconds, sounds
        if kind == "flac":
            kind = "mp3"
        else:
            longest = max(each.waveform.shape[1] / each.sample_rate for each in loaded)
            seconds = max(SHORTEST_SECONDS, 0.95 * min(seconds, longest) * max_bytes / n_bytes)


def _encode(waveform: Tensor, sample_rate: int, kind: str) -> bytes:
    file = io.BytesIO()
    container, subtype, _ = FORMATS[kind]
    samples = (waveform.clamp(-1, 1).T.numpy() * 32767).round().astype(np.int16)
    settings = MP3 if kind == "mp3" else {}
    soundfile.write(file, samples, sample_rate, format=container, subtype=subtype, **settings)
    return file.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def outline(waveform: Tensor) -> str:
    """The outline of float [channels, samples] as an SVG path, OUTLINE_COLUMNS wide and ±100 high."""
    mono = waveform.mean(dim=0)
    edges = torch.linspace(0, len(mono), OUTLINE_COLUMNS + 1).long().tolist()
    columns = [mono[a : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
    high = [max(1, round(100 * float(column.max()))) if len(column) else 1 for column in columns]
    low = [min(-1, round(100 * float(column.min()))) if len(column) else -1 for column in columns]
    there = "".join(f"L{x} {-y}" for x, y in enumerate(high))
    back = "".join(f"L{x} {-y}" for x, y in reversed(list(enumerate(low))))
    return f"M0 0{there}{back}Z"
