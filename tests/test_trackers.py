"""Trackers: metrics, without duplicate points after an interruption."""

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from conftest import cli
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from audiovq.data.tracks import scan
from audiovq.planning.estimate import make_plan
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
        first.monitor.log_step(step + 1, first.step(step, batch), first.guard, first.model)
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


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_speed_is_logged_and_three_steps_are_traced(tiny_recipe: Path, music: Path, tmp_path: Path) -> None:
    """Of the tokenizer with 8 steps of 2 · 0.256 s of audio, in pairs."""
    options = ["--stage", "tokenizer", "--profile", "--set", "trackers=[tensorboard]"]
    for value in ("steps=8", "log_steps=2", "evaluate_steps=8"):
        options += ["--set", f"tokenizer.training.{value}"]
    run, folder = tmp_path / "run", tmp_path / "run" / "training" / "tokenizer"
    result = cli("train", tiny_recipe, "--out", run, *options)
    assert result.exit_code == 0, result.output
    assert f"tokenizer: a trace of 3 steps goes to {folder}/trace-0" in result.output
    (trace,) = folder.glob("trace-0.*.json")
    events = json.loads(trace.read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {name for name in names if name.startswith("ProfilerStep")} == {f"ProfilerStep#{i}" for i in (2, 3, 4)}
    assert "aten::convolution" in names
    speeds = rows(folder / "speed.jsonl")
    assert [row["step"] for row in speeds] == [2, 4, 6, 8]
    for row in speeds:
        assert row.keys() == {"step", "step_seconds", "audio_seconds_per_second", "data_wait", "tflops"}  # no GPU
        assert row["step_seconds"] * row["audio_seconds_per_second"] == pytest.approx(0.512)
        assert 0 < row["data_wait"] < 1
    recipe = load_recipe(str(tiny_recipe))
    task = TokenizerTask(recipe.tokenizer, recipe.data, scan(music, recipe.data), 0)
    with FlopCounterMode(display=False) as counter:
        task.train()(default_collate([task.dataset("train")[i] for i in (0, 1)]))[0].backward()
    for row in speeds:  # the plan counts gradients of the sound itself, too, which are not needed
        flops = row["tflops"] * 1e12 * row["step_seconds"]
        assert flops == pytest.approx(2 * make_plan(recipe, 10.0, ["tokenizer"])["stages"][0]["example_flops"])
        assert counter.get_total_flops() <= flops <= 1.6 * counter.get_total_flops()
    shown = points(run / "metrics" / "tensorboard" / "tokenizer", "step_seconds")
    assert shown == [(row["step"], pytest.approx(row["step_seconds"], rel=1e-6)) for row in speeds]
    assert not any("step_seconds" in row for row in rows(folder / "metrics.jsonl"))  # which is the same in each run


def test_the_wait_for_data_is_what_the_data_takes(tiny_recipe: Path, music: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    task = TokenizerTask(recipe.tokenizer, recipe.data, scan(music, recipe.data), 0)
    training = Training(task, tmp_path, recipe.tokenizer.training, Accelerator())
    batches = training.batches

    def slow(split: str, *span: int) -> Iterator[list[Any]]:
        for batch in batches(split, *span):
            time.sleep(0.2 if split == "train" else 0)
            yield batch

    training.batches = slow  # type: ignore[method-assign]
    training.run()
    waits = [row["data_wait"] * row["step_seconds"] for row in rows(tmp_path / "speed.jsonl")]
    assert len(waits) == 4
    assert min(waits) >= 0.2


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
