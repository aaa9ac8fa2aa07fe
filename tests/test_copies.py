"""The copy report: the fast search against comparing everything with everything, and the report on a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_line_error, cli

from audiovq.data.codes import Codes
from audiovq.data.shards import ShardIndex, Shards, ShardWriter
from audiovq.data.tracks import Track
from audiovq.evaluation.copies import SHORTEST, copy_reports, longest_runs, symbols_of

HOPS = [256, 128, 64]
INDEX = ShardIndex("f" * 64, 8000, HOPS, 1024)


def naive_longest(piece: np.ndarray, tracks: list[np.ndarray]) -> int:
    """Every alignment of the piece with every track."""
    longest = 0
    for track in tracks:
        for shift in range(-len(piece) + 1, len(track)):
            run = 0
            for i, symbol in enumerate(piece):
                run = run + 1 if 0 <= i + shift < len(track) and symbol == track[i + shift] else 0
                longest = max(longest, run)
    return longest if longest >= SHORTEST else 0


def music_like(random: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Held symbols."""
    held = random.integers(1, 6, n)
    return np.repeat(random.integers(0, size, n), held)[:n]


@pytest.mark.parametrize("seed", range(6))
def test_the_search_equals_comparing_everything(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = 3 + seed
    tracks = [music_like(random, n, size) for n in (40, 3, 61, 0, 90, 33)]
    pieces = [music_like(random, n, size) for n in (50, 4, 30, 0)]
    pieces[0][10:35] = tracks[4][20:45]
    pieces[0][22] += 1
    pieces[2][:22] = tracks[seed % 2 * 2][:22]  # beginning with beginning, of the first track of all or a later one
    for piece, run in zip(pieces, longest_runs(pieces, tracks), strict=True):
        assert run.length == naive_longest(piece, tracks)
        part, same = piece[run.start :][: run.length], tracks[run.track][run.track_start :][: run.length]
        assert part.tolist() == same.tolist()  # it is where it says
        assert len(part) == run.length


def test_symbols_of_all_levels_are_equal_where_all_codes_are() -> None:
    random = np.random.default_rng(0)
    levels = [random.integers(0, 4, n) for n in (20, 40, 79)]
    symbols = symbols_of(levels, INDEX)
    assert symbols.shape == (20,)
    assert symbols.min() >= 0
    other = [level.copy() for level in levels]
    other[2][4 * 7 + 3] += 1
    other[1][2 * 9] += 1
    assert np.flatnonzero(symbols_of(other, INDEX) != symbols).tolist() == [7, 9]
    assert symbols_of([level[: 5 * 2**i] for i, level in enumerate(levels)], INDEX).tolist() == symbols[:5].tolist()
    assert symbols_of(levels[:1], INDEX).tolist() == levels[0].tolist()


def codes_of(levels: list[np.ndarray], n_samples: int) -> Codes:
    return Codes([torch.from_numpy(level) for level in levels], n_samples, 8000, HOPS[: len(levels)], 1024, 1, "f" * 64)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three training tracks, one of them again with a shift of half a top code, and a held-out one, all of random codes."""
    random = np.random.default_rng(1)
    writer = ShardWriter(tmp_path / "codes", ShardIndex("f" * 64, 8000, HOPS, 1024))
    for path, split, n, again in (
        ("a", "train", 200, False),
        ("b", "train", 150, False),
        ("b", "train", 150, True),
        ("c", "train", 90, False),
        ("v", "valid", 300, False),
    ):
        n_samples = 256 * n - (128 if again else 0)
        levels = [random.integers(0, 1024, -(-n_samples // hop)) for hop in HOPS]
        writer.add(Track(path, "", 8000, 1, n_samples, split), codes_of(levels, n_samples))
    writer.finish()
    return tmp_path


def test_a_copied_stretch_is_found_with_its_track_and_time(run: Path) -> None:
    random = np.random.default_rng(2)
    shards = (
        np.load(run / "codes" / "shard-00000-level-0.npy"),
        *(np.load(run / "codes" / f"shard-00000-level-{i}.npy") for i in (1, 2)),
    )
    piece = [random.integers(0, 1024, 60 * 2**i) for i in range(3)]
    for i in range(3):  # top codes 30 to 54 of the shifted copy of b, of which three finer codes are changed
        begin = (350 + 30) * 2**i - (0 if i < 2 else 2)  # the shifted copy of b begins after 350 top codes
        piece[i][10 * 2**i : 35 * 2**i] = shards[i][begin : begin + 25 * 2**i] if i < 2 else piece[i][10 * 4 : 35 * 4]
    report = copy_reports([codes_of(piece, 60 * 256)], Shards(run / "codes"))[0]
    top, every = report["runs"]
    assert report["n_stretches"] == 9  # of 60 codes each, every 30, in 300
    assert (top["symbols"], top["length"], top["track"]) == ("top", 25, "b")
    assert top["seconds"] == pytest.approx(25 * 256 / 8000)
    assert top["start_seconds"] == pytest.approx(10 * 256 / 8000)
    assert top["track_seconds"] == pytest.approx((30 * 256 + 128) / 8000)
    assert top["p"] == 0.1  # none of nine stretches shares five codes
    assert (every["symbols"], every["length"], every["p"]) == ("all", 0, 1.0)  # the bottom codes are others


def test_a_held_code_counts_once(tmp_path: Path) -> None:
    """One track holds a code for long, another has the melody of the piece in another rhythm."""
    writer = ShardWriter(tmp_path, ShardIndex("f" * 64, 8000, HOPS[:1], 1024))
    melody = np.arange(1, 13)
    for path, codes in (("held", [0] + [7] * 30), ("melody", [20, *np.repeat(melody, 2), 21])):
        level = np.array(codes, dtype=np.int64)
        writer.add(Track(path, "", 8000, 1, 256 * len(level), "train"), codes_of([level], 256 * len(level)))
    writer.finish()
    piece = codes_of([np.array([7] * 40 + [*np.repeat(melody, 3), 30])], 77 * 256)
    (found,) = copy_reports([piece], Shards(tmp_path))[0]["runs"]
    assert (found["track"], found["length"]) == ("melody", 12)
    times = [found[name] for name in ("start_seconds", "seconds", "track_seconds")]
    assert times == pytest.approx([40 * 256 / 8000, 36 * 256 / 8000, 256 / 8000])


def test_pieces_longer_than_the_held_out_tracks_have_no_p(run: Path) -> None:
    random = np.random.default_rng(3)
    piece = codes_of([random.integers(0, 1024, 400 * 2**i) for i in range(3)], 400 * 256)
    report = copy_reports([piece], Shards(run / "codes"))[0]
    assert report["n_stretches"] == 0
    assert all(row["p"] is None for row in report["runs"])


def test_copies_command_finds_a_training_track_whole(tiny_run: Path, music: Path, tmp_path: Path) -> None:
    result = cli("copies", music / "track-0.wav", tiny_run, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["symbols"] for row in report["runs"]] == ["top", "all"]
    assert len(result.output.splitlines()) == 2
    for row in report["runs"]:
        assert (row["track"], row["start_seconds"], row["track_seconds"]) == ("track-0.wav", 0, 0)
        assert row["seconds"] == pytest.approx(79 * 256 / 8000)
    cli("encode", music / "track-0.wav", "-o", tmp_path / "a.codes", "--model", tiny_run)
    assert cli("copies", tmp_path / "a.codes", tiny_run).output == result.output


def test_what_copies_cannot_do(tiny_run: Path, music: Path, tmp_path: Path) -> None:
    codes = tmp_path / "a.codes"
    cli("encode", music / "track-0.wav", "-o", codes, "--model", tiny_run)
    other = Codes.load(codes)
    other.tokenizer_hash = "0" * 64
    other.save(tmp_path / "other.codes")
    assert_one_line_error(cli("copies", tmp_path / "other.codes", tiny_run), "found those of another")
    assert_one_line_error(cli("copies", codes, tiny_run / "tokenizer"), "no codes there")
    assert_one_line_error(cli("copies", tmp_path / "none.wav", tiny_run), "no such file")
    assert_one_line_error(cli("copies", codes, ROOT / "audiovq" / "models" / "default"), "no codes there")
    assert_one_line_error(cli("copies", codes, tmp_path / "none"), "no such model")
