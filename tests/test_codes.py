"""Codes files, shards, and the examples made from them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tones

from audiovq.data.codes import Codes
from audiovq.data.datasets import CodeWindows, WaveformCrops, vocabularies
from audiovq.data.music import table_of
from audiovq.data.shards import ShardIndex, Shards, ShardWriter
from audiovq.data.tracks import DataConfig, Track, scan

HOPS = [256, 128, 64]


def some_codes(n_samples: int = 5000, size: int = 1024, seed: int = 0) -> Codes:
    random = torch.Generator().manual_seed(seed)
    levels = [torch.randint(0, size, (-(-n_samples // hop),), generator=random) for hop in HOPS]
    return Codes(levels, n_samples, 8000, HOPS, size, 1, "f" * 64, "a" * 64)


@pytest.mark.parametrize("size", [2, 1024, 32768, 65536])
def test_a_codes_file_gives_back_the_same_integers(tmp_path: Path, size: int) -> None:
    codes = some_codes(size=size)
    codes.save(tmp_path / "x.codes")
    again = Codes.load(tmp_path / "x.codes")
    assert all(torch.equal(a, b) and b.dtype == torch.int64 for a, b in zip(codes.levels, again.levels, strict=True))
    assert {k: v for k, v in vars(again).items() if k != "levels"} == {
        k: v for k, v in vars(codes).items() if k != "levels"
    }
    assert codes.bits_per_second == pytest.approx((20 + 40 + 79) * np.log2(size) / (5000 / 8000))


def test_damaged_codes_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.codes"
    some_codes().save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\0" * 100, whole[:8] + b"x" * 20 + whole[28:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.codes") as error:
            Codes.load(path)
        assert "\n" not in str(error.value)
    short = some_codes()
    short.levels[2] = short.levels[2][:-1]
    short.save(path)
    with pytest.raises(
        ValueError, match=r"expected \[20, 40, 79\] codes a level for 5000 samples, found \[20, 40, 78\]"
    ):
        Codes.load(path)
    with pytest.raises(ValueError, match="no such codes file"):
        Codes.load(tmp_path / "none.codes")


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    index = ShardIndex("f" * 64, 8000, HOPS, 1024)
    writer = ShardWriter(tmp_path / "codes", index)
    for i, n_samples in enumerate([5000, 900, 7777]):
        track = Track(f"{i}.wav", str(i), 8000, 1, n_samples, "valid" if i == 2 else "train", {"genre": f"g{i % 2}"})
        writer.add(track, some_codes(n_samples, seed=i))
    writer.finish()
    return Shards(tmp_path / "codes", "f" * 64)


def test_shards_give_back_every_track(shards: Shards) -> None:
    for i, track in enumerate(shards.index.tracks):
        for level, expected in enumerate(some_codes([5000, 900, 7777][i], seed=i).levels):
            assert np.array_equal(shards.codes(track, level), expected.numpy())
            assert np.array_equal(shards.codes(track, level, 2, 5), expected[2:5].numpy())


def test_shards_of_another_tokenizer_and_damaged_ones_are_refused(shards: Shards) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected codes of tokenizer 000000000000, found codes of ffffffffffff; delete the folder and run",
    ):
        Shards(shards.folder, "0" * 64)
    path = Path(shards.folder) / "shard-00000-level-1.npy"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="shard missing or damaged"):
        Shards(shards.folder)
    (Path(shards.folder) / "index.json").unlink()
    with pytest.raises(ValueError, match="run the codes stage first"):
        Shards(shards.folder)


def test_a_large_set_is_cut_into_shards_between_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.data.shards.SHARD_CODES", 100)
    writer = ShardWriter(tmp_path / "codes", ShardIndex("f" * 64, 8000, HOPS, 1024))
    for i in range(5):
        writer.add(Track(f"{i}.wav", "", 8000, 1, 3000), some_codes(3000, seed=i))
    writer.finish()
    shards = Shards(tmp_path / "codes")
    assert shards.index.n_shards == 3
    for i, track in enumerate(shards.index.tracks):
        assert np.array_equal(shards.codes(track, 2), some_codes(3000, seed=i).levels[2].numpy())


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_window_is_what_slicing_by_hand_gives(shards: Shards, level: int) -> None:
    words = vocabularies(shards, ["genre"])
    data = CodeWindows(shards, "train", level, context=12, context_codes=3, vocabularies=words, seed=0)
    track = shards.index.tracks[0]
    own = np.concatenate([[1024], shards.codes(track, level), [1024] * 40])
    for start in (0, 4, 16):
        window = data.window(track, start)
        assert window["previous"].tolist() == own[start : start + 12].tolist()
        assert window["codes"].tolist() == own[start + 1 : start + 13].tolist()
        assert (int(window["position"]), int(window["n_samples"])) == (start, 5000)
        assert window["labels"].tolist() == [1]
        for row, coarse in enumerate(window["coarser"]):
            codes = shards.codes(track, row)
            repeats = HOPS[row] // HOPS[level - 1]
            times = range(start // 2 - 3, start // 2 - 3 + 6 + 6)
            expected = [codes[t // repeats] if 0 <= t // repeats < len(codes) else 1024 for t in times]
            assert coarse.tolist() == expected


@pytest.mark.parametrize("level", [1, 2, 3])
def test_windows_of_a_repeated_hop_have_the_codes_before_at_their_own_rate(tmp_path: Path, level: int) -> None:
    hops = [128, 64, 64, 64]
    writer = ShardWriter(tmp_path / "codes", ShardIndex("f" * 64, 8000, hops, 1024))
    levels = [torch.randint(0, 1024, (-(-5000 // hop),)) for hop in hops]
    writer.add(Track("0.wav", "0", 8000, 1, 5000), Codes(levels, 5000, 8000, hops, 1024, 1, "f" * 64, "a" * 64))
    writer.finish()
    shards = Shards(tmp_path / "codes")
    data = CodeWindows(shards, "train", level, context=12, context_codes=3, vocabularies={}, seed=0)
    ratio = hops[level - 1] // hops[level]
    assert data.ratio == (2 if level == 1 else 1)
    start = 6
    window = data.window(shards.index.tracks[0], start)
    assert window["codes"].tolist() == levels[level][start : start + 12].tolist()
    assert window["coarser"].shape == (level, 12 // ratio + 6)
    for row, coarse in enumerate(window["coarser"]):
        rate = hops[row] // hops[level - 1]
        times = range(start // ratio - 3, start // ratio - 3 + 12 // ratio + 6)
        assert coarse.tolist() == [int(levels[row][t // rate]) for t in times]


def test_examples_are_a_function_of_seed_and_index(shards: Shards) -> None:
    make = lambda seed: CodeWindows(shards, "train", 1, 12, 2, {}, seed)  # noqa: E731
    a, b = make(0), make(0)
    _ = [b[i] for i in range(5)]  # earlier accesses make no difference
    assert all(torch.equal(a[7][k], b[7][k]) for k in a[7])
    assert any(not torch.equal(a[i]["codes"], make(1)[i]["codes"]) for i in range(5))
    starts = {int(a[i]["position"]) for i in range(200)}
    assert 0 in starts
    assert max(starts) + 12 >= 40  # the track's end is reached
    assert all(start % 2 == 0 for start in starts)


def test_crops_are_the_same_from_memory_and_from_disk(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(3, 8000, seed=1), 8000)
    soundfile.write(tmp_path / "b.wav", tones(1, 8000, seed=2), 8000)
    found = scan(tmp_path, DataConfig(valid_fraction=0))
    crops = [WaveformCrops(tmp_path, found.tracks, 8000, 1, 2000, 0, gigabytes) for gigabytes in (1.0, 0.0)]
    assert (crops[0].fits, crops[1].fits) == (True, False)
    longer = 0
    for i in range(40):
        assert torch.equal(crops[0][i], crops[1][i])
        assert crops[0][i].shape == (1, 2000)
        whole = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
        begin = crops[0][i][0].numpy()[:9]
        longer += any(np.array_equal(begin, whole[k : k + 9]) for k in np.flatnonzero(whole == begin[0]))
    assert 20 <= longer <= 38  # three quarters of the music is in a.wav


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_a_track_that_was_replaced_after_the_scan_is_named(tmp_path: Path, gigabytes: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tones(1, 8000, seed=1), 8000)
    track = scan(tmp_path, DataConfig()).tracks[0]
    os.utime(path, (1, 1))  # a copy of the same file
    crops = WaveformCrops(tmp_path, table_of([track]), 8000, 1, 2000, 0, gigabytes)
    assert crops[0].shape == (1, 2000)
    old = WaveformCrops(tmp_path, table_of([replace(track, stamp=[])]), 8000, 1, 2000, 0, gigabytes)  # of version 0.1
    soundfile.write(path, tones(1, 8000, seed=2), 8000)
    crops.cache.clear()
    with pytest.raises(ValueError, match=r"a\.wav: another recording than when the run began"):
        crops[1]
    assert old[0].shape == (1, 2000)


@pytest.mark.parametrize("name", [b"\xe9", "é".encode() * 124, b"x" * 249, "日本".encode(), b"a b'\"\n"])
@pytest.mark.parametrize("compress", [False, True])
def test_codes_under_any_name(tmp_path: Path, name: bytes, compress: bool) -> None:
    for path in (tmp_path / os.fsdecode(name + b".codes"), tmp_path / os.fsdecode(name[:200]) / "x.codes"):
        codes = some_codes()
        codes.save(path, compress)
        assert all(torch.equal(a, b) for a, b in zip(Codes.load(path).levels, codes.levels, strict=True))
        assert len(os.listdir(path.parent)) == 1


def test_shorter_tracks_are_padded(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(1, 8000), 8000)
    found = scan(tmp_path, DataConfig())
    crop = WaveformCrops(tmp_path, found.tracks, 8000, 2, 12000, 0, 1.0)[0]
    assert crop.shape == (2, 12000)
    assert float(crop[:, 8000:].abs().max()) == 0


def test_the_index_is_plain_json(shards: Shards) -> None:
    content = json.loads((Path(shards.folder) / "index.json").read_text())
    assert (content["tokenizer_hash"], content["n_tracks"], content["n_shards"]) == ("f" * 64, 3, 1)
    lines = [json.loads(line) for line in (Path(shards.folder) / "tracks.jsonl").read_text().splitlines()]
    assert [line["sha256"] for line in lines] == ["0", "1", "2"]


def test_workers_share_what_was_decoded_before_they_began(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(3, 8000, seed=1), 8000)
    found = scan(tmp_path, DataConfig())
    crops = WaveformCrops(tmp_path, found.tracks, 8000, 1, 2000, 0, cache_gigabytes=1.0)
    expected = torch.stack([crops[i] for i in range(4)])
    for gigabytes, decoded in ((1.0, 1), (0.0, 0)):
        crops = WaveformCrops(tmp_path, found.tracks, 8000, 1, 2000, 0, gigabytes)
        crops.preload()
        assert len(crops.cache) == decoded
        if decoded:
            (tmp_path / "a.wav").rename(tmp_path / "gone.wav")
            loader = torch.utils.data.DataLoader(crops, batch_sampler=[[0, 1, 2, 3]], num_workers=1)
            assert torch.equal(next(iter(loader)), expected)
            (tmp_path / "gone.wav").rename(tmp_path / "a.wav")
