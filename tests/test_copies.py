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
from audiovq.evaluation.copies import copy_reports, symbols_of
from audiovq.evaluation.shared_runs import NEAR_SYMBOLS, SEED, longest_near, longest_runs

HOPS = [256, 128, 64]


def naive_near(equal: np.ndarray) -> int:
    """Every stretch of one row."""
    n = len(equal)
    spans = [(j - i + 1, equal[i : j + 1].sum()) for i in range(n) for j in range(i, n) if equal[i] and equal[j]]
    return max((length for length, same in spans if 10 * same >= 9 * length), default=0)


def naive_longest(piece: np.ndarray, tracks: list[np.ndarray]) -> dict[tuple[str, str], int]:
    """Every alignment of the piece with every track, every place."""
    best = dict.fromkeys([(kind, measure) for kind in ("exact", "near") for measure in ("length", "changes")], 0)

    def changes(start: int, length: int) -> int:
        return 1 + sum(piece[t] != piece[t - 1] for t in range(start + 1, start + length))

    for track in tracks:
        for shift in range(-len(piece) + 1, len(track)):
            equal = np.array([0 <= i + shift < len(track) and piece[i] == track[i + shift] for i in range(len(piece))])
            run = 0
            for i, same in enumerate([*equal, False]):
                if not same and run >= SEED:
                    best["exact", "length"] = max(best["exact", "length"], run)
                    best["exact", "changes"] = max(best["exact", "changes"], changes(i - run, run))
                run = run + 1 if same else 0
            longest = naive_near(equal)
            if longest >= NEAR_SYMBOLS:
                best["near", "length"] = max(best["near", "length"], longest)
    return best


