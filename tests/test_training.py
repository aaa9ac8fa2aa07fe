"""Training: batches, checkpoints, resuming after interruptions, and the files of a run."""

import itertools
import json
import math
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
from torch.optim.swa_utils import get_ema_multi_avg_fn

from audiovq.data import data_config
from audiovq.data.shards import Shards
from audiovq.pretrained import checkpoint
from audiovq.recipe import TrainingConfig, load_recipe
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.averages import Averages
from audiovq.training.batches import BatchSplit, step_seed
from audiovq.training.checkpoints import Checkpoints, newest
from audiovq.training.optimizer import make_optimizer
from audiovq.training.task import Part

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
    rate = Part(torch.nn.Identity(), config).learning_rate
    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == 1.0
    assert rate(10) == 1.0
    assert rate(60) == pytest.approx(0.55)
    assert rate(110) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("batch_size", "device_batch_size", "world_size"), [(8, None, 4), (7, 2, 2), (9, 1, 4), (3, 1, 2), (5, 8, 1)]
)
def test_every_example_is_in_one_microbatch_of_one_rank(
    batch_size: int, device_batch_size: int | None, world_size: int
) -> None:
    taken, microbatches = [], []
    for rank in range(world_size):
        mine = BatchSplit(batch_size, device_batch_size, rank, world_size).microbatches()
        microbatches.append(len(mine))
        assert all(1 <= p.n <= (device_batch_size or batch_size) for p in mine)
        taken += [p.first + i for p in mine if p.counts for i in range(p.n)]
        assert all(p.first + p.n <= batch_size for p in mine)
    assert taken == list(range(batch_size))
    assert len(set(microbatches)) == 1  # they meet in collectives


def test_more_processes_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one example for each of the 4 processes, found 3; use fewer"):
        BatchSplit(3, None, 0, 4)


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


