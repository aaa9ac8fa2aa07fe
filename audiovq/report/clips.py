"""Audio files for the page, equally loud."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import soundfile
from torch import Tensor

from audiovq.data import audio
from audiovq.evaluation.loudness import matching_gains
from audiovq.report.contents import Clip, Group
from audiovq.utils.progress import ProgressBar

MAX_CLIPS = 40
EXCERPT_SECONDS, TOTAL_SECONDS = 30.0, 360.0  # at most, of a clip and of all clips
SHORTEST_SECONDS = 3.0
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, of MP3
MP3: dict[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}  # about 160 kbps at 44.1 kHz


def choose(groups: Sequence[Group]) -> tuple[list[Group], int]:
    """As many whole groups as a page holds, but the beginning of the first; the number of clips left out."""
    chosen: list[Group] = []
    for group in groups:
        room = MAX_CLIPS - sum(len(each.clips) for each in chosen)
        if len(group.clips) <= room or not chosen:
            chosen.append(dataclasses.replace(group, clips=group.clips[:room]))
    n_left_out = sum(len(group.clips) for group in groups) - sum(len(group.clips) for group in chosen)
    return chosen, n_left_out


def render(groups: Sequence[Group], max_bytes: int) -> tuple[list[dict[str, Any]], str]:
    """All clips as the template shows them, within `max_bytes`, and the format of their sound. That is FLAC if it
    fits, else MP3, else shorter excerpts in MP3. Raises ValueError for a file that cannot be read."""
    n_clips = sum(len(group.clips) for group in groups)
    seconds = min(EXCERPT_SECONDS, TOTAL_SECONDS / max(n_clips, 1))
    clips: list[dict[str, Any]] = []
    waveforms: list[Tensor] = []
    with ProgressBar("report", 2 * n_clips) as bar:
        for clip in (clip for group in groups for clip in group.clips):
            facts, waveform = _load(clip, seconds)
            clips.append({"id": f"clip-{len(clips)}", **facts})
            waveforms.append(waveform)
            bar.advance(1, clip.path.name)
        rates = [clip["sample_rate"] for clip in clips]
        gains = matching_gains(waveforms, rates)
        waveforms = [wave * 10 ** ((gain or 0.0) / 20) for wave, gain in zip(waveforms, gains, strict=True)]
        kind, waveforms, sounds = _encode(waveforms, rates, max_bytes)
        for clip, waveform, gain, sound in zip(clips, waveforms, gains, sounds, strict=True):
            clip["seconds"] = waveform.shape[1] / clip["sample_rate"]
            clip["is_excerpt"] = clip["seconds"] < clip["whole_seconds"] - 0.05
            uri = f"data:audio/{kind};base64,{base64.b64encode(sound).decode()}"
            clip |= {"gain": gain, "audio": uri, "file": f"{clip['path'].stem}.{kind}"}
            bar.advance(1, clip["path"].name)
    return clips, kind


def _load(clip: Clip, seconds: float) -> tuple[dict[str, Any], Tensor]:
    """The first `seconds` from the start of a clip, or the last ones of the file; float [1 or 2, samples]."""
    info = audio.audio_info(clip.path)
    n_samples = round(seconds * info.sample_rate)
    start = min(round(clip.start * info.sample_rate), max(0, info.samples - n_samples))
    wanted = clip.sample_rate or info.sample_rate
    rate = next((rate for rate in RATES if rate >= wanted), RATES[-1])
    waveform, _ = audio.read_audio(clip.path, rate, min(info.channels, 2), start, n_samples)
    facts = {"name": clip.name, "note": clip.note, "path": clip.path, "start": start / info.sample_rate}
    return {**facts, "whole_seconds": info.seconds, "sample_rate": rate}, waveform


def _encode(waveforms: list[Tensor], rates: list[int], max_bytes: int) -> tuple[str, list[Tensor], list[bytes]]:
    """The format, excerpts, and their sounds, whose base64 takes at most `max_bytes`."""
    kind = "flac"
    while True:
        settings = MP3 if kind == "mp3" else {}
        sounds = []
        for waveform, rate in zip(waveforms, rates, strict=True):
            file = io.BytesIO()
            soundfile.write(file, waveform.T.numpy(), rate, format=kind, **settings)
            sounds.append(file.getvalue())
        n_bytes = sum(4 * (len(sound) // 3 + 1) for sound in sounds)
        lengths = [waveform.shape[1] / rate for waveform, rate in zip(waveforms, rates, strict=True)]
        longest = max(lengths, default=0.0)
        if n_bytes <= max_bytes or longest <= SHORTEST_SECONDS:
            return kind, waveforms, sounds
        if kind == "mp3":
            seconds = max(SHORTEST_SECONDS, 0.95 * longest * max_bytes / n_bytes)
            ends = [round(seconds * rate) for rate in rates]
            waveforms = [waveform[:, :end] for waveform, end in zip(waveforms, ends, strict=True)]
        kind = "mp3"
