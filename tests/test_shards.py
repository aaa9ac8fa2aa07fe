"""Shards at a URL, of the first format and of many tracks; what is damaged is refused."""

import http.server
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from conftest import assert_one_line_error, cli
from safetensors.torch import load_file
from test_codes import HOPS, some_codes
from torch.utils.data import default_collate

from audiovq.data.datasets import CodeWindows, vocabularies
from audiovq.data.shards import ShardIndex, Shards, ShardWriter
from audiovq.data.tracks import Track
from audiovq.evaluation.code_statistics import spread

LENGTHS = [5000, 900, 7777, 30000]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four tracks in two shards, with chroma."""
    monkeypatch.setattr("audiovq.data.shards.SHARD_CODES", 300)
    writer = ShardWriter(tmp_path / "codes", ShardIndex("f" * 64, 8000, HOPS, 1024, chroma=True))
    for i, n in enumerate(LENGTHS):
        track = Track(
            f"{i}.wav", str(i), 8000, 1, n, "valid" if i == 2 else "train", {"genre": f"g{i}", "text": "é" * i}
        )
        codes = some_codes(n, seed=i)
        writer.add(track, codes, np.arange(len(codes.levels[0]), dtype=np.uint8) % 14)
    writer.finish()
    return tmp_path / "codes"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A static server."""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for codes at a URL."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "audiovq" / "codes"


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Of a server on this machine that serves the folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/codes"
        server.shutdown()


def in_memory(source: Path, url: str) -> str:
    """Copy a folder into fsspec's memory."""
    filesystem, root = fsspec.url_to_fs(url)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)
    for path in source.rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{root}/{path.relative_to(source).as_posix()}", path.read_bytes())
    return url


def batches(shards: Shards, level: int) -> list[dict[str, torch.Tensor]]:
    data = CodeWindows(
        shards, "train", level, 12, 3, vocabularies(shards, ["genre"]), 0, text_bytes=8, chroma=True, infill_codes=5,
        infill_rate=0.5,
    )  # fmt: skip
    return [default_collate([data[4 * step + i] for i in range(4)]) for step in range(6)]