def test_averages_are_those_of_torch_after_their_warm_up() -> None:
    network, decay = torch.nn.Linear(3, 3), 0.9
    averages = Averages(network, decay)
    expected = [p.detach().clone() for p in network.parameters()]
    for step in range(200, 203):
        for p in network.parameters():
            torch.nn.init.normal_(p)
        averages.update(step, torch.tensor(True))
        get_ema_multi_avg_fn(decay)(expected, [p.detach() for p in network.parameters()], 1)
        averages.update(step, torch.tensor(False))  # a skipped step
    assert all(torch.allclose(a, b) for a, b in zip(averages.tensors.values(), expected, strict=True))


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path, tiny_recipe: Path) -> None:
    stage = load_recipe(str(tiny_recipe)).tokenizer
    network = VQVAE(stage.model).train()
    optimizer = make_optimizer(network, stage.training)
    for _ in range(3):
        out = network(0.3 * torch.randn(2, 1, 2048))
        (out.reconstructions[0].square().mean() + out.losses["commitment"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    averages = Averages(network, 0.9)
    averages.tensors = {name: torch.randn_like(tensor) for name, tensor in averages.tensors.items()}
    first = Checkpoints(tmp_path, network, [optimizer], averages, TrainingConfig())
    first.save(3, note="x")
    first.wait()
    other = VQVAE(stage.model)
    fresh, others = make_optimizer(other, stage.training), Averages(other, 0.9)
    assert Checkpoints(tmp_path, other, [fresh], others, TrainingConfig()).load() == {"step": 3, "note": "x"}
    assert all(torch.equal(averages.tensors[name], others.tensors[name]) for name in averages.tensors)
    with pytest.raises(ValueError, match="expected weights of this recipe's network"):
        Checkpoints(
            tmp_path, other, [make_optimizer(other, stage.training)], Averages(other, None), TrainingConfig()
        ).load()
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )
    for (_, p), (_, q) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        assert optimizer.state[p].keys() == fresh.state[q].keys()
        assert all(torch.equal(optimizer.state[p][k], fresh.state[q][k]) for k in optimizer.state[p])


def test_an_older_checkpoint_replaces_a_damaged_one(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    a, b = (
        Checkpoints(tmp_path / name, network, [optimizer], Averages(network, None), TrainingConfig()) for name in "ab"
    )
    a.save(1)
    b.save(2)
    a.wait()
    b.wait()
    (tmp_path / "b" / "step-00000002").rename(tmp_path / "a" / "step-00000002")
    assert newest(tmp_path / "a") == tmp_path / "a" / "step-00000002"
    path = tmp_path / "a" / "step-00000002" / "state.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    assert newest(tmp_path / "a") == tmp_path / "a" / "step-00000001"
    (tmp_path / "a" / ".step-00000003.tmp").mkdir()  # saves that were cut off
    (tmp_path / "a" / ".step-00000007.parts").mkdir()
    assert newest(tmp_path / "a") == tmp_path / "a" / "step-00000001"
    a.save(3)
    a.wait()
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == ["step-00000003"]  # older ones are pruned after


def test_a_finished_run_says_so(tiny_run: Path, tiny_recipe: Path) -> None:
    before = weights(tiny_run)
    result = cli("train", tiny_recipe, "--out", tiny_run)
    assert result.exit_code == 0
    assert "finished, nothing to do" in result.output
    assert all(torch.equal(before[name], value) for name, value in weights(tiny_run).items())


def test_a_run_leaves_audio_of_every_level_after_each_stage(tiny_run: Path) -> None:
    names = {p.name for p in (tiny_run / "samples" / "tokenizer").iterdir()}
    assert {f"track-3-{part}.wav" for part in ("source", "levels-1", "levels-2", "levels-3")} == names
    for level in range(3):
        assert {p.name for p in (tiny_run / "samples" / f"prior-{level}").iterdir()} == {"item-0.wav"}
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


def test_a_run_folder_refuses_another_recipe(tiny_run: Path, tiny_recipe: Path) -> None:
    result = cli("train", tiny_recipe, "--out", tiny_run, "--set", "tokenizer.training.steps=5")
    assert result.exit_code == 2
    assert "holds a run of another recipe (tokenizer.training.steps: 4 → 5)" in result.output
    how = cli("train", tiny_recipe, "--out", tiny_run, "--set", "tokenizer.training.device_batch_size=1")
    assert "finished, nothing to do" in how.output  # how it is computed may change
    assert load_recipe(str(tiny_run / "recipe.yaml")).tokenizer.training.device_batch_size == 1
    assert cli("train", tiny_recipe, "--out", tiny_run).exit_code == 0


def test_killed_at_any_moment_it_ends_in_the_same_weights(tiny_recipe: Path, tmp_path: Path) -> None:
    """Attempts in two stages end by kill -9; the last one finishes."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--set", "tokenizer.training.steps=8", "--set", "tokenizer.training.checkpoint_seconds=0",
               "--set", "priors.0.training.checkpoint_seconds=0")  # fmt: skip
    dice = random.Random(0)
    for stage, n_rows in (("tokenizer", 2), ("tokenizer", 6), ("prior-1", 1)):
        log = killed / "training" / stage / "metrics.jsonl"
        process = subprocess.Popen(
            command(tiny_recipe, killed, *options),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= n_rows):
            time.sleep(0.01)
        time.sleep(0.1 * dice.random())
        process.kill()
        process.wait()
    assert not (killed / "prior-2").exists()
    for run in (killed, whole):
        result = cli(*command(tiny_recipe, run, *options)[3:])
        assert result.exit_code == 0, result.output
    assert_same_weights(whole, killed)
    last = (killed / "training" / "tokenizer" / "metrics.jsonl").read_text()
    assert last == (whole / "training" / "tokenizer" / "metrics.jsonl").read_text()


def test_sigterm_saves_after_the_step_and_tells_how_to_resume(tiny_recipe: Path, tmp_path: Path) -> None:
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
    assert "give the same command again" in errors
    assert "Traceback" not in errors
    saved = newest(tmp_path / "run" / "training" / "tokenizer" / "checkpoints")
    assert saved is not None
    assert int(saved.name.removeprefix("step-")) > 3


def test_a_loss_that_is_not_finite_stops_with_advice(tiny_recipe: Path, tmp_path: Path) -> None:
    result = cli("train", tiny_recipe, "--out", tmp_path / "run", "--set", "tokenizer.training.learning_rate=1e15")
    assert result.exit_code == 2
    assert "try a lower learning_rate" in result.output


def test_kill_9_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process only saves. It is killed at 10 random moments, and at more until one was within a save."""
    network = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(network.parameters())
    config = TrainingConfig(checkpoint_seconds=0)
    checkpoints = Checkpoints(tmp_path, network, [optimizer], Averages(network, None), config)
    dice, first, cut = random.Random(0), 0, 0
    for kills in itertools.count():
        if kills >= 10 and (cut or kills == 200):
            break
        child = os.fork()
        if child == 0:
            for step in range(first, 10**6):
                torch.nn.init.constant_(network.weight, step)
                checkpoints.save(step)
            os._exit(0)
        while not (found := newest(tmp_path)) or int(found.name.removeprefix("step-")) < first:
            time.sleep(0.002)
        time.sleep(0.02 * dice.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cut += any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
        step = checkpoints.load()["step"]
        assert step >= first
        assert torch.equal(network.weight, torch.full((300, 300), float(step)))
        first = step + 1
    assert cut > 0  # some were killed within a save


def test_a_checkpoint_is_the_state_when_it_began_and_old_ones_are_kept_as_asked(tmp_path: Path) -> None:
    network = torch.nn.Linear(300, 300)
    config = TrainingConfig(checkpoint_seconds=10, keep_checkpoints=2, keep_every_steps=3)
    checkpoints = Checkpoints(tmp_path, network, [], Averages(network, None), config)
    for step in range(8):
        torch.nn.init.constant_(network.weight, step)
        checkpoints.save(step)
        torch.nn.init.constant_(network.weight, -1)  # the training goes on while it is written
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (0, 3, 6, 7)]
    assert checkpoints.load()["step"] == 7
    assert torch.equal(network.weight, torch.full((300, 300), 7.0))
    assert not checkpoints.due
    checkpoints.saved_at -= 11
    assert checkpoints.due
    checkpoints.stall = 1.0  # a checkpoint that holds the training up for a second comes after 50 of them
    assert not checkpoints.due


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 3)
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "file", network, [], Averages(network, None), TrainingConfig())
    checkpoints.save(1)
    with pytest.raises(ValueError, match="cannot be written"):
        checkpoints.wait()


