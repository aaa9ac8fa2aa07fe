"""Which notes sound at each moment: of a MIDI file, a recording, chord symbols, or keys. A frame is a number of 16
bits, one for each code of level 0. Bits 0 to 11 are the pitch classes C to B that sound, bits 12 to 15 the bass: 1 to
12 for C to B, `NO_BASS` if nothing sounds. The frame 0 is "unknown"."""

import itertools
import math
import numbers
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import librosa
import mido
import numpy as np
from torch import Tensor

from audiovq.config import whole_number
from audiovq.data import audio
from audiovq.data.conditions import frame_blocks
from audiovq.utils.progress import say

N_CLASSES, NO_BASS = 12, 13
SILENCE = NO_BASS << N_CLASSES
N_FRAMES = (NO_BASS + 1) << N_CLASSES  # frames are numbers below this
MIDI_SUFFIXES = (".mid", ".midi", ".MID", ".MIDI")
DRUMS = 9  # the channel of drums in General MIDI
LONGEST_SECONDS = 86400.0  # of a MIDI file and of chords
LOWEST, HIGHEST = 50.0, 800.0  # Hz, where the fundamentals of most notes are
THRESHOLD = 0.2  # of a spectral peak, relative to the frame's highest
HARMONIC = 0.7  # a peak at a multiple of a lower one is its overtone unless it is so many times as high
CHORD_SECONDS = 2.0  # without a number after the chord
CHORD = re.compile(r"(?:N|([A-G][#b]?)([^/:]*)(?:/([A-G][#b]?))?)(?::(\d*\.?\d+))?")
CHORDS = {
    "": (0, 4, 7), "m": (0, 3, 7), "7": (0, 4, 7, 10), "maj7": (0, 4, 7, 11), "m7": (0, 3, 7, 10), "dim": (0, 3, 6),
    "aug": (0, 4, 8), "sus2": (0, 2, 7), "sus4": (0, 5, 7), "6": (0, 4, 7, 9),
}  # fmt: skip

Note = tuple[float, float, int]  # start and end in seconds, MIDI pitch


def frame_of(pitches: Iterable[int]) -> int:
    """The frame in which these MIDI pitches sound."""
    pitches = sorted(pitches)
    bass = pitches[0] % N_CLASSES + 1 if pitches else NO_BASS
    return sum(1 << pitch for pitch in {p % N_CLASSES for p in pitches}) | bass << N_CLASSES


def note_frames(notes: Iterable[Note], frame_seconds: float, n_frames: int, begin: float = 0.0) -> np.ndarray:
    """The frames of notes from the second `begin` on, uint16 [n_frames]: all that sound in a part of a frame count."""
    classes, lowest = np.zeros(n_frames, np.uint16), np.full(n_frames, 128)
    for start, end, pitch in notes:
        first, last = (max(0.0, time - begin) / frame_seconds for time in (start, end))
        span = slice(int(first + 1e-6), math.ceil(last - 1e-6))
        classes[span] |= 1 << pitch % N_CLASSES
        lowest[span] = np.minimum(lowest[span], pitch)
    bass = np.where(lowest < 128, lowest % N_CLASSES + 1, NO_BASS)
    return classes | (bass << N_CLASSES).astype(np.uint16)


def read_midi(path: Path) -> list[Note]:
    """The notes of a MIDI file without drums, sorted; pedals do not count. ValueError for another file."""
    notes, now, last, tempo = list[Note](), 0.0, 0, 500_000
    sounding: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    try:
        file = mido.MidiFile(path, clip=True)
        if file.ticks_per_beat <= 0 or file.type == 2:
            raise ValueError("its times are not in beats" if file.type < 2 else "its tracks do not sound together")
        ticks = [itertools.accumulate(event.time for event in track) for track in file.tracks]
        rows = [(at, i, e) for i, track in enumerate(file.tracks) for at, e in zip(ticks[i], track, strict=True)]
        for at, track, event in sorted(rows, key=lambda row: row[0]):
            now, last = now + mido.tick2second(at - last, file.ticks_per_beat, tempo), at
            tempo = event.tempo if event.type == "set_tempo" else tempo
            if event.type not in ("note_on", "note_off") or event.channel == DRUMS:
                continue
            key = (track, event.channel, event.note)
            if event.type == "note_on" and event.velocity:
                sounding[key].append(now)
            else:  # it ends what began before; the next note of the key may begin at the same time
                ended = [start for start in sounding[key] if start < now]
                notes += [(start, now, event.note) for start in ended]
                sounding[key] = sounding[key][len(ended) :] if ended else []
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # mido fails in many ways on damaged files
        raise ValueError(f"{path}: expected a MIDI file ({str(error) or 'it is cut off'})") from None
    notes += [(start, now, pitch) for (*_, pitch), starts in sounding.items() for start in starts]
    if not notes or now > LONGEST_SECONDS:
        found = f"one of {now:g} s" if notes else "none"
        raise ValueError(f"{path}: expected a MIDI file with notes, found {found}")
    return sorted(notes)


def midi_of_track(path: Path, seconds: float) -> list[Note] | None:
    """The notes of `name.mid` or `name.midi` beside a track; None if there is none. One that cannot be read, or is
    much shorter or longer than the track, is set aside with a line."""
    for midi in filter(Path.is_file, map(path.with_suffix, MIDI_SUFFIXES)):
        try:
            notes = read_midi(midi)
            end = max(note[1] for note in notes)
            if 0.8 * seconds - 10 < end < 1.05 * seconds + 2:
                return notes
            raise ValueError(f"{midi}: expected about the length of {path.name}, {seconds:.1f} s, found {end:.1f} s")
        except ValueError as error:
            say(f"{error}; it is set aside, and the notes of {path.name} are estimated from the recording")
    return None


