"""Encoding a data set into shards, and resuming after an interruption."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from conftest import assert_one_line_error, cli, tones

from audiovq import Tokenizer
from audiovq.data import audio
from audiovq.data.audio import read_audio
from audiovq.data.notes import estimate_frames
from audiovq.data.shards import Shards
from audiovq.data.tracks import DataConfig, Scan, scan
from audiovq.evaluation.held_out import training_and_held_out_music
from audiovq.pretrained import checkpoint
from audiovq.training import tokenizer_task
from audiovq.training.encode_stage import encode_data_set

CPU = torch.device("cpu")


@pytest.fixture
def found(tmp_path: Path) -> Scan:
    """Four tracks at another rate than the tokenizer's; one is shorter than the largest shift."""
    (tmp_path / "music").mkdir()
    for i, seconds in enumerate((1.0, 2.5, 0.007, 1.2)):
        soundfile.write(tmp_path / "music" / f"{i}.wav", tones(3, 22050, seed=i)[: int(seconds * 22050)], 22050)
    return scan(tmp_path / "music", DataConfig(valid_fraction=0.25, min_seconds=0.001))


def test_shards_hold_what_each_waveform_gives_at_each_shift(found: Scan, tiny_run: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run, CPU)
    encode_data_set(tmp_path / "codes", found, tokenizer.network, 4, CPU)
    shards, at = Shards(tmp_path / "codes", tokenizer.hash), 0
    for track in found.tracks:
        waveform, _ = read_audio(found.folder / track.path, 8000, 1)
        for shift in range(4 if track.split == "train" else 1):
            part = waveform[:, shift * 64 :]
            if part.shape[1] == 0:
                continue
            expected = tokenizer.encode(part, 8000)
            entry = shards.index.tracks[at]
            assert (entry.path, entry.sha256, entry.n_samples) == (track.path, track.sha256, part.shape[1])
            for level, codes in enumerate(expected.levels):
                assert np.array_equal(shards.codes(entry, level), codes.numpy())
            at += 1
    assert at == len(shards.index.tracks) == 4 * 2 + 1 + 1  # the shortest is all gone at the first shift
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "music"]


