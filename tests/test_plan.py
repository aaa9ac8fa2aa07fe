"""`audiovq plan`: what is counted agrees with real passes. No time is asserted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, assert_one_line_error, cli
from torch.utils.flop_counter import FlopCounterMode

from audiovq.data.shards import Shards
from audiovq.data.tracks import Scan, find_audio, scan
from audiovq.planning.estimate import (
    Device,
    Planner,
    count_pass,
    far_device,
    make_plan,
    music_seconds,
    plan_lines,
    prior_of,
    this_device,
)
from audiovq.recipe import Recipe, load_recipe
from audiovq.training.prior_task import PriorTask
from audiovq.training.tokenizer_task import TokenizerTask

FAR = Device("a GPU", 80e9, 1e14)


def stage(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in plan["stages"] if stage["stage"] == name)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe))


@pytest.fixture(scope="module")
def planned(recipe: Recipe) -> dict[str, Any]:
    return make_plan(recipe, music_seconds(recipe), device=FAR)


def test_a_layer_counted_by_hand() -> None:
    """x [5, 7] -> Linear(7, 11): 2·5·7·11 forward, twice as much backward; the square needs the layer's output."""
    layer, x = torch.nn.Linear(7, 11, bias=False), torch.randn(5, 7)
    one = count_pass(layer, lambda: layer(x).square().mean(), scale=10)
    assert one.flops == 10 * 3 * 2 * 5 * 7 * 11
    assert one.activations == 10 * 4 * (5 * 7 + 5 * 11)


def test_arithmetic_is_that_of_real_steps(recipe: Recipe, planned: dict[str, Any], tiny_run: Path) -> None:
    tasks = {
        "tokenizer": TokenizerTask(
            recipe.tokenizer, recipe.data, scan(Path(recipe.data.folder), recipe.data), 0
        ).eval(),
        "prior-1": PriorTask(recipe.prior(1), Shards(tiny_run / "codes"), 1, 0),
    }
    for name, task in tasks.items():
        batch: Any = torch.utils.data.default_collate([task.dataset("train")[0]])
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            task(batch)[0].backward()
        config = recipe.tokenizer.training if name == "tokenizer" else recipe.prior(1).training
        flops = stage(planned, name)["seconds_a_step"] * FAR.flops / config.batch_size
        # More than real: the first layers need no gradient of their input, nor does the loss of the music.
        assert 0.9 < flops / counter.get_total_flops() < 1.6, name
        learning = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
        assert stage(planned, name)["parameters"] == pytest.approx(learning, rel=0.02), name  # without label values


def test_the_codes_are_those_of_a_run(planned: dict[str, Any], tiny_run: Path) -> None:
    codes = sum(sum(track.lengths) for track in Shards(tiny_run / "codes").index.tracks)
    assert stage(planned, "codes")["codes"] == pytest.approx(codes, rel=0.05)


def test_the_music_is_as_long_as_its_headers_say(recipe: Recipe, tiny_run: Path) -> None:
    found = Scan.load(tiny_run / "data")
    assert music_seconds(recipe) == pytest.approx(sum(track.seconds for track in found.tracks), rel=0.01)
    of_codes = recipe.model_copy(update={"codes": recipe.codes.model_copy(update={"path": str(tiny_run / "codes")})})
    assert music_seconds(of_codes) == pytest.approx(music_seconds(recipe), rel=0.05)
    assert len(find_audio(Path(recipe.data.folder))) >= len(found.tracks)


def test_a_large_prior_for_five_minutes_is_far_too_large_and_a_fitting_one_is_named() -> None:
    plan = make_plan(load_recipe("music", data=str(ROOT / "samples" / "recordings")), 300, ("priors",), FAR)
    line = stage(plan, "prior-0")["size"]
    assert stage(plan, "prior-0")["too_large"]
    assert "12,920 codes of music, 22,115.4 weights for each: far too large" in line
    assert "a size that fits: priors.0.model.transformer: {dim: 256, n_layers: 4, n_heads: 4}" in line
    assert f"    {line}" in plan_lines(plan)
    fitting = ("priors=[{model: {transformer: {dim: 192, n_layers: 4, n_heads: 4}}}]",)
    for fits in (
        make_plan(load_recipe("music", data="x", overrides=fitting), 300, ("priors",), FAR),
        make_plan(load_recipe("music", data="x"), 1000 * 3600, ("priors",), FAR),
    ):
        assert not any(each["too_large"] for each in fits["stages"])


