"""Trackers: metrics, without duplicate points after an interruption."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from conftest import cli

from audiovq.data.tracks import scan
from audiovq.recipe import load_recipe
from audiovq.training import monitor
from audiovq.training.loop import Training
from audiovq.training.monitor import TrackerConfig, installed_trackers
from audiovq.training.tokenizer_task import TokenizerTask

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def points(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    """What TensorBoard shows of a folder."""
    shown = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return [(event.step, event.value) for event in shown.Scalars(name)]


def test_a_stage_that_goes_on_puts_no_point_twice(tiny_recipe: Path, music: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides=("tokenizer.training.steps=9", "tokenizer.training.log_steps=1"))

    def training() -> Training:
        task = TokenizerTask(recipe.tokenizer, recipe.data, scan(music, recipe.data), 0)
        config = TrackerConfig(tmp_path, ("tensorboard",))
        return Training(task, tmp_path, recipe.tokenizer.training, Accelerator(), trackers=config)

    first = training()
    for step, batch in enumerate(first.batches("train", 0, 7)):  # killed after step 7, the checkpoint is of step 4
        if step == 4:
            first.checkpoints.save(4)
            first.checkpoints.wait()
        first.monitor.log_step(step + 1, first.step(step, batch), first.guard)
    training().run()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in logged if "loss" in row]
    assert [step for step, _ in expected] == list(range(1, 10))
    assert points(tmp_path / "metrics" / "tensorboard" / "tokenizer") == expected


def test_a_missing_package_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(monitor.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else name)
    lines: list[str] = []
    monkeypatch.setattr(monitor, "say", lines.append)
    assert installed_trackers(("tensorboard", "wandb")) == ("wandb",)
    assert lines == [
        "trackers: tensorboard is not installed, so metrics go to metrics.jsonl only; pip install tensorboard adds it"
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_take_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    Accelerator()  # trackers ask it for the rank
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for step in (1, 2):  # the second one continues
        (tracker,) = TrackerConfig(tmp_path, (name,), "test").start("tokenizer")
        tracker.log({"loss": 1.0}, step=step)
        tracker.finish()
    assert any(tmp_path.rglob("*"))


def test_a_run_shows_its_figures(tiny_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = cli("train", tiny_recipe, "--out", run, "--stage", "tokenizer", "--set", "trackers=[tensorboard]")
    assert result.exit_code == 0, result.output
    folder = run / "metrics" / "tensorboard" / "tokenizer"
    lines = [json.loads(line) for line in (run / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert points(folder) == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in logged]
