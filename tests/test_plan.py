"""`audiovq plan`: counts equal those of real steps, and times are near them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import assert_one_line_error, cli
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from audiovq.data.shards import Shards
from audiovq.data.tracks import scan
from audiovq.planning.cost import Count, Device, count_pass
from audiovq.planning.estimate import make_plan, parse_device, plan_lines
from audiovq.planning.rehearsal import random_shards
from audiovq.recipe import Recipe, load_recipe
from audiovq.training.loop import Training
from audiovq.training.prior_task import PriorTask
from audiovq.training.task import Task
from audiovq.training.tokenizer_task import TokenizerTask


def tasks(recipe: Recipe) -> dict[str, Task]:
    found = scan(Path(recipe.data.folder), recipe.data)
    shards = random_shards(found, recipe.tokenizer.model, False)
    return {
        "tokenizer": TokenizerTask(recipe.tokenizer, recipe.data, found, 0),
        "prior": PriorTask(recipe.prior(1), shards, 1, 0),
    }


def really(task: Task, n: int) -> Count:
    """One pass over `n` real examples; gradients are freed at once."""
    task.train()
    if isinstance(task, TokenizerTask):
        task.n_steps.fill_(10**6)
    batch = default_collate([task.dataset("train")[i] for i in range(n)])
    for parameter in task.network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with Count() as count:
        loss, metrics = task(batch)
        loss.backward()
        del loss, metrics
    return count


@pytest.mark.parametrize("name", ["tokenizer", "prior"])
def test_counts_on_fake_tensors_equal_those_on_real_ones(tiny_recipe: Path, name: str) -> None:
    recipe = load_recipe(str(tiny_recipe))
    real = really(tasks(recipe)[name], 3)
    config = recipe.tokenizer.training if name == "tokenizer" else recipe.prior(1).training
    cost = count_pass(lambda mode: tasks(recipe)[name], config, 3, bf16=False)
    assert cost.work.flops == real.work.flops > 0
    assert cost.work.traffic == pytest.approx(real.work.traffic, rel=0.02)
    assert cost.activations == pytest.approx(real.peak, rel=0.02)
    assert real.live < 0.01 * real.peak  # unused tensors are freed
    network = tasks(recipe)[name].network
    learning = sum(p.numel() for p in network.parameters())
    assert (cost.parameters, cost.gradients, cost.moments) == (learning, 4 * learning, 8 * learning)


def test_a_layer_counted_by_hand() -> None:
    """x [5, 7] -> Linear(7, 11) -> square -> mean: 2·5·7·11 forward, as much again for the weight's gradient."""
    layer, x = torch.nn.Linear(7, 11, bias=False), torch.randn(5, 7)
    with Count() as count:
        layer(x).square().mean().backward()
    assert count.work.flops == 2 * 2 * 5 * 7 * 11
    with FlopCounterMode(display=False) as theirs:
        layer(x).square().mean().backward()
    assert theirs.get_total_flops() == count.work.flops
    live = 4 * 5 * 11  # the layer's output, kept for the square's gradient
    assert live <= count.peak <= 4 * live + 2 * 4 * 7 * 11


def test_a_depthwise_convolution_is_counted_by_its_groups() -> None:
    layer, x = torch.nn.Conv1d(16, 16, 7, padding=3, groups=16), torch.randn(2, 16, 50, requires_grad=True)
    with Count() as count:
        layer(x).sum().backward()
    assert count.work.flops == 3 * (2 * 2 * 16 * 50 * 7)


def test_attention_with_fewer_keys_is_counted() -> None:
    q, k = torch.randn(2, 4, 8, 16, requires_grad=True), torch.randn(2, 2, 8, 16, requires_grad=True)
    with FakeTensorMode(allow_non_fake_inputs=True), Count() as count:
        torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True).sum().backward()
    forward = 2 * 2 * (2 * 4 * 8 * 8 * 16)
    assert count.work.flops == pytest.approx(forward * (1 + 2.5))