def test_a_resumed_stage_does_not_repeat_finished_tracks(
    found: Scan, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = checkpoint.load_tokenizer(tiny_run / "tokenizer")
    encode_data_set(tmp_path / "whole", found, network, 2, CPU)
    read, real = [], audio.stream_audio

    def stop_at_the_third(path: Path, *options: int) -> Iterator[torch.Tensor]:
        read.append(path.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(path, *options)

    monkeypatch.setattr(audio, "stream_audio", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        encode_data_set(tmp_path / "codes", found, network, 2, CPU)
    assert not (tmp_path / "codes").exists()
    encode_data_set(tmp_path / "codes", found, network, 2, CPU)
    assert read == ["0.wav", "1.wav", "2.wav", "2.wav", "3.wav"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "codes" / path.name).read_bytes()


def encode_on_rank(rank: int, world_size: int, folder: str, model: str, dies: bool) -> None:
    """One of several processes; the last one may be killed before its second track."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world_size}", rank=rank, world_size=world_size)
    music, real, n_read = (
        scan(Path(folder) / "music", DataConfig(valid_fraction=0.25, min_seconds=0.001)),
        audio.stream_audio,
        0,
    )

    def stream_audio(path: Path, *options: int) -> Iterator[torch.Tensor]:
        nonlocal n_read
        n_read += 1
        if dies and rank and n_read == 2:
            os._exit(9)
        (Path(folder) / f"read-{world_size}-{path.name}").touch()
        return real(path, *options)

    audio.stream_audio = stream_audio  # type: ignore[assignment]
    encode_data_set(Path(folder) / "codes", music, checkpoint.load_tokenizer(Path(model)), 2, CPU)
    dist.destroy_process_group()


def test_several_processes_write_what_one_does_and_others_resume_it(
    found: Scan, tiny_run: Path, tmp_path: Path
) -> None:
    encode_data_set(tmp_path / "whole", found, checkpoint.load_tokenizer(tiny_run / "tokenizer"), 2, CPU)
    one = Shards(tmp_path / "whole")
    model = str(tiny_run / "tokenizer")
    with pytest.raises(torch.multiprocessing.ProcessExitedException):  # type: ignore[attr-defined]
        torch.multiprocessing.spawn(encode_on_rank, (2, str(tmp_path), model, True), nprocs=2)  # type: ignore[attr-defined]
    assert not (tmp_path / "codes").exists()
    before = {path.name.removeprefix("read-2-") for path in tmp_path.glob("read-2-*")}
    torch.multiprocessing.spawn(encode_on_rank, (3, str(tmp_path), model, False), nprocs=3)  # type: ignore[attr-defined]
    after = {path.name.removeprefix("read-3-") for path in tmp_path.glob("read-3-*")}
    assert after < {track.path for track in found.tracks}  # some were done
    assert before | after == {track.path for track in found.tracks}
    several = Shards(tmp_path / "codes")
    assert several.index.n_shards == 3  # one of each process
    assert len(several.index.tracks) == len(one.index.tracks)
    for a, b in zip(one.index.tracks, several.index.tracks, strict=True):
        assert (a.path, a.sha256, a.split, a.n_samples) == (b.path, b.sha256, b.split, b.n_samples)
        for level in range(len(one.index.hop_lengths)):
            assert np.array_equal(one.codes(a, level), several.codes(b, level))
    assert not list(tmp_path.glob(".codes*"))


def test_only_selects_the_music_of_the_priors(tiny_recipe: Path, tmp_path: Path) -> None:
    stages = ("--stage", "tokenizer", "--stage", "codes")
    only = ("--set", "codes.only=['track-1*', 'track-3.wav']")
    assert cli("train", tiny_recipe, "--out", tmp_path / "run", *only, *stages).exit_code == 0
    index = Shards(tmp_path / "run" / "codes").index
    found = [(split, track.path) for split in ("train", "valid") for track in index.tracks.of(split)]
    assert found == [("train", "track-1.wav"), ("valid", "track-3.wav")]
    assert len(Scan.load(tmp_path / "run" / "data").tracks) == 4, "the tokenizer learned from all"
    train, held_out = training_and_held_out_music(tmp_path / "run", "run", None)
    assert [track.path for track in (*train.tracks, *held_out.tracks)] == ["track-1.wav", "track-3.wav"], (
        "generated music is compared with these"
    )


def test_only_selects_the_music_of_the_tokenizer_and_its_tuning(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    crops = tokenizer_task.WaveformCrops

    def recorded(folder: Path, tracks: Any, *rest: Any) -> Any:
        seen.append({track.path for track in tracks})
        return crops(folder, tracks, *rest)

    monkeypatch.setattr(tokenizer_task, "WaveformCrops", recorded)
    only = ("--set", "tokenizer.only=['track-[13]*']", "--set", "decoder_tuning={training: {steps: 1, batch_size: 1}}")
    stages = ("--stage", "tokenizer", "--stage", "decoder")
    assert cli("train", tiny_recipe, "--out", tmp_path / "run", *only, *stages).exit_code == 0
    assert {*map(frozenset, seen)} == {frozenset({"track-1.wav"}), frozenset({"track-3.wav"})}


@pytest.mark.parametrize("key", ["codes.only", "tokenizer.only"])
def test_patterns_without_matches_are_errors_before_training(tiny_recipe: Path, tmp_path: Path, key: str) -> None:
    for pattern, words in [("chorales/*", "no track of"), ("track-3.wav", "none of the 1 tracks")]:
        result = cli("train", tiny_recipe, "--out", tmp_path / "run", "--set", f"{key}=['{pattern}']")
        assert_one_line_error(result, key, words)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_stage_that_is_resumed_with_notes_has_them_for_all_tracks(
    found: Scan, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = checkpoint.load_tokenizer(tiny_run / "tokenizer")
    with monkeypatch.context() as patch:
        patch.setattr(
            "audiovq.training.encode_stage.ShardWriter", None
        )  # all tracks are encoded, no shards are written
        with pytest.raises(TypeError):
            encode_data_set(tmp_path / "codes", found, network, 2, CPU, {"chroma"})
    encode_data_set(tmp_path / "codes", found, network, 2, CPU, {"notes", "chroma"})
    shards = Shards(tmp_path / "codes")
    assert list(shards.index.extras) == ["chroma", "notes"]
    for i, track in enumerate(shards.index.tracks):
        for kind in shards.index.extras:
            assert len(shards.frames(track, kind)) == track.lengths[0]
        waveform, _ = read_audio(found.folder / track.path, 8000, 1)
        shift = waveform.shape[1] - track.n_samples
        assert np.array_equal(shards.frames(track, "notes"), estimate_frames(waveform[:, shift:], 8000, 256)), i
    assert not (tmp_path / ".codes.tracks").exists()
