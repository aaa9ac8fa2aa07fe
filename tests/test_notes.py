"""Which notes are heard, by an independent transcription."""

import math
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from audiovq.evaluation.metrics import compare
from audiovq.evaluation.notes import NOTE_METRICS, frame_f1, harmony, note_f1, transcribe

needs_notes = pytest.mark.skipif(
    not all(map(find_spec, ("basic_pitch", "mir_eval", "onnxruntime"))),
    reason="needs the extra audiovq[notes] and basic-pitch",
)
RATE = 22050


def melody(pitches: list[list[int]], seconds: float = 0.5) -> torch.Tensor:
    """Chords of plucked tones with five partials, one after the other: float [1, samples]."""
    t = np.arange(round(seconds * RATE)) / RATE
    chords = []
    for chord in pitches:
        tones = [440 * 2 ** ((pitch - 69) / 12) for pitch in chord]
        sound = sum(np.sin(2 * math.pi * hz * k * t) / k**2 for hz in tones for k in range(1, 6))
        chords.append(0.1 * sound * np.exp(-3 * t) * np.minimum(1, t / 0.01) * np.minimum(1, (seconds - t) / 0.05))
    return torch.from_numpy(np.concatenate(chords).astype(np.float32))[None]


@needs_notes
def test_the_notes_of_a_melody_are_heard_and_compared() -> None:
    tune = melody([[60], [64], [67], [72], [67], [65]])
    notes, frames = transcribe(tune, RATE)
    assert notes[:, 2].tolist() == [60, 64, 67, 72, 67, 65]
    assert notes[:, 0] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.05)
    assert frames.shape[1] == 88
    assert note_f1(tune * 0.1, tune, RATE) == 1  # loudness does not count
    other = melody([[60], [64], [67], [73], [68], [66]])
    assert note_f1(other, tune, RATE) == pytest.approx(0.5, abs=0.1)
    assert 0.3 < frame_f1(other, tune, RATE) < 0.7
    silence = torch.zeros_like(tune)
    assert note_f1(silence, tune, RATE) == frame_f1(silence, tune, RATE) == 0
    assert note_f1(silence, silence, RATE) == frame_f1(silence, silence, RATE) == 1


@needs_notes
def test_whole_tracks_are_compared_so_notes_across_seams_count_once() -> None:
    tune = melody([[60 + i % 5] for i in range(24)])  # 12 s: more than a window of the other metrics
    metrics = {name: NOTE_METRICS[name] for name in ("note_f1", "frame_f1")}
    assert compare(tune, tune, RATE, metrics) == {"note_f1": 1.0, "frame_f1": 1.0}


@needs_notes
def test_statistics_of_harmony() -> None:
    triads = harmony(melody([[60, 64, 67], [62, 65, 69], [60, 64, 67], [59, 62, 67]], seconds=1.0), RATE)
    assert triads["consonance"] > 0.85
    assert triads["polyphony"] == pytest.approx(3, abs=1)
    assert triads["notes_per_second"] == pytest.approx(4, abs=1.2)
    tritones = harmony(melody([[60, 66], [62, 68]], seconds=1.0), RATE)
    assert tritones["consonance"] < 0.5
    assert harmony(torch.zeros(1, RATE), RATE) == dict.fromkeys(triads, 0.0)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "basic_pitch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    sys.path_importer_cache.clear()
    transcribe.__globals__["_transcriber"].cache_clear()
    with pytest.raises(ValueError, match=r"notes: .*basic_pitch.* missing; pip install 'audiovq\[notes\]'"):
        transcribe(torch.zeros(1, 100), RATE)