def test_sharded_weights_muon_and_checkpointing_take_less_memory() -> None:
    recipe = load_recipe("scratch")

    def parts(n_devices: int = 1, **settings: Any) -> dict[str, float]:
        training = recipe.priors[0].training.model_copy(update={"optimizer": "adamw", **settings})
        changed = recipe.model_copy(update={"priors": (recipe.priors[0].model_copy(update={"training": training}),)})
        return Planner(changed, FAR, n_devices, 60).prior(1)["memory_parts"]

    plain, eight = parts(), parts(8, sharded=True, batch_size=8)
    assert eight["moments"] == plain["moments"] / 8
    assert parts(8, sharded=True, shard_devices=4, batch_size=8)["moments"] == plain["moments"] / 4
    with pytest.raises(ValueError, match="shard_devices: expected a divisor of the 8 devices, found 3"):
        parts(8, sharded=True, shard_devices=3, batch_size=8)
    assert parts(optimizer="muon")["moments"] == plain["moments"] / 2
    assert parts(activation_checkpointing=True)["activations"] < plain["activations"]
    assert parts(device_batch_size=1)["activations"] < plain["activations"]


def test_what_does_not_fit_gets_a_smaller_micro_batch(recipe: Recipe) -> None:
    many = load_recipe("scratch", overrides=("priors.0.training.batch_size=64",))
    whole = stage(make_plan(many, 60, ("priors",), FAR), "prior-1")
    tight = make_plan(many, 60, ("priors",), Device("small", whole["memory_bytes"] / 3, 1e12))
    found = stage(tight, "prior-1")
    assert not found["fits"]
    assert 0 < found["size_that_fits"] < 64
    assert f"set priors.0.training.device_batch_size to {found['size_that_fits']}" in "\n".join(plan_lines(tight))


def test_only_missing_stages_are_planned(recipe: Recipe) -> None:
    assert [each["stage"] for each in make_plan(recipe, 60, ("codes",), FAR)["stages"]] == ["codes"]
    tuned = load_recipe("music", data="x")
    decoder = make_plan(tuned, 60, ("decoder",), FAR)["stages"][0]
    # Counted operation by operation, with the backward pass: 0.87 TFLOP per crop.
    assert decoder["seconds_a_step"] * FAR.flops / 16 == pytest.approx(0.87e12, rel=0.15)
    assert prior_of(tuned, 0).head.weight.device.type == "meta"


def test_the_command_prints_and_writes_json(tiny_recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = cli("plan", tiny_recipe, "--gpus", 2, "--device-memory", "24GiB", "--device-tflops", 100, "--json", file)
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    assert [each["stage"] for each in written["stages"]] == ["tokenizer", "codes", "prior-0", "prior-1", "prior-2"]
    assert written["memory_bytes"] == 24 * 2**30
    assert written["fits"]
    for words in (
        "on 2 × 100 TFLOPS",
        "hours of music",
        "weights for each",
        "together: ",
        "everything fits",
        "assumed: ",
    ):
        assert words in result.output, words
    assert this_device(bf16=False).flops > 1e7


def test_wrong_sizes_and_old_options(tiny_recipe: Path) -> None:
    assert far_device("24GiB", None, None).memory == 24 * 2**30
    assert far_device(None, 100, 0.5) == Device("100 TFLOPS (not here)", 80e9, 5e13)
    assert_one_line_error(cli("plan", tiny_recipe, "--device-memory", "much"), "expected a size such as 80GB")
    assert_one_line_error(cli("plan", tiny_recipe, "--device-bandwidth", 2), "no longer exists", "--utilisation")
    assert_one_line_error(cli("plan", tiny_recipe, "--gpus", 64), "at least one example for each of the 64")
    assert_one_line_error(cli("bench", "default"), "no longer exists", "benchmarks/sampling_speed.py")
