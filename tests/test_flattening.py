"""Codes as ids for language models, as a torch data set and as Parquet."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_one_line_error, cli, tones
from torch.utils.data import DataLoader

import audiovq
from audiovq import CodeDataset, Codes, Tokenizer
from audiovq.data.flattening import Flattening
from audiovq.data.shards import Shards
from audiovq.data.tracks import DataConfig, scan
from audiovq.training.encode_stage import encode_data_set

HOPS = [4, 2, 2]


def piece(n_samples: int, hops: list[int] = HOPS, size: int = 10, seed: int = 0) -> Codes:
    random = torch.Generator().manual_seed(seed)
    levels = [torch.randint(0, size, (-(-n_samples // hop),), generator=random) for hop in hops]
    return Codes(levels, n_samples, 8000, hops, size, 1, "f" * 64)


def test_interleaved_ids_stand_where_the_time_of_level_0_is() -> None:
    codes = Codes([[1, 2], [3, 4, 5], [6, 7, 8]], 6, 8000, HOPS, 10, 1, "f")  # type: ignore[list-item]
    ids = codes.flattening()
    assert (ids.pad_token_id, ids.bos_token_id, ids.eos_token_id, ids.vocab_size) == (30, 31, 32, 33)
    assert ids.levels.tolist() == [0, 1, 1, 2, 2]
    assert codes.flatten().tolist() == [1, 13, 14, 26, 27, 2, 15, 30, 28, 30]  # the last frame is not full
    assert codes.flatten(special=True).tolist() == [31, *codes.flatten().tolist(), 32]


def test_delayed_rows_see_the_places_before_them() -> None:
    codes = Codes([[1, 2], [3, 4, 5], [6, 7, 8]], 6, 8000, HOPS, 10, 1, "f")  # type: ignore[list-item]
    assert codes.flatten("delay").tolist() == [
        [1, 2, 10, 10, 10, 10],
        [10, 3, 5, 10, 10, 10],
        [10, 10, 4, 10, 10, 10],
        [10, 10, 10, 6, 8, 10],
        [10, 10, 10, 10, 7, 10],
    ]
    assert codes.flattening("delay").vocab_size == 13
    assert codes.flatten("delay", special=True)[:, [0, -1]].tolist() == [[11, 12]] * 5


@pytest.mark.parametrize("pattern", ["interleave", "delay"])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("hops", [[4, 2, 2], [8, 4, 1], [5], [3, 3, 3, 3], [12, 6, 6, 2]])
def test_every_length_comes_back_exactly(pattern: Any, special: bool, hops: list[int]) -> None:
    for n_samples in range(1, 40):
        codes = piece(n_samples, hops, seed=n_samples)
        ids = codes.flatten(pattern, special)
        assert ids.dtype == torch.int64
        assert int(ids.max()) < codes.flattening(pattern).vocab_size
        padding = torch.full(
            (*ids.shape[:-1], 3 * sum(hops[0] // hop for hop in hops)), codes.flattening(pattern).pad_token_id
        )
        for same in (ids, ids.numpy(), ids.tolist(), torch.cat([ids, padding], dim=-1)):
            back = codes.flattening(pattern).unflatten(same)
            assert [level.tolist() for level in back] == [level.tolist() for level in codes.levels]


def test_generated_ids_are_cut_to_whole_frames_and_wrong_ones_are_named() -> None:
    codes, ids = piece(16), Flattening((4, 2, 2), 10)
    made = codes.flatten()
    assert [len(level) for level in ids.unflatten(made[:-2])] == [3, 6, 6]
    assert [len(level) for level in ids.unflatten(torch.cat([made[:10], torch.tensor([32]), made[10:]]))] == [2, 4, 4]
    for wrong, words in {
        25: "ids of level 0: expected 0 to 9, found 25", 30: "level 0: expected 0 to 9, found padding", 31: "found 31",
    }.items():  # fmt: skip
        bad = made.clone()
        bad[5] = wrong
        with pytest.raises(ValueError, match=words):
            ids.unflatten(bad)
    for nothing in ([31], [1, 2]):
        with pytest.raises(ValueError, match="found padding"):
            ids.unflatten(nothing)
    for shape in (np.zeros((2, 5), int), np.zeros(5)):
        with pytest.raises(ValueError, match=r"ids: expected whole numbers \[n\], found"):
            ids.unflatten(shape)
    with pytest.raises(ValueError, match=r"whole numbers \[5, n\]"):
        Flattening((4, 2, 2), 10, "delay").unflatten(made)
    with pytest.raises(ValueError, match="pattern: expected interleave or delay, found 'flat'"):
        codes.flatten("flat")  # type: ignore[arg-type]


def test_equal_rates_are_audio_codes_of_transformers() -> None:
    codes = piece(9, [3, 3])
    found = codes.to_transformers()["audio_codes"]
    assert found.shape == (1, 2, 3)
    assert [level.tolist() for level in codes.levels] == found[0].tolist()
    with pytest.raises(ValueError, match=r"equal rate, found hop_lengths \[4, 2, 2\]; flatten\(\) makes one sequence"):
        piece(9).to_transformers()


def test_ids_decode_to_what_their_codes_decode_to(tiny_run: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run)
    codes = tokenizer.encode(torch.randn(4 * 256) / 9, 8000)
    levels = tokenizer.flattening("delay").unflatten(codes.flatten("delay"))
    assert torch.equal(tokenizer.decode(levels), tokenizer.decode(codes))


# --- the codes of a run ---------------------------------------------------------------------------------------------------


def test_the_tracks_of_a_run_are_items(tiny_run: Path) -> None:
    data, shards = CodeDataset(tiny_run), Shards(tiny_run / "codes")
    assert len(data) == 3
    assert "CodeDataset" in dir(audiovq)
    for i, track in enumerate(shards.index.tracks.of("train")):
        levels = [shards.codes(track, level).tolist() for level in range(3)]
        assert [level.tolist() for level in data.flattening.unflatten(data[i]["input_ids"])] == levels
        assert data.track(i) == track
        pads = data[i]["input_ids"] == data.flattening.pad_token_id
        assert torch.equal(data[i]["labels"] == -100, pads)
        assert torch.equal(data[i]["labels"][~pads], data[i]["input_ids"][~pads])
    assert len(CodeDataset(tiny_run, split=None)) == 4
    assert CodeDataset(str(tiny_run / "codes"), split="valid").track(0).split == "valid"
    assert list(data[-1]["input_ids"]) == list(data[2]["input_ids"])
    with pytest.raises(IndexError):
        data[3]


@pytest.mark.parametrize("pattern", ["interleave", "delay"])
def test_windows_are_whole_frames_of_one_track_and_can_be_batched(tiny_run: Path, pattern: Any) -> None:
    data, whole = CodeDataset(tiny_run, n_frames=8, pattern=pattern, special=True), CodeDataset(tiny_run)
    assert len(data) == sum(track.n_samples // 256 // 8 for track in whole.tracks)
    at = 0
    for i in range(len(whole)):
        levels, parts = whole.levels(i), whole.track(i).n_samples // 256 // 8
        for part in range(parts):
            found = data.flattening.unflatten(data[at]["input_ids"])
            for level, mine, count in zip(levels, found, (1, 2, 4), strict=True):
                assert torch.equal(mine, level[part * 8 * count : (part + 1) * 8 * count])
            at += 1
    batch = next(iter(DataLoader(data, batch_size=4, num_workers=1)))
    assert batch["input_ids"].shape == {"interleave": (4, 8 * 7 + 2), "delay": (4, 7, 8 + 6 + 2)}[pattern]


def test_what_has_no_items_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    for given, words in [
        ({"n_frames": 10**6}, "expected tracks of at least 1000000 frames among the codes"), ({"n_frames": 0}, "at least 1 or None, found 'train' and 0"),
        ({"split": "test"}, "expected train, valid or None, .* found 'test' and None"), ({"pattern": "flat"}, "pattern: expected"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            CodeDataset(tiny_run, **given)
    with pytest.raises(ValueError, match="no codes there"):
        CodeDataset(tmp_path)


def test_parquet_has_a_row_per_track(tiny_run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = cli("codes", "export", tiny_run, "-o", tmp_path / "a.parquet")
    assert result.exit_code == 0, result.output
    assert "4 tracks, 3 levels" in result.output
    table, shards = parquet.read_table(tmp_path / "a.parquet"), Shards(tiny_run / "codes")
    for row, track in zip(table.to_pylist(), shards.index.tracks, strict=True):
        assert (row["path"], row["split"], row["n_samples"]) == (track.path, track.split, track.n_samples)
        assert row["labels"] == track.labels
        assert all(row[f"level_{i}"] == shards.codes(track, i).tolist() for i in range(3))
        assert (row["tokenizer_hash"], row["hop_lengths"]) == (shards.index.tokenizer_hash, [256, 128, 64])
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "a.wav", tones(1, 8000), 8000)
    os.rename(tmp_path / "music" / "a.wav", os.fsencode(tmp_path) + b"/music/a\xff.wav")  # a name that is not UTF-8
    found = scan(tmp_path / "music", DataConfig())
    encode_data_set(tmp_path / "strange", found, Tokenizer.from_pretrained(tiny_run).network, 1, torch.device("cpu"))
    assert cli("codes", "export", tmp_path / "strange", "-o", tmp_path / "s.parquet").exit_code == 0
    assert [row["path"] for row in parquet.read_table(tmp_path / "s.parquet").to_pylist()] == ["a\ufffd.wav"]
    assert cli("codes", "export", tiny_run / "codes", "-o", tmp_path / "v.parquet", "--split", "valid").exit_code == 0
    assert parquet.read_table(tmp_path / "v.parquet").num_rows == 1
    (tmp_path / "other").write_text("mine")
    assert_one_line_error(cli("codes", "export", tiny_run, "-o", tmp_path / "other"), "a file of another kind")
    assert_one_line_error(cli("codes", "export", tmp_path, "-o", tmp_path / "b.parquet"), "no codes there")


def test_datasets_read_the_export(tiny_run: Path, tmp_path: Path) -> None:
    datasets, _ = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    assert cli("codes", "export", tiny_run, "-o", tmp_path / "a.parquet").exit_code == 0
    rows = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    tokenizer = Tokenizer.from_pretrained(tiny_run)
    codes = tokenizer.make_codes([rows[0][f"level_{i}"] for i in range(3)], rows[0]["n_samples"])
    assert tokenizer.decode(codes).shape == (1, rows[0]["n_samples"])


def test_the_language_model_example(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import language_model  # pyright: ignore[reportMissingImports]

    tokenizer, data = Tokenizer.from_pretrained(tiny_run), CodeDataset(tiny_run, n_frames=4, special=True)
    trainer = language_model.train(data, steps=4, folder=tmp_path)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    assert language_model.generate(tokenizer, trainer.model.eval(), n_frames=3).shape == (1, 3 * 256)
    sys.modules.pop("language_model")
