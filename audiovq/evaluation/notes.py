"""Notes of a piece by an independent transcription, basic-pitch (Bittner 2022, arXiv:2203.09893). Needs the extra
audiovq[notes] and basic-pitch, whose wheel has the weights (Apache-2.0)."""

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
from torch import Tensor

from audiovq.evaluation.metrics import METRICS, Metric
from audiovq.utils.environment import require

INSTALL = "pip install 'audiovq[notes]', then pip install --no-deps basic-pitch"
PEAK = 0.5  # to which audio is scaled first: loudness does not count
FRAME_THRESHOLD = 0.3  # a pitch sounds in a frame (11.6 ms) if its probability is above
SHORTEST_SECONDS = 0.08  # shorter notes count in no statistic of harmony
STEP_SECONDS = 0.25  # between the moments at which harmony is looked at
CONSONANT, DISSONANT = (0, 3, 4, 5, 7, 8, 9), (1, 2, 6, 10, 11)  # semitones between two notes, within an octave


def check_installed() -> None:
    """Raises ValueError without the extra."""
    require("notes", "basic_pitch", "mir_eval", "onnxruntime", install=INSTALL)


@functools.cache
def _transcriber() -> tuple[Any, Any, Any]:
    """basic_pitch.inference with its model, and mir_eval's transcription metrics."""
    check_installed()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it lists other engines that are not installed
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            inference = importlib.import_module("basic_pitch.inference")
            weights = Path(importlib.import_module("basic_pitch").ICASSP_2022_MODEL_PATH).parent / "nmp.onnx"
            model = inference.Model(weights)
    finally:
        logging.disable(before)
    return inference, model, importlib.import_module("mir_eval.transcription")


Transcription = tuple[np.ndarray, np.ndarray]  # see `transcribe`
_transcribed: dict[bytes, Transcription] = {}  # the last ones, as every prefix has the same source


def transcribe(waveform: Tensor, sample_rate: int) -> Transcription:
    """The notes of a piece, float [channels, samples]: start and end in seconds and MIDI pitch, float [notes, 3]; and
    the probability that a pitch of the piano sounds, float [frames, 88]. ValueError without the extra."""
    inference, model, _ = _transcriber()
    mono = waveform.float().mean(dim=0).numpy()
    mono = librosa.util.fix_length(mono, size=max(len(mono), sample_rate // 10))  # the shortest that it can read
    mono = mono * (PEAK / max(float(np.abs(mono).max()), 1e-6))
    key = hashlib.sha1(mono.tobytes() + str(sample_rate).encode()).digest()
    if key not in _transcribed:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = Path(folder) / "piece.wav"
            soundfile.write(path, mono, sample_rate)
            output, _, notes = inference.predict(path, model)
        rows = sorted((float(start), float(end), float(pitch)) for start, end, pitch, *_ in notes)
        if len(_transcribed) >= 4:
            del _transcribed[next(iter(_transcribed))]
        _transcribed[key] = np.array(rows).reshape(-1, 3), output["note"]
    return _transcribed[key]


def note_f1(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """F1 of the notes that are transcribed in both: within 50 ms of onset and 50 cents of pitch, offsets ignored; 1 is best."""
    evaluate = _transcriber()[2].precision_recall_f1_overlap
    found, expected = (transcribe(w, sample_rate)[0] for w in (reconstruction, reference))
    if not len(found) or not len(expected):
        return float(len(found) == len(expected))
    hertz = [440 * 2 ** ((notes[:, 2] - 69) / 12) for notes in (expected, found)]
    return float(evaluate(expected[:, :2], hertz[0], found[:, :2], hertz[1], offset_ratio=None)[2])


def frame_f1(reconstruction: Tensor, reference: Tensor, sample_rate: int) -> float:
    """F1 of the pitches that sound in each frame of 11.6 ms; 1 is best."""
    found, expected = (transcribe(w, sample_rate)[1] > FRAME_THRESHOLD for w in (reconstruction, reference))
    n = min(len(found), len(expected))
    both, either = (found[:n] & expected[:n]).sum(), found[:n].sum() + expected[:n].sum()
    return float(2 * both / either) if either else 1.0


def harmony(waveform: Tensor, sample_rate: int) -> dict[str, float | None]:
    """Statistics of the transcribed notes of a piece; None where there is nothing to count.

    Returns:
        notes_per_second: onsets.
        polyphony: notes at a time, on average over every quarter second.
        consonance: of all pairs of notes at a time, the share that are thirds, fourths, fifths, sixths or octaves.
        top_moves: how often the highest note is another one a quarter second later.
        top_steps: of these moves, the share of at most two semitones.
    """
    notes, _ = transcribe(waveform, sample_rate)
    seconds = waveform.shape[-1] / sample_rate
    notes = notes[notes[:, 1] - notes[:, 0] > SHORTEST_SECONDS]
    good = bad = n_sounding = 0
    tops, moments = [], np.arange(STEP_SECONDS, seconds, STEP_SECONDS)
    for moment in moments:
        pitches = np.unique(notes[(notes[:, 0] <= moment) & (notes[:, 1] > moment), 2])
        n_sounding += len(pitches)
        tops.append(pitches.max() if len(pitches) else np.nan)
        intervals = np.abs(pitches[:, None] - pitches)[np.triu_indices(len(pitches), 1)] % 12
        good += int(np.isin(intervals, CONSONANT).sum())
        bad += int(np.isin(intervals, DISSONANT).sum())
    steps = np.abs(np.diff(tops))
    steps = steps[~np.isnan(steps)]  # rests are no moves
    moved = steps[steps > 0]
    return {
        "notes_per_second": len(notes) / seconds,
        "polyphony": n_sounding / max(len(moments), 1),
        "consonance": good / (good + bad) if good + bad else None,
        "top_moves": len(moved) / len(steps) if len(steps) else None,
        "top_steps": float((moved <= 2).mean()) if len(moved) else None,
    }


NOTE_METRICS: dict[str, Metric] = {**METRICS, "note_f1": note_f1, "frame_f1": frame_f1}
