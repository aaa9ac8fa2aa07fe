"""Notes: frames from MIDI, recordings, chords and keys, each against the naive computation; and their conditioner."""

from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
import torch
from test_prior import CONFIG, spec

from audiovq.data import notes
from audiovq.data.notes import (
    SILENCE,
    chord_frames,
    estimate_frames,
    frame_of,
    note_frames,
    read_midi,
    requested_frames,
)
from audiovq.prior.conditioners import CONDITIONERS, Conditions
from audiovq.prior.prior import PriorConfig

Event = tuple[float, str, int, int]  # seconds, kind, channel, pitch


def write_midi(path: Path, events: list[Event], tempo: int = 500_000) -> Path:
    """A MIDI file at 480 ticks a quarter of half a second."""
    file, track, now = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack(), 0
    file.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=tempo))
    for seconds, kind, channel, pitch in sorted(events):
        tick = round(seconds * 480e6 / tempo)
        velocity = 0 if kind == "zero" else 80
        name = "note_off" if kind == "off" else "note_on"
        track.append(mido.Message(name, channel=channel, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    file.save(path)
    return path


def classes(frame: int) -> set[int]:
    return {i for i in range(12) if int(frame) >> i & 1}


def bass(frame: int) -> int:
    """Pitch class of the bass, 12 for none, -1 for unknown."""
    return (int(frame) >> 12) - 1


# --- frames -----------------------------------------------------------------------------------------------------------


def test_a_frame_has_what_sounds_in_its_span() -> None:
    random = np.random.default_rng(0)
    starts = random.uniform(0, 9, 60)
    rows = [(s, s + random.uniform(0.01, 2), int(random.integers(20, 100))) for s in starts]
    for begin, seconds in ((0.0, 0.25), (1.3, 0.046)):
        found = note_frames(rows, seconds, 200, begin)
        assert found.dtype == np.uint16
        for i, frame in enumerate(found):
            left, right = begin + i * seconds, begin + (i + 1) * seconds
            sounding = [p for s, e, p in rows if s < right and e > left]
            assert classes(frame) == {p % 12 for p in sounding}
            assert bass(frame) == (min(sounding) % 12 if sounding else 12)
    assert note_frames([], 1.0, 2).tolist() == [SILENCE, SILENCE]
    assert note_frames([(0.5, 1.0, 60)], 0.5, 3).tolist() == [SILENCE, frame_of([60]), SILENCE]  # no blur at borders


# --- MIDI -------------------------------------------------------------------------------------------------------------


def test_midi_gives_notes_in_seconds_without_drums(tmp_path: Path) -> None:
    path = write_midi(tmp_path / "a.mid", [
        (0.0, "on", 0, 60), (1.0, "off", 0, 60), (0.5, "on", 1, 36), (2.0, "zero", 1, 36), (0.0, "on", 9, 40), (1.0, "off", 9, 40),
        (2.0, "on", 0, 64), (2.5, "on", 0, 64), (3.0, "off", 0, 64), (3.0, "on", 2, 67), (4.0, "off", 5, 1),
    ], tempo=750_000)  # fmt: skip
    expected = [(0, 1, 60), (0.5, 2, 36), (2, 3, 64), (2.5, 3, 64), (3, 4, 67)]  # the last is never released
    assert [tuple(np.round(note, 3)) for note in read_midi(path)] == expected
    frames = requested_frames(path, 8000, 4000)
    assert frames.tolist() == note_frames(expected, 0.5, 8).tolist()


def test_repeated_notes_and_tracks_of_one_channel_are_kept(tmp_path: Path) -> None:
    """A key that is struck again at the tick at which it is released, in either order, and a key that two tracks hold."""
    file = mido.MidiFile(ticks_per_beat=480)
    parts: list[list[tuple[str, int, int]]] = [  # name, key, ticks after the last
        [("note_on", 60, 0), ("note_on", 60, 480), ("note_off", 60, 0), ("note_off", 60, 480), ("note_on", 70, 0), ("note_off", 70, 0)],
        [("note_on", 64, 0), ("note_off", 64, 480), ("note_on", 64, 0), ("note_off", 64, 480)],
        [("note_on", 48, 0), ("note_off", 48, 1920)],
        [("note_on", 48, 480), ("note_off", 48, 480)],
    ]  # fmt: skip
    for part in parts:
        track = mido.MidiTrack(mido.Message(name, note=key, time=ticks) for name, key, ticks in part)
        file.tracks.append(track)
    file.tracks[1].insert(2, mido.MetaMessage("set_tempo", tempo=1_000_000))  # slower from 0.5 s on, all tracks
    file.save(tmp_path / "a.mid")
    expected = [(0, 0.5, 60), (0.5, 1.5, 60), (0, 0.5, 64), (0.5, 1.5, 64), (0, 3.5, 48), (0.5, 1.5, 48)]
    assert read_midi(tmp_path / "a.mid") == sorted(expected)


@pytest.mark.parametrize("content", [b"", b"hello", b"MThd\0\0\0\6\0\1\0\1\xe7\x28MTrk", b"MThd\0\0\0\6\0\1\0\0\1\xe0"])
def test_a_midi_file_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mid").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.mid: expected a MIDI file") as error:
        read_midi(tmp_path / "x.mid")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        read_midi(tmp_path / "y.mid")


@pytest.mark.parametrize("name", ["track.mid", "track.midi", "track.MID"])
def test_the_midi_file_beside_a_track_must_have_its_length(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    track = tmp_path / "track.flac"
    assert notes.midi_of_track(track, 30) is None
    write_midi(tmp_path / name, [(0.0, "on", 0, 60), (30.0, "off", 0, 60)])
    assert notes.midi_of_track(track, 31) == [(0.0, 30.0, 60)]
    assert not capsys.readouterr().err
    for seconds in (20, 60):
        assert notes.midi_of_track(track, seconds) is None
        line = " ".join(capsys.readouterr().err.split())
        assert f"{name}: expected about the length of track.flac, {seconds}.0 s, found 30.0 s; it is set aside" in line


# --- recordings -------------------------------------------------------------------------------------------------------


def test_notes_are_heard_in_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chords of tones with five overtones each: the third (a fifth) and the fifth (a major third) count as no notes."""
    rate, hop = 22050, 1024
    time = np.arange(20 * hop) / rate
    chords = [(48, 64, 67), (45, 60, 69), (53, 57, 72), (43, 59, 62)]
    overtones = 0.1 * 0.5 ** np.arange(6)[:, None]

    def tone(pitch: int) -> np.ndarray:
        angles = np.arange(1, 7)[:, None] * (2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        return (overtones * np.sin(angles)).sum(axis=0)

    wave = np.concatenate([*(sum(map(tone, chord)) for chord in chords), np.zeros(20 * hop + 7)])
    found = estimate_frames(torch.from_numpy(wave).float()[None], rate, hop)
    assert len(found) == 101
    for i, chord in enumerate(chords):  # away from the changes there is one answer
        assert set(found[20 * i + 3 : 20 * i + 17].tolist()) == {frame_of(chord)}
    assert set(found[83:].tolist()) == {SILENCE}
    soundfile.write(tmp_path / "song.wav", wave, rate, subtype="FLOAT")
    assert np.array_equal(requested_frames(str(tmp_path / "song.wav"), rate, hop), found)
    monkeypatch.setattr("audiovq.data.conditions.FRAMES_AT_ONCE", 9)
    assert np.array_equal(estimate_frames(torch.from_numpy(wave).float()[None], rate, hop), found)


# --- chords and keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symbol", "pitches", "low"), [
    ("C", {0, 4, 7}, 0), ("G/B", {7, 11, 2}, 11), ("Am", {9, 0, 4}, 9), ("F#7", {6, 10, 1, 4}, 6), ("Bbmaj7", {10, 2, 5, 9}, 10),
    ("Dm7", {2, 5, 9, 0}, 2), ("Bdim", {11, 2, 5}, 11), ("Eaug", {4, 8, 0}, 4), ("Asus2", {9, 11, 4}, 9), ("Gsus4", {7, 0, 2}, 7),
    ("Eb6", {3, 7, 10, 0}, 3), ("Am/G", {9, 0, 4, 7}, 7), ("N", set(), 12), ("C/Bb", {0, 4, 7, 10}, 10),
])  # fmt: skip
def test_chord_symbols(symbol: str, pitches: set[int], low: int) -> None:
    (frame,) = chord_frames(symbol, 2.0)
    assert (classes(frame), bass(frame)) == (pitches, low)


def test_chords_last_two_seconds_or_as_long_as_they_say() -> None:
    found = chord_frames("C G/B:0.7 N:.5 F", 0.2)  # borders at 2, 2.7, 3.2 and 5.2 s, rounded to whole frames
    c, g, f = (int(chord_frames(symbol, 2.0)[0]) for symbol in ("C", "G/B", "F"))
    assert found.tolist() == [c] * 10 + [g] * 4 + [SILENCE] * 2 + [f] * 10


@pytest.mark.parametrize("text", ["H", "C G/H", "Cfoo", "C:0", "C:-1", "c", "C/", "C:1e9", "", "N/C", "C G:999999"])
def test_chords_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^chords: ") as error:
        chord_frames(text, 0.1)
    assert (text.split() or [""])[-1] in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_notes_and_arrays_are_asked_for() -> None:
    assert requested_frames([67, 60, 64], 8000, 800, 3).tolist() == [frame_of([60, 64, 67])] * 3
    assert requested_frames(list(np.array([60, 64, 67])), 8000, 800).tolist() == [frame_of([60, 64, 67])]
    assert requested_frames([], 8000, 800, 2).tolist() == [SILENCE] * 2
    rows = [(0, 0.15, 60), (0.1, 0.4, 50)]
    assert requested_frames(rows, 8000, 800).tolist() == note_frames(rows, 0.1, 4).tolist()
    assert requested_frames(torch.tensor([0, SILENCE]), 8000, 800).tolist() == [0, SILENCE]
    for wrong in ([128], [-1], [(1, 0.5, 60)], np.array([1.5]), np.array([70000]), np.zeros((1, 2), int), 7, [(1, 2)],
                  np.zeros(0, int), "none.wav", np.array([60, 64, 67]), torch.tensor([60]), [(0, 0, 60)], [(0, 1, 60.5)]):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected|no such file"):
            requested_frames(wrong, 8000, 800)


# --- the conditioner --------------------------------------------------------------------------------------------------


def test_a_frame_is_the_sum_of_its_pitch_classes_and_its_bass() -> None:
    module = CONDITIONERS["notes"](CONDITIONERS["notes"].Config(), 16, spec(0)).eval()
    chord, silence = frame_of([60, 64, 67, 76]), SILENCE
    given = Conditions({}, torch.tensor([9000]), torch.tensor([0]), chroma=torch.tensor([[chord, silence, 0, 0]]))
    found = module(given, 3)[0]
    assert torch.allclose(found[0], module.classes[[0, 4, 7]].sum(0) + module.embedding.weight[1])
    assert torch.equal(found[1], module.embedding.weight[13])
    assert torch.equal(found[2], module.embedding.weight[0])  # unknown
    given.chroma = None
    assert torch.equal(module(given, 3)[0, 0], module.embedding.weight[0])
    dropped = Conditions({}, torch.full((400,), 9000), torch.zeros(400).long(), chroma=torch.full((400, 2), chord))
    unknown = (module.train()(dropped, 1)[:, 0] == module.embedding.weight[0]).all(-1)
    assert 50 < int(unknown.sum()) < 110  # a fifth


def test_a_prior_has_chroma_or_notes() -> None:
    both = tuple(CONDITIONERS[kind].Config() for kind in ("chroma", "notes"))
    with pytest.raises(ValueError, match="expected chroma or notes, found both"):
        PriorConfig(transformer=CONFIG, conditioners=both)
