"""The player against what torch computed for the same small model (tests/tiny_generator.py of the repository)."""

import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audiovq_player import Player
from audiovq_player.cli import main
from audiovq_player.decoder import Decoder
from audiovq_player.drawing import gumbel_noise, next_code
from audiovq_player.line import OUTSIDE, Line
from audiovq_player.player import redraw

TINY = Path(__file__).parent / "tiny"
SECONDS = 1.25
EXPECTED = np.load(TINY / "expected.npz")
CHROMA = np.random.default_rng(1).integers(0, 14, 157 - 20)
NOTES = np.random.default_rng(2).integers(0, 14 << 12, 157 - 30)
OPTIONS = {
    "plain": {"seed": 1},
    "label": {"seed": 2, "labels": {"genre": "rock"}, "temperature": [1.2, 1.0, 0.9]},
    "likeliest": {"seed": 2, "labels": {"genre": "folk"}, "temperature": 0, "guidance": 1.5},
    "text": {"seed": (1 << 63) - 1, "item": 3, "text": "año", "top_k": 4, "top_p": 0.7},
    "chroma": {"seed": 4, "chroma": CHROMA},
    "notes": {"seed": 6, "notes": NOTES, "guidance": [1.0, 1.5, 1.0]},
    "given": {"seed": 5, "labels": {"genre": "folk"}},
}


@pytest.fixture(scope="module")
def player() -> Player:
    return Player(TINY)


def expected(name: str) -> list[np.ndarray]:
    return [EXPECTED[f"{name}-{i}"].astype(np.int64) for i in range(3)]


def given_codes() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    levels = [random.integers(0, 16, n) for n in (157, 313, 313)]
    levels[0][20:50] = levels[0][80:100] = -1
    levels[1][40:100] = -1
    levels[2][:] = -1
    return levels


@pytest.mark.parametrize("name", OPTIONS)
def test_codes_are_those_of_torch(player: Player, name: str) -> None:
    options = dict(OPTIONS[name])
    if name == "given":
        options |= {"given": given_codes(), "n_samples": 10000}
    else:
        options["seconds"] = SECONDS
    piece = player.piece(**options, keep_codes=True)
    waveform = np.concatenate(list(piece.blocks()), axis=1)
    assert waveform.shape == (1, 10000)
    for found, wanted in zip(piece.codes, expected(name), strict=True):
        assert np.array_equal(found, wanted)
    if name == "given":
        for found, level in zip(piece.codes, given_codes(), strict=True):
            assert np.array_equal(found[level >= 0], level[level >= 0])


def test_the_waveform_is_that_of_torch(player: Player) -> None:
    waveform = player.sample(SECONDS, **OPTIONS["plain"])
    assert waveform.dtype == np.float32
    assert np.abs(EXPECTED["plain-waveform"]).max() > 0.01
    assert np.abs(waveform - EXPECTED["plain-waveform"]).max() < 1e-5


def test_blocks_are_the_piece_for_all_lengths(player: Player) -> None:
    whole = player.sample(SECONDS, seed=1, block_seconds=60)
    for seconds in (0.01, 0.05):
        blocks = list(player.stream(SECONDS, seed=1, block_seconds=seconds))
        assert len(blocks) > 5
        assert np.abs(np.concatenate(blocks, axis=1) - whole).max() < 1e-5
    assert player.sample(1 / 8000, seed=1).shape == (1, 1)


def test_chunks_cover_a_piece_once(player: Player) -> None:
    decoder = Decoder(player.model)
    for n_samples in (1, 127, 128, 10000):
        chunks = list(decoder.chunks(n_samples, 1024))
        assert [start for _, start, _, _ in chunks] == [0, *(end for _, _, end, _ in chunks[:-1])]
        assert chunks[-1][2] == n_samples
        for low, start, end, high in chunks:
            assert low % decoder.period == 0
            assert low <= max(0, start - decoder.facts["context"])
            assert high == n_samples if end == n_samples else high >= end + decoder.facts["context"]


def test_without_end_it_goes_on_at_constant_memory(player: Player) -> None:
    piece = player.piece(endless=True, seed=1, block_seconds=0.2, keep_codes=True)
    piece.ahead = 4000  # half a second, so that the threads wait for the reader
    for line in piece.lines:
        line.codes = line.codes[:300].copy()
    blocks = list(itertools.islice(piece.blocks(), 40))
    n = sum(block.shape[1] for block in blocks)
    assert n > 6 * 8000
    assert piece.lines[2].count * 32 <= n + 4000 + 64
    assert sum(thread.name.startswith("audiovq-player") for thread in threading.enumerate()) == 0
    again = player.piece(endless=True, seed=1, keep_codes=True)
    later = list(itertools.islice(again.blocks(), 8))
    found = np.concatenate(later, axis=1)
    assert np.abs(found[:, :n] - np.concatenate(blocks, axis=1)[:, : found.shape[1]]).max() < 1e-5