def music_like(random: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Held symbols."""
    held = random.integers(1, 6, n)
    return np.repeat(random.integers(0, size, n), held)[:n]


@pytest.mark.parametrize("seed", range(6))
def test_the_search_equals_comparing_everything(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.evaluation.shared_runs.BLOCK_SYMBOLS", 70)
    monkeypatch.setattr("audiovq.evaluation.shared_runs.PAIRS_AT_ONCE", 150)
    random = np.random.default_rng(seed)
    size = 3 + seed
    tracks = [music_like(random, n, size) for n in (40, 3, 61, 0, 90, 33)]
    pieces = [music_like(random, n, size) for n in (50, 4, 30)]
    pieces[0][10:35] = tracks[4][20:45]
    pieces[0][22] += 1
    pieces[2][:22] = tracks[seed % 2 * 2][:22]  # beginning with beginning, of the first track of all or a later one
    for piece, found in zip(pieces, longest_runs(pieces, tracks), strict=True):
        expected = naive_longest(piece, tracks)
        for (kind, measure), value in expected.items():
            run = found.get((kind, measure))
            if (kind, measure) != ("near", "changes"):
                assert (getattr(run, measure) if run else 0) == value, (kind, measure)
            if run:  # it is where it says, and is what it says
                a, b = piece[run.start :][: run.length], tracks[run.track][run.track_start :][: run.length]
                assert len(a) == len(b) == run.length
                assert int((a == b).sum()) == run.equal
                assert run.equal * 10 >= run.length * 9
                assert run.equal == run.length or kind == "near"
                assert a[0] == b[0]
                assert a[-1] == b[-1]
                assert run.changes == 1 + int((a[1:] != a[:-1]).sum())


def test_the_longest_near_stretch_of_each_row() -> None:
    random = np.random.default_rng(0)
    for share in (0.5, 0.8, 0.9, 0.95):
        equal = random.random((7, 45)) < share
        equal[3] = False
        starts, lengths = longest_near(equal)
        assert lengths.tolist() == [naive_near(row) for row in equal]
        for row, start, length in zip(equal, starts, lengths, strict=True):
            assert 10 * row[start : start + length].sum() >= 9 * length
    assert longest_near(np.array([[True] * 9 + [False, True]]))[1].tolist() == [11]
    assert longest_near(np.array([[True] * 8 + [False, True]]))[1].tolist() == [10]
    assert longest_near(np.array([[True] * 7 + [False, True]]))[1].tolist() == [7]


def test_a_held_symbol_is_long_but_changes_little() -> None:
    piece = np.array([7] * 40 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    found = longest_runs([piece], [np.array([0] + [7] * 30), np.array([20, *range(1, 13), 21])])[0]
    assert (found["exact", "length"].track, found["exact", "length"].length, found["exact", "length"].changes) == (
        0,
        30,
        1,
    )
    assert (found["exact", "changes"].track, found["exact", "changes"].length, found["exact", "changes"].changes) == (
        1,
        12,
        12,
    )


def test_symbols_of_all_levels_are_equal_where_all_codes_are() -> None:
    random = np.random.default_rng(0)
    levels = [random.integers(0, 4, n) for n in (20, 40, 79)]
    symbols = symbols_of(levels, HOPS, 1024)
    assert symbols.shape == (20,)
    assert symbols.min() >= 0
    other = [level.copy() for level in levels]
    other[2][4 * 7 + 3] += 1
    other[1][2 * 9] += 1
    assert np.flatnonzero(symbols_of(other, HOPS, 1024) != symbols).tolist() == [7, 9]
    assert (
        symbols_of([level[: 5 * 2**i] for i, level in enumerate(levels)], HOPS, 1024).tolist() == symbols[:5].tolist()
    )
    assert symbols_of(levels[:1], HOPS, 1024).tolist() == levels[0].tolist()


def codes_of(levels: list[np.ndarray], n_samples: int) -> Codes:
    return Codes([torch.from_numpy(level) for level in levels], n_samples, 8000, HOPS, 1024, 1, "f" * 64)


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
    rows = {(row["symbols"], row["kind"], row["by"]): row for row in report["runs"]}
    assert report["n_stretches"] == 9  # of 60 codes each, every 30, in 300
    top = rows["top", "exact", "length"]
    assert (top["length"], top["changes"], top["distinct"], top["track"]) == (25, 25, 25, "b")
    assert top["seconds"] == pytest.approx(25 * 256 / 8000)
    assert top["start_seconds"] == pytest.approx(10 * 256 / 8000)
    assert top["track_seconds"] == pytest.approx((30 * 256 + 128) / 8000)
    assert (top["p"], top["held_out_95"]) == (0.1, 0)  # none of nine stretches shares five codes
    assert "track" not in rows["all", "exact", "length"]  # the bottom codes are others
    assert rows["all", "exact", "length"]["p"] == 1.0


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
    assert len(result.output.splitlines()) == len(report["runs"]) == 8
    for row in report["runs"]:
        assert (row["track"], row["length"], row["equal_share"]) == ("track-0.wav", 79, 1.0)
        assert (row["start_seconds"], row["track_seconds"]) == (0, 0)
    cli("encode", music / "track-0.wav", "-o", tmp_path / "a.codes", "--model", tiny_run)
    assert cli("copies", tmp_path / "a.codes", tiny_run).output == result.output
    sampled = cli(
        "sample", "--model", tiny_run, "--seconds", 1, "--seed", 0, "--out", tmp_path / "x.wav", "--check-copies"
    )
    assert sampled.exit_code == 0, sampled.output
    assert sum("by length" in line or "by changes" in line for line in sampled.output.splitlines()) == 8


def test_what_copies_cannot_do(tiny_run: Path, music: Path, tmp_path: Path) -> None:
    codes = tmp_path / "a.codes"
    cli("encode", music / "track-0.wav", "-o", codes, "--model", tiny_run)
    other = Codes.load(codes)
    other.tokenizer_hash = "0" * 64
    other.save(tmp_path / "other.codes")
    assert_one_line_error(cli("copies", tmp_path / "other.codes", tiny_run), "found those of another")
    assert_one_line_error(cli("copies", codes, tiny_run / "tokenizer"), "no codes there")
    assert_one_line_error(cli("copies", tmp_path / "none.wav", tiny_run), "no such file")
    bundled = ROOT / "audiovq" / "models" / "default"
    assert_one_line_error(
        cli("sample", "--model", bundled, "--check-copies", "--out", tmp_path / "x.wav"), "no codes there"
    )
    assert not (tmp_path / "x.wav").exists()  # the error comes before the work
    assert_one_line_error(cli("copies", codes, tmp_path / "none"), "no such model")