def test_fewer_at_once_take_less_memory_and_the_same_arithmetic(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    one, four = (count_pass(lambda mode: tasks(recipe)["prior"], recipe.prior(1).training, n, False) for n in (1, 4))
    assert four.work.flops == 4 * one.work.flops
    assert one.activations < four.activations < 4.1 * one.activations


def test_muon_has_one_moment_per_weight_of_its_matrices(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    config = recipe.prior(1).training
    costs = [
        count_pass(lambda mode: tasks(recipe)["prior"], config.model_copy(update={"optimizer": name}), 1, False)
        for name in ("adamw", "muon")
    ]
    layer = 3 * 16 * 16 + 16 * 16 + 3 * 16 * 48  # queries, keys, values; output; gate, up and down
    assert costs[0].moments == 8 * costs[0].parameters
    assert costs[0].moments - costs[1].moments >= 4 * layer


def test_sharded_weights_are_divided_among_devices(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides=("priors.0.training.sharded=true",))
    alone, eight = (
        count_pass(lambda mode: tasks(recipe)["prior"], recipe.prior(1).training, 1, False, n) for n in (1, 8)
    )
    for name in ("weights", "moments", "gradients"):
        assert getattr(eight, name) == pytest.approx(getattr(alone, name) / 8, abs=8)
    assert eight.gathered > 0 == alone.gathered


@pytest.fixture(scope="module")
def planned(tiny_recipe: Path) -> dict[str, Any]:
    return make_plan(load_recipe(str(tiny_recipe)))


def stage(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in plan["stages"] if stage["stage"] == name)


def test_disk_is_what_a_run_takes(planned: dict[str, Any], tiny_run: Path) -> None:
    shards = Shards(tiny_run / "codes")
    codes = sum(sum(track.lengths) for track in shards.index.tracks)
    assert stage(planned, "codes")["codes"] == pytest.approx(codes, rel=0.02)
    for name in ("tokenizer", "prior-1"):
        found = [*(tiny_run / "training" / name / "checkpoints").rglob("state.safetensors"), tiny_run / name / "model.safetensors"]  # fmt: skip
        sizes = [path.stat().st_size for path in found]
        sounds = sum(path.stat().st_size for path in (tiny_run / "samples" / name).glob("*.wav"))
        expected = 2 * sizes[0] + sizes[1] + sounds
        assert stage(planned, name)["disk_bytes"] == pytest.approx(expected, rel=0.25)  # small files: names weigh


@pytest.mark.parametrize("name", ["tokenizer", "prior"])
def test_memory_is_that_of_a_real_step(tiny_recipe: Path, tmp_path: Path, name: str) -> None:
    """The step of the loop itself, with its clipping, skipping and optimizer; its gradients stay until the end."""
    recipe = load_recipe(str(tiny_recipe))
    config = recipe.tokenizer.training if name == "tokenizer" else recipe.prior(1).training
    training = Training(tasks(recipe)[name], tmp_path, config, Accelerator())
    batches = list(training.batches("train", 0, 3))
    for step in range(2):  # codebooks and moments are there
        training.step(step, batches[step])
    with Count() as count:
        training.step(2, batches[2])
    cost = count_pass(lambda mode: tasks(recipe)[name], config, 2, bf16=False)
    assert count.peak == pytest.approx(cost.gradients + cost.activations, rel=0.25)


def test_time_is_near_what_a_step_takes(planned: dict[str, Any], tiny_recipe: Path, tmp_path: Path) -> None:
    """A generous bound, as machines are busy; `benchmarks/plan.py` has the figures."""
    recipe = load_recipe(str(tiny_recipe))
    config = recipe.tokenizer.training.model_copy(update={"steps": 8})
    training = Training(tasks(recipe)["tokenizer"], tmp_path, config, Accelerator())
    times = []
    for step, batch in enumerate(training.batches("train", 0, 8)):
        began = time.perf_counter()
        training.step(step, batch)
        times.append(time.perf_counter() - began)
    assert any("time: measured; " in line for line in plan_lines(planned))
    assert min(times) / 10 < stage(planned, "tokenizer")["seconds_a_step"] < 10 * max(times)


def test_the_command_prints_reasons_and_writes_json(tiny_recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = cli("plan", tiny_recipe, "--gpus", 2, "--device-memory", "24GiB", "--device-tflops", 100, "--json", file)
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    assert [each["stage"] for each in written["stages"]] == ["tokenizer", "codes", "prior-0", "prior-1", "prior-2"]
    assert written["memory_bytes"] == 24 * 2**30
    assert written["fits"]
    for words in (
        "on 2 × 100 TFLOPS",
        "fits; ",
        "weights",
        "TFLOP for a pass",
        "assumed: ",
        "not checked on a GPU",
        "together: ",
    ):
        assert words in result.output, words
    assert not (tmp_path / "runs").exists()


def test_what_does_not_fit_is_made_to_fit(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides=("priors.0.training.batch_size=64",))
    whole = count_pass(lambda mode: tasks(recipe)["prior"], recipe.prior(1).training, 64, bf16=True)
    tight = make_plan(recipe, Device(memory=whole.memory / 3))
    found = stage(tight, "prior-1")
    assert not found["fits"]
    assert found["fits_then"]
    assert found["passes"] == -(-64 // found["device_batch_size"]) > 1
    assert found["memory_bytes_then"] <= 0.9 * tight["memory_bytes"]
    assert any(f"set priors.0.training.device_batch_size to {found['device_batch_size']}: {found['passes']} passes" in line for line in plan_lines(tight))  # fmt: skip


def test_a_pretrained_tokenizer_is_not_trained(tiny_recipe: Path, tiny_run: Path) -> None:
    pretrained = (f"tokenizer={{from_pretrained: {tiny_run}}}", f"priors=[{{from_pretrained: {tiny_run}}}]")
    recipe = load_recipe(str(tiny_recipe), overrides=pretrained)
    stages = make_plan(recipe, Device())["stages"]
    assert [each["stage"] for each in stages] == ["codes", "prior-0", "prior-1", "prior-2"]
    assert stages[2]["parameters"] == sum(p.numel() for p in tasks(load_recipe(str(tiny_recipe)))["prior"].parameters())


def test_wrong_sizes_and_no_music(tiny_recipe: Path) -> None:
    assert parse_device(device_memory="80GB") == (Device(memory=80e9), 1)
    assert parse_device() == (None, 1)
    assert_one_line_error(cli("plan", tiny_recipe, "--device-memory", "much"), "expected a size such as 80GB")
    assert_one_line_error(cli("plan", "music"), "no music folder", "--data")
    assert_one_line_error(cli("plan", tiny_recipe, "--gpus", 64), "at least one example for each of the 64")