@pytest.mark.parametrize("kind", ["memory", "file", "http"])
def test_batches_of_remote_shards_are_the_very_batches_of_local_ones(
    folder: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    place = {
        "memory": lambda: in_memory(folder, "memory://run/codes"),
        "file": lambda: f"file://{folder}",
        "http": lambda: pytest.importorskip("aiohttp") and request.getfixturevalue("address"),
    }[kind]()
    local, remote = Shards(folder), Shards(place, "f" * 64)
    assert remote.index.n_shards == 2
    assert list(local.index.tracks) == list(remote.index.tracks)
    for level in range(3):
        for a, b in zip(batches(local, level), batches(remote, level), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
    for i, track in enumerate(remote.index.tracks):
        for level, codes in enumerate(some_codes(LENGTHS[i], seed=i).levels):
            assert np.array_equal(remote.codes(track, level), codes.numpy())


def test_codes_at_a_url_are_downloaded_once_and_whole(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_memory(folder, "memory://run/codes")
    filesystem, root = fsspec.url_to_fs(url)
    name = "shard-00000-level-1.npy"
    whole = filesystem.cat_file(f"{root}/{name}")
    filesystem.pipe_file(f"{root}/{name}", whole[:-1])
    with pytest.raises(ValueError, match=r"level-1\.npy: shard missing or damaged \(expected \d+ bytes, found \d+\)"):
        Shards(url)
    filesystem.rm_file(f"{root}/{name}")
    with pytest.raises(ValueError, match="shard missing or damaged"):
        Shards(url)
    assert [path.name for path in cache.rglob("*.*")] == ["shard-00000-level-0.npy"]
    filesystem.pipe_file(f"{root}/{name}", whole)
    downloads, real = [], filesystem.get_file
    count = lambda self, path, *rest: downloads.append(path) or real(path, *rest)  # noqa: E731
    monkeypatch.setattr(type(filesystem), "get_file", count)
    assert len(Shards(url).codes(Shards(url).index.tracks[0], 2)) == 79
    assert len(downloads) == len(set(downloads)) == 2 * 4 - 1 + 2  # shards without the first file, and tables


def test_what_a_remote_place_may_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = in_memory(folder, "memory://run/codes")
    filesystem, _ = fsspec.url_to_fs(url)
    monkeypatch.setattr(type(filesystem), "cat_file", lambda *_: _raised(OSError("reset")))
    with pytest.raises(ValueError, match=r"cannot be read \(OSError: reset\)"):
        Shards(url)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no codes there"):
        Shards("memory://elsewhere")
    with pytest.raises(ValueError, match=r"nothing://x: cannot be opened \(.*[Pp]rotocol"):
        Shards("nothing://x")


def _raised(error: Exception) -> None:
    raise error


def test_the_first_format_is_still_read(folder: Path, tmp_path: Path) -> None:
    new = Shards(folder)
    index = {key: value for key, value in vars(new.index).items() if key != "tracks"}
    shutil.copytree(folder, tmp_path / "old", ignore=shutil.ignore_patterns("tracks.*", "index.json"))
    (tmp_path / "old" / "index.json").write_text(
        json.dumps(index | {"tracks": [t.model_dump() for t in new.index.tracks]})
    )
    old = Shards(tmp_path / "old", "f" * 64)
    assert list(old.index.tracks) == list(new.index.tracks)
    assert all(torch.equal(a["codes"], b["codes"]) for a, b in zip(batches(old, 2), batches(new, 2), strict=True))


@pytest.mark.parametrize("name", ["tracks.jsonl", "tracks.npy", "shard-00001-level-2.npy", "shard-00000-chroma.npy"])
def test_a_file_that_is_cut_or_gone_is_noticed_on_opening(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b""):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: shard missing or damaged .*run the codes stage again") as error:
            Shards(folder)
        assert "\n" not in str(error.value)
    (folder / name).unlink()
    with pytest.raises(ValueError, match="shard missing or damaged"):
        Shards(folder)


def test_damage_that_keeps_the_length_is_noticed(folder: Path) -> None:
    index = (folder / "index.json").read_text()
    for wrong in (index[:-40], "{}", index.replace("shards-2", "shards-9")):
        (folder / "index.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"damaged|update audiovq"):
            Shards(folder)
    (folder / "index.json").write_text(index)
    content = bytearray((folder / "shard-00000-level-0.npy").read_bytes())
    content[-2] ^= 1
    (folder / "shard-00000-level-0.npy").write_bytes(content)
    shards = Shards(folder)
    assert len(shards.codes(shards.index.tracks[3], 0))  # in another shard
    with pytest.raises(ValueError, match=r"shard-00000-level-0.npy: shard missing or damaged \(its checksum is wrong"):
        [shards.codes(track, 0) for track in shards.index.tracks]
    lines = (folder / "tracks.jsonl").read_text()
    (folder / "tracks.jsonl").write_text(lines.replace("g0", "g1"))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        Shards(folder)


def test_another_process_opens_its_own(folder: Path) -> None:
    data = pickle.dumps(Shards(folder))
    assert len(data) < 400
    again = pickle.loads(data)
    assert np.array_equal(again.codes(again.index.tracks[3], 2), some_codes(30000, seed=3).levels[2].numpy())


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "codes", ShardIndex("f" * 64, 8000, HOPS, 1024))
    writer.lines = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with pytest.raises(ValueError, match=r"codes: cannot be written \(No space left on device\); free some space"):
        writer.add(Track("a", "", 8000, 1, 5000), some_codes())


def test_spread_takes_all_places_or_some_of_them_evenly() -> None:
    counts = np.array([2, 0, 3, 1])
    everything = [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert list(spread(counts, 6)) == list(spread(counts, 100)) == everything
    assert list(spread(counts, 2)) == [everything[0], everything[-1]]
    assert list(spread(counts, 3)) == [everything[i] for i in (0, 2, 5)]
    assert list(spread(np.zeros(0, np.int64), 3)) == list(spread(np.array([0]), 3)) == []


def test_priors_trained_from_codes_at_a_url_are_the_same(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    url = in_memory(tiny_run, "memory://tiny")
    options = ("--codes", f"{url}/codes", "--data", tmp_path / "no music")
    result = cli("train", tiny_recipe, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for name in ("tokenizer", "prior-0", "prior-1", "prior-2"):
        a, b = (load_file(run / name / "model.safetensors") for run in (tiny_run, tmp_path / "run"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (tmp_path / "run" / "report.json").read_text() == (tiny_run / "report.json").read_text()
    assert not (tmp_path / "run" / "codes").exists()
    again = cli("train", tiny_recipe, *options, "--out", tmp_path / "run")
    assert "finished, nothing to do" in again.output
    piece = ("--model", tmp_path / "run", "--seconds", 1, "--seed", 0, "--out", tmp_path / "x.wav")
    assert cli("sample", *piece).exit_code == 0
    assert cli("copies", tmp_path / "x.wav", tmp_path / "run").exit_code == 0
    assert '"unigram_bits_per_second"' in cli("info", tmp_path / "run").output
    # what does not fit
    other = ("--set", "tokenizer.model.hop_lengths=[512,128,64]", "--out", tmp_path / "other")
    assert_one_line_error(cli("train", tiny_recipe, *options, *other), "hop_lengths [512, 128, 64]", "[256, 128, 64]")
    fsspec.filesystem("memory").rm("/tiny/tokenizer", recursive=True)
    assert_one_line_error(
        cli("train", tiny_recipe, *options, "--out", tmp_path / "third"), "tokenizer of the codes", "copy it to"
    )
    shutil.copytree(tiny_run / "tokenizer", tmp_path / "third" / "tokenizer")
    (tmp_path / "third" / "prior-0").mkdir()
    assert cli("train", tiny_recipe, *options, "--out", tmp_path / "third", "--stage", "tokenizer").exit_code == 0


def test_a_run_killed_before_its_samples_or_report_makes_them_later(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    item = run / "samples" / "prior-2" / "item-0.wav"
    for gone in (item, run / "report.json"):
        gone.unlink()
        result = cli("train", tiny_recipe, "--out", run)
        assert result.exit_code == 0, result.output
        assert "finished, nothing to do" not in result.output
        assert (run / "report.json").read_text() == (tiny_run / "report.json").read_text()
        assert item.read_bytes() == (tiny_run / "samples" / "prior-2" / "item-0.wav").read_bytes()


def test_a_prior_that_lost_its_config_is_not_left_out(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("prior-2", "prior-1"):
        (tmp_path / "run" / name / "config.json").unlink()
        result = cli("sample", "--model", tmp_path / "run", "--seconds", 1, "--out", tmp_path / "x.wav")
        assert_one_line_error(result, f"{name}: damaged", "config.json is missing")