def test_a_stretch_is_drawn_anew(player: Player) -> None:
    codes = expected("plain")
    given = redraw(codes, player.hop_lengths, 4000, 6000)
    assert [np.flatnonzero(level < 0)[[0, -1]].tolist() for level in given] == [[62, 93], [124, 187], [124, 187]]
    patches = redraw(codes, player.hop_lengths, 4000, 6000, 256)  # whole patches of four codes
    assert [np.flatnonzero(level < 0)[[0, -1]].tolist() for level in patches] == [[60, 95], [120, 191], [120, 191]]
    piece = player.piece(given=given, n_samples=10000, seed=9, keep_codes=True)
    list(piece.blocks())
    for found, old, level in zip(piece.codes, codes, given, strict=True):
        assert np.array_equal(found[level >= 0], old[level >= 0])
        assert (found[level < 0] != old[level < 0]).any()
        assert (found >= 0).all()


def test_noise_is_philox_by_position() -> None:
    whole = gumbel_noise(7, 2, 1, 0, 9, 6)
    assert np.array_equal(gumbel_noise(7, 2, 1, 4, 9, 6), whole[4:])
    assert whole.dtype == np.float32
    assert abs(gumbel_noise(0, 0, 0, 0, 2000, 16).mean() - 0.5772) < 0.02


def test_next_code_keeps_the_likeliest() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    noise = np.array([0, 0, 9, 12], np.float32)
    assert next_code(logits, noise, 1.0) == 3
    assert next_code(logits, noise, 1.0, top_k=3) == 2
    assert next_code(logits, noise, 1.0, top_p=0.79) == 0
    assert next_code(logits, noise, 1.0, top_p=0.9) == 2
    assert next_code(logits, noise, 0.0) == 0
    assert next_code(logits, noise, 1.0, top_p=1e-9) == 0
    with pytest.raises(ValueError, match="finite"):
        next_code(np.array([0, np.nan], np.float32), noise[:2], 1.0)