def estimate_frames(waveform: Tensor, sample_rate: int, hop_length: int) -> np.ndarray:
    """An estimate of the notes in float [channels, samples]: uint16 [ceil(samples / hop_length)]. A pitch sounds if a
    spectral peak between `LOWEST` and `HIGHEST` reaches `THRESHOLD` and is no overtone of a lower one. Times are as in
    `frame_blocks`."""
    frames = list[int]()
    for piece, n_fft, quiet in frame_blocks(waveform, sample_rate, hop_length):
        sizes: Any = {"sr": sample_rate, "n_fft": n_fft, "hop_length": hop_length, "center": False}
        sizes |= {"fmin": LOWEST, "fmax": min(HIGHEST, sample_rate / 2)}
        pitches, heights = librosa.piptrack(y=piece, threshold=THRESHOLD, **sizes)
        for i, silent in enumerate(quiet):
            peaks = np.flatnonzero(heights[:, i])
            hertz = [] if silent else _fundamentals(pitches[peaks, i], heights[peaks, i])
            frames.append(frame_of(round(69 + 12 * math.log2(f / 440)) for f in hertz))
    return np.array(frames, dtype=np.uint16)


def _fundamentals(hertz: np.ndarray, heights: np.ndarray) -> list[float]:
    """The frequencies, in rising order, that are no overtone of another one to a third of a semitone."""
    found = list[tuple[float, float]]()
    for f, height in zip(hertz.tolist(), heights.tolist(), strict=True):
        multiples = [f / low for low, other in found if height < HARMONIC * other and f / low > 1.5]
        if all(abs(12 * math.log2(ratio / round(ratio))) > 1 / 3 for ratio in multiples):
            found.append((f, height))
    return [f for f, _ in found]


def chord_frames(text: str, frame_seconds: float) -> np.ndarray:
    """Chord symbols such as `C G/B Am:4 N`, each of `CHORD_SECONDS` or as many as its number says, once: uint16
    [n_frames]. Raises ValueError for what is no chord."""
    frames, time = list[int](), 0.0
    for symbol in text.split():
        match = CHORD.fullmatch(symbol)
        if match is None or (match[1] and match[2] not in CHORDS):
            known = "N (silence), " + ", ".join(f"C{kind}" for kind in CHORDS)
            raise ValueError(f"chords: {symbol:.40}: expected such as F#m, Bb/D or C:4 (seconds); known are {known}")
        seconds = float(match[4] or CHORD_SECONDS)
        time += seconds
        if not 0 < seconds <= time <= LONGEST_SECONDS:
            raise ValueError(f"chords: {symbol:.40}: expected more than 0 seconds, and at most {LONGEST_SECONDS:g}")
        frame = SILENCE
        if match[1]:
            root, bass = (int(librosa.note_to_midi(note)) % N_CLASSES for note in (match[1], match[3] or match[1]))
            frame = frame_of([bass, *(N_CLASSES + root + step for step in CHORDS[match[2]])])
        frames += [frame] * (max(1, round(time / frame_seconds)) - len(frames))
    if not frames:
        raise ValueError('chords: expected symbols such as "C G/B Am F", found none')
    return np.array(frames, dtype=np.uint16)


def requested_frames(notes: Any, sample_rate: int, hop_length: int, n_held: int = 1) -> np.ndarray:
    """The frames of the option `notes` of `PieceOptions`, uint16 [n_frames]; keys are held for `n_held` frames.
    Raises ValueError for what is none."""
    if isinstance(notes, str | Path):
        if Path(notes).suffix.lower() not in MIDI_SUFFIXES:
            return estimate_frames(*audio.read_audio(Path(notes), sample_rate), hop_length)
        notes = read_midi(Path(notes))
    try:
        if isinstance(notes, Tensor | np.ndarray):
            frames = np.asarray(notes.cpu() if isinstance(notes, Tensor) else notes)
            are_frames = frames.min() >= 0 and not 0 < frames.max() < 128 and frames.max() < N_FRAMES  # and no keys
            if frames.ndim == 1 and frames.dtype.kind in "iu" and are_frames:
                return frames.astype(np.uint16)
            raise TypeError
        if all(isinstance(note, numbers.Integral) for note in notes):
            if all(0 <= key < 128 for key in notes):
                return np.full(n_held, frame_of(notes), dtype=np.uint16)
            raise TypeError
        rows = [(float(start), float(end), whole_number(pitch, "pitch")) for start, end, pitch in notes]
        if not all(0 <= start <= end <= LONGEST_SECONDS and 0 <= pitch < 128 for start, end, pitch in rows):
            raise TypeError
        seconds = hop_length / sample_rate
        if not (n_frames := math.ceil(max(end for _, end, _ in rows) / seconds)):
            raise TypeError
    except (TypeError, ValueError):
        known = "a MIDI file, a recording, keys from 0 to 127 such as [60, 64, 67], notes (start, end, pitch)"
        raise ValueError(f"notes: expected {known}, or frames, found {notes!r:.60}") from None
    return note_frames(rows, seconds, n_frames)
