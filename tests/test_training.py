"""Checkpoints, resuming, several processes: nothing is lost and nothing differs."""

import functools
import json
import math
import operator
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, cli

from audiovq import checkpoint
from audiovq.data.shards import Shards
from audiovq.recipe import TrainingConfig, load_recipe
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.loop import _StepSampler, step_seed
from audiovq.training.optimizer import learning_rate, make_optimizer

MODELS = ("tokenizer", "prior-0", "prior-1", "prior-2")


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "audiovq", "train", str(recipe), "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {f"{m}/{k}": v for m in MODELS for k, v in checkpoint.read_tensors(run / m / "model.safetensors").items()}


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def test_learning_rate_warms_up_and_falls_to_the_end() -> None:
    config = TrainingConfig(steps=110, warmup_steps=10, learning_rate=1.0, final_fraction=0.1)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == 1.0
    assert learning_rate(10, config) == 1.0
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == pytest.approx(0.1)


def test_examples_of_a_step_do_not_depend_on_the_number_of_processes() -> None:
    alone = list(_StepSampler(3, 6, 8, 0, 1))
    shared = [list(_StepSampler(3, 6, 8, rank, 4)) for rank in range(4)]
    assert alone[0] == list(range(24, 32))
    for step in range(3):
        assert functools.reduce(operator.iadd, (part[step] for part in shared), []) == alone[step]


