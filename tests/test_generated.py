"""The report on generated music: constructed sets whose answers are known, and the command on a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import assert_one_line_error, cli, tones

from audiovq import api
from audiovq.data.codes import Codes
from audiovq.data.tracks import Scan
from audiovq.evaluation.embedding import fetch_weights
from audiovq.evaluation.evaluate_generator import (
    Piece,
    compare_sets,
    excerpts,
    generate_pieces,
    shuffle_codes,
)  # fmt: skip
from audiovq.evaluation.frechet import frechet_distance
from audiovq.evaluation.held_out import scan_folder

RATE = 8000


def embed(waveform: torch.Tensor, sample_rate: int) -> np.ndarray:
    """Of each half second: how loud, how bright."""
    windows = waveform[0].unfold(0, sample_rate // 2, sample_rate // 2)
    return torch.stack([windows.std(dim=1), windows.diff(dim=1).std(dim=1)], dim=1).numpy()


def pieces(n: int, gain: float, seed: int) -> list[Piece]:
    waves = [torch.from_numpy(tones(3, RATE, seed=seed + i).T.copy()) * gain for i in range(n)]
    return [Piece(wave, f"{seed}-{i}") for i, wave in enumerate(waves)]


def test_every_set_is_compared_with_the_held_out_music() -> None:
    held_out, train, generated = pieces(4, 1.0, 0), pieces(4, 1.0, 100), pieces(4, 0.5, 200)
    sets = {"generated": generated, "training": train, "loud": pieces(4, 3.0, 300), "held-out": held_out}
    report = compare_sets(sets, RATE, embed)
    assert report["sets"]["generated"] == {"pieces": 4, "tracks": 4, "windows": 24}
    frechet = report["frechet"]
    assert frechet["n_components"] == 2  # of the two dimensions
    by_hand = frechet_distance(
        [embed(p.waveform, RATE) for p in generated], [embed(p.waveform, RATE) for p in held_out]
    )
    assert frechet["distances"]["generated"]["mean"] == pytest.approx(by_hand)
    order = ["training", "generated", "loud"]
    assert sorted(frechet["distances"], key=lambda name: frechet["distances"][name]["mean"]) == order
    assert frechet["distances"]["generated"]["ci95"] > 0
    levels = {name: group["rms_db"]["mean"] for name, group in report["statistics"].items()}
    assert levels["generated"] == pytest.approx(levels["held-out"] - 6.02, abs=1.5)
    assert set(levels) == {"generated", "training", "loud", "held-out"}
    with pytest.raises(ValueError, match="none of: generated"):
        compare_sets({**sets, "generated": []}, RATE, embed)


def test_pieces_of_one_track_count_as_one() -> None:
    held_out = [Piece(piece.waveform, "the same") for piece in pieces(3, 1.0, 0)]
    sets = {"generated": pieces(3, 1.0, 10), "training": pieces(3, 1.0, 20), "held-out": held_out}
    report = compare_sets(sets, RATE, embed)
    assert report["sets"]["held-out"] == {"pieces": 3, "tracks": 1, "windows": 18}
    assert report["frechet"]["distances"]["generated"]["ci95"] is None
    assert report["statistics"]["held-out"]["peak"]["ci95"] is None
    assert report["statistics"]["generated"]["peak"]["ci95"] is not None


def test_shuffled_codes_are_the_same_codes_in_another_order() -> None:
    codes = Codes([torch.arange(50), torch.arange(100)], 100 * 64, RATE, [128, 64], 128, 1, "hash")
    shuffled = shuffle_codes(codes, seed=0)
    for before, after in zip(codes.levels, shuffled.levels, strict=True):
        assert not torch.equal(before, after)
        assert torch.equal(before, after.sort().values)
    assert torch.equal(shuffled.levels[0], shuffle_codes(codes, seed=0).levels[0])
    assert not torch.equal(shuffled.levels[0], shuffle_codes(codes, seed=1).levels[0])


@pytest.fixture(scope="module")
def model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's networks without its data, as an exported folder has them."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for part in ("tokenizer", "prior-0", "prior-1", "prior-2"):
        shutil.copytree(tiny_run / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def longer_music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longer")
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", tones(9 if i else 2, RATE, seed=i), RATE)
        split, genre = ("valid" if i == 3 else "train"), ("folk" if i % 2 else "rock")
        (folder / f"{i}.json").write_text(json.dumps({"genre": genre, "split": split}))
    return folder


def test_excerpts_are_spread_evenly_and_short_tracks_left_out(model: Path, longer_music: Path) -> None:
    tokenizer = api.Tokenizer.from_pretrained(model)
    music = scan_folder(str(longer_music))
    found = excerpts(music, 5, 4.0, tokenizer)
    assert [piece.track for piece in found] == ["1.wav", "1.wav", "2.wav", "2.wav", "3.wav"]
    assert all(piece.waveform.shape == (1, 4 * RATE) for piece in found)
    whole = torch.from_numpy(soundfile.read(longer_music / "1.wav", dtype="float32")[0])
    assert torch.equal(found[0].waveform[0], whole[: 4 * RATE])
    assert torch.equal(found[1].waveform[0], whole[-4 * RATE :])
    assert len(excerpts(music, 100, 4.0, tokenizer)) == 6  # two fit into each track
    assert len(excerpts(music, 2, 60.0, tokenizer)) == 2  # whole tracks, all of 9 s
    soundfile.write(longer_music / "1.wav", whole[: 4 * RATE].numpy(), RATE)  # others have room for its share
    shorter = scan_folder(str(longer_music))
    assert [piece.track for piece in excerpts(shorter, 5, 4.0, tokenizer)] == [
        "1.wav",
        "2.wav",
        "2.wav",
        "3.wav",
        "3.wav",
    ]
    soundfile.write(longer_music / "1.wav", whole.numpy(), RATE)
    with pytest.raises(ValueError, match=r"at least 2\.98 s"):
        excerpts(Scan(longer_music, music.tracks.take(slice(1)), []), 1, 4.0, tokenizer)


def test_labels_are_drawn_as_often_as_the_training_tracks_have_them(
    model: Path, longer_music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, sample, drawn = api.Generator.from_pretrained(model), api.Generator.sample, {}

    def sample_and_note(self: api.Generator, seconds: float, seed: int, n: int, **options: Any) -> Any:
        drawn[options["labels"]["genre"]] = n
        return sample(self, seconds, seed, n, **options)

    monkeypatch.setattr(api.Generator, "sample", sample_and_note)
    music = scan_folder(str(longer_music))
    train = Scan(longer_music, music.tracks.of("train"), [])
    assert [track.labels["genre"] for track in train.tracks] == ["rock", "folk", "rock"]
    found = generate_pieces(generator, train, 6, 0.5, seed=0)
    assert drawn == {"folk": 2, "rock": 4}
    assert len({piece.track for piece in found}) == 6
    assert all(piece.waveform.shape == (1, RATE // 2) for piece in found)


def test_eval_generated_prints_and_writes_the_report(model: Path, longer_music: Path, tmp_path: Path) -> None:
    try:
        fetch_weights()
    except ValueError as error:
        pytest.skip(str(error))
    arguments = ("eval", model, longer_music, "--generated", 3, "--seconds", 3)
    result = cli(*arguments, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    sets = {"generated", "training", "reconstructed held-out", "shuffled codes", "held-out"}
    assert set(report["sets"]) == set(report["statistics"]) == sets
    assert set(report["frechet"]["distances"]) == sets - {"held-out"}
    assert report["sets"]["generated"] == {"pieces": 3, "tracks": 3, "windows": 3}
    assert np.isfinite([d["mean"] for d in report["frechet"]["distances"].values()]).all()
    for word in ("shuffled codes", "chroma change", "Fréchet distance"):
        assert word in result.output


def test_wrong_arguments_are_one_line(tiny_run: Path, model: Path) -> None:
    assert_one_line_error(cli("eval", model, "--generated", 2), "not a run", "name a folder of music")
    assert_one_line_error(cli("eval", tiny_run, "--generated", 2, "--seconds", 1), "2.98 s or more", "found 2 of 1 s")
    assert_one_line_error(cli("eval", tiny_run, "--generated", 0), "1 or more pieces")
    assert_one_line_error(
        cli("eval", tiny_run, "--generated", 1, "--seconds", "inf"), "of 2.98 s or more, found 1 of inf s"
    )