def test_a_line_keeps_the_last_codes() -> None:
    line = Line(None, 4, threading.Condition())
    for code in range(10):
        line.put(code)
    assert line.get(np.arange(6, 10)).tolist() == [6, 7, 8, 9]
    assert line.get(np.array([-1])).tolist() == [OUTSIDE]
    short = Line(3, 99, threading.Condition())
    short.put(5)
    assert short.get(np.array([-1, 0, 3])).tolist() == [OUTSIDE, 5, OUTSIDE]
    assert not short.has(2)
    assert short.has(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "expected a length"),
        ({"seconds": 0}, "above 0"),
        ({"seconds": float("nan")}, "above 0"),
        ({"seconds": 1, "seed": -1}, "seed"),
        ({"seconds": 1, "temperature": [1, 2]}, "one per level"),
        ({"seconds": 1, "top_p": 0}, "top_p"),
        ({"seconds": 1, "labels": {"mood": "sad"}}, "knows the labels: genre"),
        ({"seconds": 1, "labels": {"genre": "jazz"}}, "folk, rock"),
        ({"seconds": 1, "text": "seven b"}, "at most 6 bytes"),
        ({"seconds": 1, "guidance": 3}, "to follow"),
        ({"given": [np.zeros(5, int)] * 3}, "codes per level"),
        ({"given": [np.full(4, 99), np.full(8, -1), np.full(8, -1)]}, "from -1 to 15"),
        ({"given": [np.zeros(4, int), np.zeros(8, int), np.zeros(8, int)]}, "to be drawn"),
    ],
)
def test_bad_input_is_a_value_error(player: Player, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        player.piece(**options)


def run(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "audiovq_player", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def damaged(folder: Path, change: str) -> Path:
    shutil.copytree(TINY, folder)
    facts, prior = folder / "generator.json", folder / "prior-1.onnx"
    if change == "cut":
        prior.write_bytes(prior.read_bytes()[:-9])
    elif change == "other":
        prior.write_bytes(prior.read_bytes()[:-1] + b"x")
    elif change == "missing":
        prior.unlink()
    elif change == "no onnx":
        content = json.loads(facts.read_text())
        prior.write_bytes(b"nothing")
        content["files"]["prior-1.onnx"] = {"bytes": 7, "sha256": hashlib.sha256(b"nothing").hexdigest()}
        facts.write_text(json.dumps(content))
    elif change == "version":
        facts.write_text(facts.read_text().replace("audiovq-generator-1", "audiovq-generator-7"))
    elif change == "json":
        facts.write_text("{")
    elif change == "keys":
        facts.write_text('{"format": "audiovq-generator-1"}')
    else:
        facts.unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cut", "bytes; copy it again"),
        ("other", "other bytes"),
        ("missing", "expected a file of the model"),
        ("no onnx", "cannot use it"),
        ("version", "audiovq-generator-7; update audiovq-player"),
        ("json", "expected JSON"),
        ("keys", "expected channels"),
        ("nothing", "expected a folder with generator.json"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, change: str, words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--model", str(damaged(tmp_path / "model", change)), "--out", str(tmp_path / "x.wav")])
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert len(output.splitlines()) == 1
    assert words in output
    assert output.startswith("audiovq-player: ")
    assert not (tmp_path / "x.wav").exists()


def test_the_command_writes_what_the_player_makes(tmp_path: Path, player: Player) -> None:
    wav, codes = tmp_path / "a.wav", tmp_path / "a.npz"
    options = ("--seconds", SECONDS, "--seed", 2, "--label", "genre=rock", "--temperature", "1.2,1,0.9")
    code, output = run("sample", "--model", TINY, *options, "--out", wav, "--codes", codes)
    assert code == 0, output
    assert str(wav) in output
    waveform, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    assert rate == 8000
    assert np.abs(waveform.T - player.sample(SECONDS, **OPTIONS["label"])).max() < 1e-4  # 16 bits
    saved = np.load(codes)
    for i, level in enumerate(expected("label")):
        assert np.array_equal(saved[f"level_{i}"], level)
    again = ("--given", codes, "--from", 0.5, "--to", 0.75, "--seed", 3)
    code, output = run("sample", "--model", TINY, *again, "--out", tmp_path / "b.flac")
    assert code == 0, output
    changed = soundfile.read(tmp_path / "b.flac", dtype="float32", always_2d=True)[0]
    assert changed.shape == waveform.shape
    assert np.abs(changed[:3500] - waveform[:3500]).max() < 1e-3
    assert np.abs(changed[4100:5900] - waveform[4100:5900]).max() > 1e-3


def test_several_pieces_get_numbers(tmp_path: Path) -> None:
    code, output = run(
        "sample", "--model", TINY, "--seconds", 0.2, "--seed", 1, "--num", 2, "--out", tmp_path / "a.wav"
    )
    assert code == 0, output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.wav", "a-1.wav"]
    first, second = (soundfile.read(tmp_path / f"a-{i}.wav")[0] for i in range(2))
    assert not np.array_equal(first, second)


def test_a_piece_goes_to_standard_output(player: Player) -> None:
    options = ["sample", "--model", str(TINY), "--seconds", str(SECONDS), "--seed", "1", "--out", "-"]
    done = subprocess.run([sys.executable, "-m", "audiovq_player", *options], capture_output=True, check=True)
    assert done.stderr.decode().startswith("-: 1.25 s, seed 1")
    waveform, rate = soundfile.read(io.BytesIO(done.stdout), always_2d=True)
    assert rate == 8000
    assert np.abs(waveform.T - player.sample(SECONDS, seed=1)).max() < 1e-4  # 16 bits


def test_a_reader_may_close_standard_output() -> None:
    options = ["sample", "--model", str(TINY), "--seconds", "600", "--out", "-"]
    with subprocess.Popen(
        [sys.executable, "-m", "audiovq_player", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(12)[8:] == b"WAVE"
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (141, b"")


def test_info_says_what_the_model_is(capsys: pytest.CaptureFixture) -> None:
    main(["info", "--model", str(TINY)])
    output = capsys.readouterr().out
    assert "8000 Hz" in output
    assert "genre: folk, rock" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--label", "folk"), "NAME=VALUE"),
        (("--temperature", "hot"), "expected one number"),
        (("--out", "music.mp9"), "expected a name that ends in"),
        (("--out", "no/such/folder/music.wav"), "folder"),
        (("--out", "-", "--num", "2"), "expected one piece and a pipe"),
        (("--from", "1"), "--given"),
        (("--given", "none.npz"), "none.npz"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "--model", str(TINY), *arguments])
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert len(output.splitlines()) == 1
    assert words in output


def test_no_torch_is_loaded() -> None:
    code = "import sys, audiovq_player.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