@pytest.mark.parametrize(("quantizer", "hops"), [
    ("{kind: gumbel, codebook_size: 16, codebook_dim: 4, temperature_steps: 3}", [256, 128, 64]),
    ("{kind: fsq, levels: [4, 3]}", [128, 128, 64, 64]),
    ("{kind: ema, codebook_size: 16, codebook_dim: 4, gradient: rotation}", [256, 256]),
])  # fmt: skip
def test_all_stages_with_other_quantizers_and_repeated_hops(
    tiny_recipe: Path, tmp_path: Path, quantizer: str, hops: list[int]
) -> None:
    out = tmp_path / "run"
    options = ("--set", f"tokenizer.model.quantizer={quantizer}", "--set", f"tokenizer.model.hop_lengths={hops}")
    options += ("--set", "tokenizer.losses.mel_windows=[256, 1024]")
    result = cli("train", tiny_recipe, "--out", out, *options, "--stage", "tokenizer")
    assert result.exit_code == 0, result.output
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
    result = cli("train", tiny_recipe, "--out", out, *options)
    assert result.exit_code == 0, result.output
    shards = Shards(out / "codes")
    for level, facts in enumerate(json.loads(cli("info", out).output)["reached"]["levels"]):
        codes = np.concatenate([shards.codes(track, level) for track in shards.index.tracks.of("valid")])
        p = np.unique(codes, return_counts=True)[1] / len(codes)
        assert facts["perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        assert facts["usage"] == len(p) / size
        assert facts["unigram_bits_per_second"] == pytest.approx(-(p * np.log2(p)).sum() * 8000 / hops[level])
    result = cli("sample", "--model", out, "--seconds", 1, "--seed", 0, "--out", tmp_path / "x.wav")
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "x.wav").frames == 8000


def test_default_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU one for each core of a process but the first, at most 8; without, none."""
    monkeypatch.setattr(data_config, "cpu_count", lambda: 32)
    data = data_config.DataConfig()
    assert data.workers == "auto"
    assert data.n_workers == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for n_processes, expected in {1: 8, 4: 7, 16: 1, 32: 0, 64: 0}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(n_processes))
        assert data.n_workers == expected
    assert data.model_copy(update={"workers": 3}).n_workers == 3
    assert data.model_copy(update={"workers": 100}).n_workers == 32