def test_seeds_differ_by_every_part() -> None:
    seeds = {
        step_seed(seed, name, step, rank)
        for seed in range(3)
        for name in "ab"
        for step in range(3)
        for rank in range(3)
    }
    assert len(seeds) == 54
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path, tiny_recipe: Path) -> None:
    stage = load_recipe(str(tiny_recipe)).tokenizer
    network = VQVAE(stage.model).train()
    optimizer = make_optimizer(network, stage.training)
    for _ in range(3):
        out = network(0.3 * torch.randn(2, 1, 2048))
        (out.reconstructions[0].square().mean() + out.losses["commitment"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    checkpoint.save_training(tmp_path, 3, network, optimizer)
    other = VQVAE(stage.model)
    fresh = make_optimizer(other, stage.training)
    newest = checkpoint.newest_training(tmp_path)
    assert newest is not None
    assert checkpoint.load_training(newest, other, fresh) == 3
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )
    for (_, p), (_, q) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        assert optimizer.state[p].keys() == fresh.state[q].keys()
        assert all(torch.equal(optimizer.state[p][k], fresh.state[q][k]) for k in optimizer.state[p])


def test_a_damaged_checkpoint_is_passed_over_for_an_older_whole_one(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    checkpoint.save_training(tmp_path / "a", 1, network, optimizer)
    checkpoint.save_training(tmp_path / "b", 2, network, optimizer)
    (tmp_path / "b" / "step-00000002").rename(tmp_path / "a" / "step-00000002")
    assert checkpoint.newest_training(tmp_path / "a") == tmp_path / "a" / "step-00000002"
    path = tmp_path / "a" / "step-00000002" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    assert checkpoint.newest_training(tmp_path / "a") == tmp_path / "a" / "step-00000001"
    (tmp_path / "a" / ".step-00000003.tmp").mkdir()  # a save that was cut off
    assert checkpoint.newest_training(tmp_path / "a") == tmp_path / "a" / "step-00000001"
    checkpoint.save_training(tmp_path / "a", 3, network, optimizer)
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == ["step-00000003"]  # older ones are pruned after


def test_a_finished_run_says_so(tiny_run: Path, tiny_recipe: Path) -> None:
    before = weights(tiny_run)
    result = cli("train", tiny_recipe, "--out", tiny_run)
    assert result.exit_code == 0
    assert "finished, nothing to do" in result.output
    assert all(torch.equal(before[name], value) for name, value in weights(tiny_run).items())


def test_a_run_leaves_audio_of_every_level_after_each_stage(tiny_run: Path) -> None:
    names = {p.name for p in (tiny_run / "samples" / "tokenizer").iterdir()}
    assert {f"track-3-{part}.wav" for part in ("source", "levels-1", "levels-2", "levels-3")} | {"track-3.png"} <= names
    for level in range(3):
        assert {p.name for p in (tiny_run / "samples" / f"prior-{level}").iterdir()} == {"item-0.wav", "items.png"}
    report = json.loads((tiny_run / "report.json").read_text())
    assert report["split"] == "valid"
    for level, rate in zip(report["levels"], (8000 / 256, 8000 / 128, 8000 / 64), strict=True):
        assert level["bits_per_second"] == pytest.approx(level["bits_per_code"] * rate)


def test_stages_one_by_one_give_the_same_run(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    early = cli("train", tiny_recipe, "--out", tmp_path / "run", "--stage", "priors")
    assert early.exit_code == 2
    assert "stage priors needs stage tokenizer" in early.output
    for stage in ("tokenizer", "codes", "priors"):
        assert cli("train", tiny_recipe, "--out", tmp_path / "run", "--stage", stage).exit_code == 0
    assert_same_weights(tiny_run, tmp_path / "run")


def test_another_recipe_may_not_go_on_in_the_same_folder(tiny_run: Path, tiny_recipe: Path) -> None:
    result = cli("train", tiny_recipe, "--out", tiny_run, "--set", "tokenizer.training.steps=5")
    assert result.exit_code == 2
    assert "holds a run of another recipe (tokenizer.training.steps: 4 → 5)" in result.output


def test_killed_at_any_moment_it_ends_in_the_same_weights(tiny_recipe: Path, tmp_path: Path) -> None:
    """kill -9 again and again, each time a little later; the last attempt is left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--set", "tokenizer.training.steps=8", "--set", "tokenizer.training.checkpoint_seconds=0",
               "--set", "priors.0.training.checkpoint_seconds=0")  # fmt: skip
    began = time.monotonic()
    subprocess.run(command(tiny_recipe, whole, *options), env=environment(), check=True, capture_output=True)
    full = time.monotonic() - began
    dice = random.Random(0)
    for attempt in range(3):
        process = subprocess.Popen(
            command(tiny_recipe, killed, *options),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=full * (0.45 + 0.2 * attempt * dice.random()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command(tiny_recipe, killed, *options), env=environment(), check=True, capture_output=True)
    assert_same_weights(whole, killed)
    last = (killed / "training" / "tokenizer" / "metrics.jsonl").read_text()
    assert last == (whole / "training" / "tokenizer" / "metrics.jsonl").read_text()


def test_sigterm_ends_the_step_saves_and_says_how_to_go_on(tiny_recipe: Path, tmp_path: Path) -> None:
    options = ("--set", "tokenizer.training.steps=100000", "--set", "tokenizer.training.evaluate_steps=100000")
    process = subprocess.Popen(
        command(tiny_recipe, tmp_path / "run", *options), env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "training" / "tokenizer" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    newest = checkpoint.newest_training(tmp_path / "run" / "training" / "tokenizer" / "checkpoints")
    assert newest is not None
    assert int(newest.name.removeprefix("step-")) > 3


def test_a_loss_that_is_not_finite_stops_with_advice(tiny_recipe: Path, tmp_path: Path) -> None:
    result = cli("train", tiny_recipe, "--out", tmp_path / "run", "--set", "tokenizer.training.learning_rate=1e30")
    assert result.exit_code == 2
    assert "try a lower learning_rate" in result.output


def test_two_processes_share_the_work_and_agree(tiny_recipe: Path, tmp_path: Path) -> None:
    """gloo on one machine: the whole run, with one model as result, close to that of one process."""
    options = ("--set", "tokenizer.model.level_dropout=0", "--set", "tokenizer.training.steps=3")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29871", "-m", "audiovq",
              "train", str(tiny_recipe), "--out", str(tmp_path / "two"), *options]  # fmt: skip
    subprocess.run(
        launch, env={**environment(), "ACCELERATE_USE_CPU": "true"}, check=True, capture_output=True, timeout=200
    )
    subprocess.run(command(tiny_recipe, tmp_path / "one", *options), env=environment(), check=True, capture_output=True)

    def first_loss(run: str) -> float:
        return json.loads((tmp_path / run / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()[0])[
            "loss"
        ]

    assert first_loss("two") == pytest.approx(first_loss("one"), rel=1e-4)
    assert weights(tmp_path / "two").keys() == weights(tmp_path / "one").keys()


@pytest.mark.parametrize(("quantizer", "hops"), [
    ("{kind: gumbel, codebook_size: 16, codebook_dim: 4, temperature_steps: 3}", [256, 128, 64]),
    ("{kind: fsq, levels: [4, 3]}", [128, 128, 64, 64]),
    ("{kind: ema, codebook_size: 16, codebook_dim: 4, gradient: rotation}", [256, 256]),
])  # fmt: skip
def test_other_quantizers_and_repeated_hops_go_the_whole_way(
    tiny_recipe: Path, tmp_path: Path, quantizer: str, hops: list[int]
) -> None:
    out = tmp_path / "run"
    options = ("--set", f"tokenizer.model.quantizer={quantizer}", "--set", f"tokenizer.model.hop_lengths={hops}")
    options += ("--set", "tokenizer.losses.mel_windows=[256, 1024]")
    result = cli("train", tiny_recipe, "--out", out, *options, "--stage", "tokenizer")
    assert result.exit_code == 0, result.output
    n = len(hops)
    lines = [json.loads(x) for x in (out / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-1]
    size = 12 if "fsq" in quantizer else 16
    raw = sum(8000 / hop for hop in hops) * math.log2(size)
    losses = load_recipe(str(out / "recipe.yaml")).tokenizer.losses
    extra = losses.commitment * last.get("commitment", 0) + losses.kl * last.get("kl", 0)
    assert last["loss"] == pytest.approx(last["reconstruction"] + extra, rel=1e-5)
    if "gumbel" in quantizer:
        assert 0 < last["kl"] < math.log(size)
        assert 0 < last["kl_bits_per_second"] < raw
    else:
        assert last["kl_bits_per_second"] == pytest.approx(raw)
    early = json.loads(cli("info", out).output)["codebooks"]
    assert early["of"] == "the batch of training step 4"
    assert [level["perplexity"] for level in early["levels"]] == [last[f"perplexity_{i}"] for i in range(n)]
    result = cli("train", tiny_recipe, "--out", out, *options)
    assert result.exit_code == 0, result.output
    whole = json.loads(cli("info", out).output)["codebooks"]
    assert whole["of"] == "all codes"
    shards = Shards(out / "codes")
    for level, facts in enumerate(whole["levels"]):
        codes = np.concatenate([shards.codes(track, level) for track in shards.index.tracks])
        p = np.unique(codes, return_counts=True)[1] / len(codes)
        assert facts["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert facts["usage"] == len(p) / size
        assert facts["unigram_bits_per_second"] == pytest.approx(-(p * np.log2(p)).sum() * 8000 / hops[level])
    result = cli("sample", "--model", out, "--seconds", 1, "--seed", 0, "--out", tmp_path / "x.wav")
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "x.wav").frames == 8000
