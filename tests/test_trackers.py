"""Trackers: metrics and samples, without duplicate points after an interruption."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import cli, tones

from audiovq.distributed import collectives
from audiovq.training import trackers
from audiovq.training.trackers import TRACKERS, TrackerConfig, installed_trackers

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder: Path) -> Any:
    """What TensorBoard shows of a folder."""
    shown = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "audio": 0})
    shown.Reload()
    return shown


def points(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def test_a_stage_that_goes_on_puts_no_point_twice(tmp_path: Path) -> None:
    config = TrackerConfig(tmp_path, ("tensorboard",))
    (first,) = config.open("tokenizer")
    for step in range(1, 8):
        first.log(step, {"loss": 1 / step})
    first.close()  # killed after step 7, the checkpoint is of step 4
    (again,) = config.open("tokenizer", start=4, last_step=7)
    for step in range(5, 10):
        again.log(step, {"loss": 1 / step})
    again.close()
    found = points(tmp_path / "metrics" / "tensorboard" / "tokenizer")
    assert [step for step, _ in found] == list(range(1, 10))
    assert [value for _, value in found] == pytest.approx([1 / step for step in range(1, 10)])


def test_samples_sound_as_their_files(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    wave = tones(0.5, 8000, channels=2)
    soundfile.write(tmp_path / "samples" / "song-levels-1.wav", wave, 8000)
    (stage,) = TrackerConfig(tmp_path, ("tensorboard",)).open("tokenizer", 10, 10)
    stage.audio(10, tmp_path / "samples" / "song-levels-1.wav")
    stage.close()
    (event,) = read(tmp_path / "metrics" / "tensorboard" / "tokenizer").Audio("song-levels-1")
    assert (event.step, event.sample_rate, event.length_frames) == (10, 8000, 4000)
    (tmp_path / "played.wav").write_bytes(event.encoded_audio_string)
    played, rate = soundfile.read(tmp_path / "played.wav", dtype="float32")
    assert rate == 8000
    assert np.abs(played - wave[:, 0]).max() < 2 / 32768


def test_only_the_first_rank_has_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    assert TrackerConfig(tmp_path, ("tensorboard",)).open("tokenizer") == []


def test_a_missing_package_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else name)
    lines: list[str] = []
    monkeypatch.setattr(trackers, "say", lines.append)
    assert installed_trackers(("tensorboard", "wandb")) == ("wandb",)
    assert lines == [
        "trackers: tensorboard is not installed, so metrics go to metrics.jsonl only; pip install tensorboard adds it"
    ]


@pytest.mark.parametrize("name", [name for name in TRACKERS if name != "tensorboard"])
def test_services_take_figures_and_sounds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    soundfile.write(tmp_path / "song.wav", tones(0.1, 8000), 8000)
    (stage,) = TrackerConfig(tmp_path, (name,), "test").open("tokenizer")
    stage.log(1, {"loss": 1.0})
    stage.audio(1, tmp_path / "song.wav")
    stage.close()
    (again,) = TrackerConfig(tmp_path, (name,), "test").open("tokenizer", start=0, last_step=1)
    again.log(1, {"loss": 1.0})
    again.log(2, {"loss": 0.5})
    again.close()
    assert any(tmp_path.rglob("*"))


def test_a_run_shows_its_figures_and_every_level(tiny_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = cli("train", tiny_recipe, "--out", run, "--stage", "tokenizer", "--set", "trackers=[tensorboard]")
    assert result.exit_code == 0, result.output
    folder = run / "metrics" / "tensorboard" / "tokenizer"
    lines = [json.loads(line) for line in (run / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert points(folder) == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in logged]
    assert len(points(folder, "data_wait_share")) == len(logged)
    assert set(read(folder).Tags()["audio"]) == {
        f"track-3-{part}" for part in ("source", "levels-1", "levels-2", "levels-3")
    }
