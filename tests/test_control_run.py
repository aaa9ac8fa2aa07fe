"""Text, chroma, notes and gaps through all stages: side files, shards, training, the Generator and the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import assert_one_line_error, cli, tones
from test_notes import write_midi

from audiovq import Generator
from audiovq.data import audio
from audiovq.data.conditions import chroma_classes, text_bytes, track_text
from audiovq.data.datasets import CodeWindows
from audiovq.data.notes import chord_frames, estimate_frames, note_frames
from audiovq.data.shards import Shards
from audiovq.data.tracks import DataConfig, Scan, scan
from audiovq.pretrained import checkpoint

CONDITIONERS = (
    "[{kind: label, name: genre}, {kind: text, max_bytes: 12}, {kind: chroma}, {kind: infill, n_codes: 6, rate: 0.5}]"
)
NOTES = [(0.0, "on", 0, 60), (0.75, "off", 0, 60), (0.5, "on", 0, 52), (2.0, "off", 0, 52)]


@pytest.fixture(scope="module")
def controlled_run(tmp_path_factory: pytest.TempPathFactory, music: Path, tiny_recipe: Path) -> Path:
    """All stages, with a text for each track and every conditioner that reads more than labels."""
    folder = tmp_path_factory.mktemp("texts") / "music"
    shutil.copytree(music, folder)
    (folder / "track-0.txt").write_text("rock, fast\n")
    (folder / "track-1.json").write_text('{"genre": "folk", "split": "train", "caption": "slow"}')
    out = tmp_path_factory.mktemp("runs") / "controlled"
    write_midi(folder / "track-0.mid", NOTES)
    (folder / "track-1.mid").write_text("no notes")
    prior = yaml.safe_load(tiny_recipe.read_text())["priors"][0]
    kinds = [CONDITIONERS, CONDITIONERS, "[{kind: label, name: genre}, {kind: notes}]"]
    priors = [{**prior, "model": prior["model"] | {"conditioners": yaml.safe_load(found)}} for found in kinds]
    options = ("--set", f"priors={json.dumps(priors)}", "--set", "codes.shifts=2")
    result = cli("train", tiny_recipe, "--data", folder, "--out", out, *options)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "it is set aside" in line]
    assert len(lines) == 1
    assert "track-1.mid: expected a MIDI file" in lines[0]
    assert "notes of track-1.wav are estimated" in lines[0]
    return out


def test_texts_come_from_txt_files_and_captions(controlled_run: Path) -> None:
    texts = {track.path: track_text(track.labels) for track in Scan.load(controlled_run / "data").tracks}
    assert texts == {"track-0.wav": "rock, fast", "track-1.wav": "slow", "track-2.wav": "", "track-3.wav": ""}
    assert (text_bytes("aé", 5) - 1).tolist() == [*"aé".encode(), -1, -1]
    assert (text_bytes("aé", 2) - 1).tolist() == list("aé".encode()[:2])


def test_a_text_that_is_not_utf8_sets_its_track_aside(tmp_path: Path) -> None:
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", tones(2, 8000, seed=i), 8000)
    (tmp_path / "0.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "1.txt").write_text("  \n")
    found = scan(tmp_path, DataConfig())
    assert [r.path for r in found.rejected] == ["0.wav"]
    assert found.rejected[0].reason.startswith("0.txt: not valid text in UTF-8")
    assert "text" not in found.tracks[0].labels


def test_every_shift_has_chroma_with_its_codes(controlled_run: Path, tiny_run: Path) -> None:
    shards, data = Shards(controlled_run / "codes"), Scan.load(controlled_run / "data")
    seen: dict[str, int] = {}
    for track in shards.index.tracks:
        waveform, _ = audio.read_audio(data.folder / track.path, 8000, 1)
        shift = seen.get(track.path, 0) * 128  # two shifts of a hop of 256
        seen[track.path] = seen.get(track.path, 0) + 1
        expected = chroma_classes(waveform[:, shift:], 8000, 256)
        assert np.array_equal(shards.frames(track, "chroma"), expected)
        assert len(expected) == track.lengths[0]
        expected = estimate_frames(waveform[:, shift:], 8000, 256)
        if track.path == "track-0.wav":  # it has a MIDI file
            rows = [(0.0, 0.75, 60), (0.5, 2.0, 52)]
            expected = note_frames(rows, 256 / 8000, track.lengths[0], shift / 8000)
        assert np.array_equal(shards.frames(track, "notes"), expected)
    assert seen == {"track-0.wav": 2, "track-1.wav": 2, "track-2.wav": 2, "track-3.wav": 1}
    plain = Shards(tiny_run / "codes")  # computed only if a prior asks for it
    assert not plain.index.chroma
    assert not list((tiny_run / "codes").glob("*chroma*"))
    assert not list((tiny_run / "codes").glob("*notes*"))
    with pytest.raises(ValueError, match="no chroma"):
        CodeWindows(plain, "train", 0, 32, 4, {}, 0, chroma=True)
    window = CodeWindows(shards, "train", 1, 16, 2, {}, 0, notes=True).window(shards.index.tracks[0], 4)
    assert window["chroma"].tolist() == shards.frames(shards.index.tracks[0], "notes")[2:11].tolist()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_window_has_text_chroma_and_the_right_side_of_its_gap(controlled_run: Path, level: int) -> None:
    shards = Shards(controlled_run / "codes")
    data = CodeWindows(
        shards, "train", level, 16, 2, {}, 0, text_bytes=12, chroma=True, infill_codes=6, infill_rate=0.5
    )
    track = data.tracks[0]
    own = [*shards.codes(track, level), *[16] * 9]
    n = track.lengths[level]
    for start, gap_end in ((0, 5), (6, 20), (n // 2 * 2 - 8, n), (4, None)):
        window = data.window(track, start, gap_end)
        assert window["text"].tolist() == text_bytes("rock, fast", 12).tolist()
        assert int(window["gap_end"]) == (-1 if gap_end is None else gap_end)
        if gap_end is not None:
            assert window["right"].tolist() == own[gap_end : gap_end + 6]
        for t in range(16):  # as `ChromaConditioner` reads it
            frame = int(window["chroma"][(start % 2**level + t) // 2**level])
            time = (start + t) // 2**level
            assert frame == (shards.frames(track, "chroma")[time] if time < track.lengths[0] else 0)
    gaps = [int(data[i]["gap_end"]) - int(data[i]["position"]) for i in range(200) if int(data[i]["gap_end"]) >= 0]
    assert 70 < len(gaps) < 130
    assert min(gaps) >= 1
    assert max(gaps) > 16
    assert max(gaps) <= 32


def test_generator_follows_text_chroma_and_guidance(controlled_run: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(controlled_run)
    for prior in generator.priors:
        with torch.no_grad():
            for parameter in prior.transformer.parameters():
                parameter *= 15
    soundfile.write(tmp_path / "song.wav", tones(1, 22050, seed=5), 22050)
    everything: dict[str, Any] = {"text": "rock", "chroma": tmp_path / "song.wav", "labels": {"genre": "folk"}}
    chroma = {"chroma": everything["chroma"]}
    options: list[dict[str, Any]] = [{}, {"text": "rock"}, chroma, everything, {**everything, "guidance": 4.0}]
    pieces = [generator.sample(1, seed=0, **chosen) for chosen in options]
    for i, a in enumerate(pieces):
        assert a.shape == (1, 1, 8000)
        for b in pieces[:i]:
            assert not torch.equal(a, b)
    assert torch.equal(generator.sample(1, seed=0, **everything, guidance=1), pieces[3])
    two = generator.sample(1, seed=0, n=2, **everything, guidance=[4.0, 4.0, 4.0])
    assert torch.equal(two[:1], pieces[4])


def test_generator_follows_notes_and_chords(controlled_run: Path, tmp_path: Path) -> None:
    """The finest level alone has notes: only its codes change, and what is the same notes is the same piece."""
    generator = Generator.from_pretrained(controlled_run)
    with torch.no_grad():
        for parameter in generator.priors[2].parameters():
            parameter *= 5
    midi = write_midi(tmp_path / "melody.mid", NOTES)
    rows = [(0.0, 0.75, 60), (0.5, 2.0, 52)]
    chords = [int(chord_frames(symbol, 2.0)[0]) for symbol in ("Am", "F")]
    ways: list[dict[str, Any]] = [
        {}, {"notes": midi}, {"notes": rows}, {"notes": note_frames(rows, 0.032, 63)}, {"notes": [60, 64]},
        {"chords": "Am:0.64 F:0.32"}, {"notes": np.array(([chords[0]] * 20 + [chords[1]] * 10) * 3)},
        {"notes": [60, 64], "guidance": [1, 1, 4]},
    ]  # fmt: skip
    pieces = [generator.sample_codes(2, seed=0, **way)[0] for way in ways]
    assert all(
        torch.equal(a, b) for piece in pieces for a, b in zip(piece.levels[:2], pieces[0].levels[:2], strict=True)
    )
    finest = [piece.levels[2].tolist() for piece in pieces]
    assert finest[1] == finest[2] == finest[3]
    assert finest[5] == finest[6]
    assert len({tuple(finest[i]) for i in (0, 1, 4, 5, 7)}) == 5
    known, unknown = (generator.bits_per_second(pieces[1:2], notes=notes)[0] for notes in (midi, None))
    assert known != unknown


def test_notes_and_chords_on_the_command_line(controlled_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    midi, out = write_midi(tmp_path / "melody.mid", NOTES), tmp_path / "x.wav"
    command = ("sample", "--model", controlled_run, "--seed", 0, "--out", out)
    result = cli(*command, "--notes", midi, "--num", 2, "--best", 1)
    assert result.exit_code == 0, result.output
    assert (
        soundfile.info(tmp_path / "x-0.wav" if (tmp_path / "x-0.wav").exists() else tmp_path / "x-1.wav").frames
        == 63 * 256
    )
    assert cli(*command, "--chords", "C G/B:0.2", "--seconds", 1).exit_code == 0
    assert_one_line_error(cli(*command, "--chords", "C Hm7"), "chords: Hm7: expected such as F#m")
    assert_one_line_error(cli(*command, "--notes", tmp_path / "none.mid"), "no such file")
    assert_one_line_error(cli(*command, "--notes", midi, "--chords", "C"), "expected one of them")
    assert_one_line_error(cli(*command, "--notes", midi, "--out", midi), "melody.mid")
    without = ("sample", "--model", tiny_run, "--seed", 0, "--out", out)
    assert_one_line_error(cli(*without, "--notes", midi), "notes: this model was trained without")
    assert_one_line_error(cli(*without, "--chords", "C"), "chords: this model was trained without")


def test_conditions_that_cannot_be(controlled_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = ("--seconds", 0.5, "--seed", 0, "--out", tmp_path / "x.wav")
    with_control, without = ("sample", "--model", controlled_run, *out), ("sample", "--model", tiny_run, *out)
    soundfile.write(tmp_path / "song.wav", tones(1, 8000), 8000)
    conditions = ("--text", "rock", "--chroma", tmp_path / "song.wav", "--guidance", "2,1.5,1")
    assert cli(*with_control, *conditions).exit_code == 0
    assert_one_line_error(cli(*with_control, "--text", "much too long a text"), "at most 12 bytes", "found 20")
    assert_one_line_error(cli(*with_control, "--chroma", tmp_path / "none.wav"), "no such file")
    assert_one_line_error(
        cli(*with_control, "--guidance", "3"), "guidance: expected a label, text, chroma, notes or chords"
    )
    assert_one_line_error(cli(*with_control, *conditions, "--guidance", "-1"), "guidance")
    assert_one_line_error(cli(*without, "--text", "rock"), "trained without texts")
    assert_one_line_error(cli(*without, "--chroma", tmp_path / "song.wav"), "trained without")


def test_a_controlled_prior_is_saved_whole(controlled_run: Path) -> None:
    prior, _ = checkpoint.load_prior(controlled_run / "prior-1")
    assert [c.kind for c in prior.config.conditioners] == ["label", "text", "chroma", "infill"]
    assert prior.transformer.n_prefix == 12 + 6
