"""Health checks: with constructed metrics, and in trainings that are made to fail."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from conftest import cli
from torch.utils.data import Dataset

from audiovq.data.datasets import name_of
from audiovq.data.tracks import scan
from audiovq.recipe import TrainingConfig, load_recipe
from audiovq.training.checkpoints import newest
from audiovq.training.health import CHECKS, StageFacts, Watch
from audiovq.training.logs import HEALTH, StepLog, read_steps
from audiovq.training.loop import Training
from audiovq.training.nonfinite import PATIENCE
from audiovq.training.tokenizer_task import TokenizerTask

FACTS = StageFacts(
    "tokenizer", "tokenizer", TrainingConfig(steps=1000, warmup_steps=10, learning_rate=1e-3), most_codes=(64, 1024),
    against_collapse="set tokenizer.model.quantizer.revival_fraction to 0.05 (now 0)",
)  # fmt: skip
FINE = {"loss": 3.0, "gradient_norm": 0.5, "perplexity_0": 30.0, "perplexity_1": 400.0, "usage_1": 0.6,
        "skipped_steps": 0.0}  # fmt: skip


def shown(*rows: dict[str, float], facts: StageFacts = FACTS, every: int = 25) -> list[dict[str, Any]]:
    """The findings for metrics that arrive every `every` steps."""
    watch = Watch(facts)
    return [finding for i, row in enumerate(rows, start=1) for finding in watch.update(i * every, {**FINE, **row})]


def test_a_good_training_has_no_findings() -> None:
    random = np.random.default_rng(0)
    rows = [
        {"loss": 8 / (1 + i) + 2 + 0.3 * random.random(), "gradient_norm": 0.2 + random.random()} for i in range(100)
    ]
    assert shown(*rows) == []


@pytest.mark.parametrize(("check", "key", "wrong", "since", "words"), [
    ("not_finite", "skipped_steps", [0, 2, 2, 3], 50, ["(2 so far)", "learning_rate to 0.00033 (now 0.001)"]),
    ("collapsed_codebook", "perplexity_1", [400, 400, 3, 2, 2, 2], 75,
     ["level 1", "2.0 of 1024 possible", "revival_fraction to 0.05"]),
    ("collapsed_codebook", "perplexity_0", [400, 400, 1.2, 1.1, 1.0], 75, ["level 0", "1.0 of 64"]),
])  # fmt: skip
def test_each_check_reports_once_what_is_wrong_since_when_and_what_to_change(
    check: str, key: str, wrong: list[float], since: int, words: list[str]
) -> None:
    found = shown(*({key: float(value)} for value in [*wrong, *wrong[-1:] * 5]))
    assert [(row["check"], row["since"]) for row in found] == [(check, since)]
    message = found[0]["message"]
    assert message.startswith(f"tokenizer: since step {since} ")
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("key", "values"), [
    ("perplexity_1", [400, 3, 3, 400, 3]),
])  # fmt: skip
def test_problems_that_do_not_last_are_not_reported(key: str, values: list[float]) -> None:
    assert shown(*({key: float(value)} for value in values)) == []


def held_out(valid: list[float], training: list[float], facts: StageFacts = FACTS) -> list[dict[str, Any]]:
    watch, found = Watch(facts), []
    for i, (a, b) in enumerate(zip(valid, training, strict=True), start=1):
        found += watch.update(100 * i, {"loss": b}) + watch.update(100 * i, {"valid_loss": a})
    return found


def test_overfitting_is_named_with_the_step_of_the_best() -> None:
    (found,) = held_out([5, 4, 3.5, 3.6, 3.7, 3.9], [5, 4, 3, 2.5, 2, 1.5])
    assert (found["check"], found["since"], found["step"]) == ("overfitting", 300, 600)
    assert "(3.5 → 3.9)" in found["message"]
    assert "tokenizer.training.steps to 300 (now 1000)" in found["message"]
    assert (
        held_out([5, 4, 3.5, 3.6, 3.7, 3.9], [5, 4, 3, 3.1, 3.1, 3.2]) == []
    )  # both losses rise, so this is no overfitting
    assert held_out([5, 4, 3.5, 3.4, 3.3, 3.3], [5, 4, 3, 2.5, 2, 1.5]) == []


@pytest.mark.parametrize("first", [50, 150])  # the first training value comes before or after the best evaluation
def test_overfitting_of_a_prior_is_told_in_bits_and_never_against_nothing(first: int) -> None:
    watch, found = Watch(FACTS), []
    for i, value in enumerate([4.0, 4.2, 4.4, 4.6], start=1):
        found += watch.update(first + 100 * (i - 1), {"loss": 1.0, "bits_per_code": 4.0 - i / 2})
        found += watch.update(100 * i, {"valid_loss": 1.0, "valid_bits_per_code": value})
    messages = [row["message"] for row in found]
    assert [message.count("bits per code rises (4 → 4.6)") for message in messages] == ([1] if first == 50 else [])


def test_metrics_from_before_the_codes_are_ignored() -> None:
    facts = StageFacts("tokenizer", "tokenizer", FACTS.training, codes_from=250, most_codes=(64,))
    assert shown(*({"perplexity_0": 1.0} for _ in range(11)), *({} for _ in range(30)), facts=facts) == []
    (found,) = shown(*({"perplexity_0": 1.0} for _ in range(16)), facts=facts)
    assert found["since"] == 325  # 50 steps of warm-up after the codes begin


def test_a_held_out_loss_that_is_not_finite() -> None:
    (found,) = Watch(FACTS).update(25, {"valid_loss": math.nan})
    assert "held-out loss is not finite" in found["message"]


def test_the_same_metrics_give_the_same_findings() -> None:
    a, b = Watch(FACTS), Watch(FACTS)
    for i in (60, 70):
        a.update(i, {"perplexity_1": 1.0})
        b.update(i, {"perplexity_1": 1.0})
    assert a.update(80, {"perplexity_1": 1.0}) == b.update(80, {"perplexity_1": 1.0}) != []


def test_every_check_has_its_case() -> None:
    assert {check.__name__ for check in CHECKS} == {"not_finite", "collapsed_codebook", "overfitting"}  # fmt: skip


def test_logs_drop_rows_after_the_checkpoint(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]
    again = StepLog(tmp_path / "metrics.jsonl", 2)
    assert (again.last_step, again.rows) == (3, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before
    path = tmp_path / HEALTH
    for stage, step in (("a", 2), ("a", 5), ("b", 9)):
        StepLog(path, 9, stage).write({"stage": stage, "step": step})
    StepLog(path, 3, "a")
    assert read_steps(tmp_path / HEALTH) == [{"stage": "a", "step": 2}, {"stage": "b", "step": 9}]


# --- trainings that go wrong ------------------------------------------------------------------------------------------


class Broken(Dataset[torch.Tensor]):
    """A data set in which the examples of some steps are NaN."""

    def __init__(self, inner: Any, steps: set[int], batch_size: int):
        self.inner, self.steps, self.batch_size = inner, steps, batch_size
        self.tracks, self.ends, self.seed = inner.tracks, inner.ends, inner.seed  # for `name_of`

    def __getitem__(self, index: int) -> torch.Tensor:
        example = self.inner[index]
        return example * math.nan if index // self.batch_size in self.steps else example

    def __len__(self) -> int:
        return len(self.inner)


class BrokenTask(TokenizerTask):
    bad_steps: frozenset[int] = frozenset()

    def dataset(self, split: str) -> Dataset[torch.Tensor]:
        inner = super().dataset(split)
        return Broken(inner, set(self.bad_steps), 2) if split == "train" else inner


def broken(
    tiny_recipe: Path, music: Path, folder: Path, steps: set[int], n: int = 6, overrides: tuple[str, ...] = (), **training: Any
) -> Training:  # fmt: skip
    recipe = load_recipe(str(tiny_recipe), overrides=overrides)
    config = recipe.tokenizer.training.model_copy(
        update={"steps": n, "evaluate_steps": 100, "ema_decay": 0.9, **training}
    )
    task = BrokenTask(recipe.tokenizer, recipe.data, scan(music, recipe.data), 0)
    task.bad_steps = frozenset(steps)
    return Training(task, folder, config, Accelerator())


@pytest.mark.parametrize(
    "quantizer", ["{kind: ema}", "{kind: gumbel, temperature_steps: 3, revival_fraction: 0.9, decay: 0.1}"]
)
@pytest.mark.parametrize("bad", [0, 1, 3])  # where the spectrum is taken, where k-means begins, later
def test_a_skipped_step_changes_nothing(
    tiny_recipe: Path, music: Path, tmp_path: Path, bad: int, quantizer: str
) -> None:
    shape = quantizer.replace("}", ", codebook_size: 16, codebook_dim: 4}")
    training = broken(tiny_recipe, music, tmp_path, {bad}, overrides=(f"tokenizer.model.quantizer={shape}",))
    batches = list(training.batches("train", 0, bad + 2))
    for step in range(bad):
        training.step(step, batches[step])
    before = {name: tensor.clone() for name, tensor in training.checkpoints.tensors().items()}
    figures = training.step(bad, batches[bad])
    assert not figures["loss"].isfinite()
    later = {k: v for k, v in training.checkpoints.tensors().items() if k in before}
    assert all(torch.equal(before[name], later[name]) for name in before)
    assert training.guard.counts.tolist() == [1, 1]
    training.step(bad + 1, batches[bad + 1])
    after = training.checkpoints.tensors()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert training.guard.counts.tolist() == [1, 0]


def test_resuming_after_skipped_steps_gives_the_same_weights(tiny_recipe: Path, music: Path, tmp_path: Path) -> None:
    whole = broken(tiny_recipe, music, tmp_path / "whole", {1, 3})
    whole.run()
    assert [row["skipped_steps"] for row in StepLog(tmp_path / "whole" / "metrics.jsonl", 99).rows if "skipped_steps" in row] == [0, 1, 1, 2, 2, 2]  # fmt: skip
    part = broken(tiny_recipe, music, tmp_path / "part", {1, 3})
    for step, batch in enumerate(part.batches("train", 0, 4)):
        part.monitor.log_step(step + 1, part.step(step, batch), part.guard, part.model)
    part.checkpoints.save(4, to_evaluate=False, skipped=part.guard.counts.tolist())
    part.checkpoints.wait()
    part.monitor.log_step(
        5, part.step(4, next(part.batches("train", 4, 5))), part.guard, part.model
    )  # lost by a kill -9
    again = broken(tiny_recipe, music, tmp_path / "part", {1, 3})
    again.run()
    for name in ("metrics.jsonl", "metrics/health.jsonl"):
        assert (tmp_path / "part" / name).read_text() == (tmp_path / "whole" / name).read_text()
    left, right = (folder_tensors(tmp_path / name) for name in ("whole", "part"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert [row["message"] for row in read_steps(tmp_path / "part" / HEALTH)] == [
        "tokenizer: since step 2 some losses or gradients are not finite, and these steps are skipped (1 so far); if it "
        "happens more often, set tokenizer.training.learning_rate to 0.00033 (now 0.001)"
    ]


def folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    saved = newest(folder / "checkpoints")
    assert saved is not None
    return load_file(saved / "state.safetensors")


def test_several_skipped_steps_stop_the_training_and_name_the_tracks(
    tiny_recipe: Path, music: Path, tmp_path: Path
) -> None:
    training = broken(tiny_recipe, music, tmp_path, set(range(2, 99)), n=20)
    names = {name_of(training.task.dataset("train"), i) for i in range(4, 2 * (2 + PATIENCE))}  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=f"not finite in the last {PATIENCE} steps, up to step {2 + PATIENCE}"
    ) as error:
        training.run()
    assert all(name in str(error.value) for name in names)
    assert "tokenizer.training.learning_rate to 0.0001 (now 0.001)" in str(error.value)


def test_a_learning_rate_of_a_thousand(tiny_recipe: Path, tmp_path: Path) -> None:
    """The command stops, and `info` has the findings."""
    run = tmp_path / "run"
    result = cli(
        "train", tiny_recipe, "--out", run, "--set", "tokenizer.training.learning_rate=1e3",
        "--set", "tokenizer.training.steps=30", "--stage", "tokenizer",
    )  # fmt: skip
    health = json.loads(cli("info", run).output)["health"]
    assert any("tokenizer.training.learning_rate to" in message for message in health), result.output
    assert all(result.output.count(message) == 1 for message in health)


def wrong_music(tiny_recipe: Path, folder: Path, waves: list[np.ndarray], *settings: str) -> list[str]:
    """The findings while a tokenizer is trained on these waveforms."""
    (folder / "music").mkdir()
    for i, wave in enumerate(waves):
        soundfile.write(folder / "music" / f"{i}.wav", wave, 8000)
    recipe = load_recipe(str(tiny_recipe), str(folder / "music"), settings)
    task = TokenizerTask(recipe.tokenizer, recipe.data, scan(folder / "music", recipe.data), 0)
    Training(task, folder, recipe.tokenizer.training, Accelerator()).run()
    return [row["message"] for row in read_steps(folder / HEALTH)]


def test_a_single_note_collapses_the_codebook(tiny_recipe: Path, tmp_path: Path) -> None:
    note = 0.3 * np.sin(2 * np.pi * 250 * np.arange(8000 * 6) / 8000)  # a period divides every hop
    health = wrong_music(
        tiny_recipe, tmp_path, [note, note[:-800]], "tokenizer.crop_seconds=2",
        "tokenizer.training={steps: 8, batch_size: 1, log_steps: 1, warmup_steps: 2, evaluate_steps: 8}",
        "tokenizer.model.quantizer.revival_fraction=0", "tokenizer.model.quantizer.codebook_size=128",
    )  # fmt: skip
    assert any("codebook of level 0 has collapsed" in m and "revival_fraction (now 0)" in m for m in health), health
