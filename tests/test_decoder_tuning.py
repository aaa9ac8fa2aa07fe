"""Tuning the decoder: only its weights change, codes stay the same, and the stage resumes exactly."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TRACK, assert_one_line_error, cli, tones
from test_training import command, environment
from torch import Tensor, nn

from audiovq import Generator, Tokenizer
from audiovq.data.tracks import Scan
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.recipe import Recipe, load_recipe
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.loop import Training
from audiovq.training.optimizer import make_optimizer
from audiovq.utils.files import SUMS, is_whole

TUNING = (
    "decoder_tuning.adversarial.discriminators=[{kind: multi_period, periods: [2, 3], dims: [4, 8]}, {kind: multi_resolution, windows: [128, 64], dim: 4, bands: [0.3]}]",
    "decoder_tuning.training={steps: 5, batch_size: 2, log_steps: 1, evaluate_steps: 5, evaluate_batches: 1, warmup_steps: 1, discriminator_steps: 2, checkpoint_seconds: 0}",
)  # fmt: skip
OPTIONS = [part for override in TUNING for part in ("--set", override)]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe), overrides=TUNING)


@pytest.fixture(scope="module")
def tuned_run(tiny_run: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, finished without the stage, with the decoder tuned afterwards."""
    run = tmp_path_factory.mktemp("runs") / "tuned"
    shutil.copytree(tiny_run, run)
    result = cli("train", tiny_recipe, "--out", run, "--stage", "decoder", *OPTIONS)
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def task(recipe: Recipe, tiny_run: Path) -> DecoderTask:
    return new_task(recipe, tiny_run)


def new_task(recipe: Recipe, run: Path, kind: type[DecoderTask] = DecoderTask) -> DecoderTask:
    return kind(recipe, Scan.load(run / "data"), checkpoint.load_tokenizer(run / "tokenizer"))


def a_batch() -> Tensor:
    return torch.stack([torch.from_numpy(tones(0.256, 8000, seed=i).T.copy()) for i in range(2)])


def copy_of_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def tune(task: DecoderTask, folder: Path) -> None:
    Training(task, folder, task.stage.training, Accelerator()).run()


# --- gradients --------------------------------------------------------------------------------------------------------


def test_each_loss_reaches_its_own_network_and_no_other(task: DecoderTask) -> None:
    task.train()
    batch = a_batch()
    reconstructions = task.tokenizer(batch, drop_levels=True).reconstructions
    real = task.discriminators(batch)
    task.decoder_loss(task.decoder_terms(batch, real, reconstructions)).backward(retain_graph=True)
    found = {name for name, p in task.tokenizer.named_parameters() if p.grad is not None}
    assert found == {name for name, _ in task.tokenizer.named_parameters() if ".decoder." in name}
    assert all(p.grad is None for p in task.discriminators.parameters())
    task.zero_grad()
    task.discriminator_loss(real, reconstructions).backward()
    assert all(p.grad is None for p in task.tokenizer.parameters())
    assert all(p.grad is not None for p in task.discriminators.parameters())


def test_adversarial_gradients_are_as_long_as_their_weights_say(task: DecoderTask) -> None:
    """Against separate backward passes, put together by hand."""
    task.eval()
    batch = a_batch()
    reconstructions = task.tokenizer(batch).reconstructions
    terms = task.decoder_terms(batch, task.discriminators(batch), reconstructions)
    parameters = [p for p in task.tokenizer.parameters() if p.requires_grad]

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])

    reconstruction = 15 * terms["mel"] + 5 * terms["waveform_l1"]
    parts = {name: gradient(terms[name]) for name in ("adversarial", "feature_matching")}
    main = gradient(reconstruction)
    expected = main + sum(0.5 * main.norm() / part.norm() * part for part in parts.values())
    loss = task.decoder_loss(terms)
    assert torch.allclose(gradient(loss), expected, rtol=1e-4, atol=1e-6)
    assert float(loss) == pytest.approx(
        float(reconstruction + 0.5 * terms["adversarial"] + 0.5 * terms["feature_matching"]), rel=1e-5
    )


def test_independent_autoencoders_are_tuned_each_by_itself(recipe: Recipe, tiny_run: Path) -> None:
    tokenizer_stage = recipe.tokenizer.model_copy(
        update={"model": recipe.tokenizer.model.model_copy(update={"topology": "independent"})}
    )
    network, recipe = VQVAE(tokenizer_stage.model), recipe.model_copy(update={"tokenizer": tokenizer_stage})
    task = DecoderTask(recipe, Scan.load(tiny_run / "data"), network).train()
    before, hashed = copy_of_state(network), tokenizer_hash(network)
    loss, metrics = task(a_batch())
    loss.backward()
    assert len(network(a_batch()).reconstructions) == 3
    assert metrics["adversarial"] > 1.5  # three times about 1
    make_optimizer(network, task.stage.training).step()
    heads = {name for name, _ in network.named_parameters() if ".decoder." in name}
    assert changed(before, network) == heads
    assert tokenizer_hash(network) == hashed


def test_losses_are_float32_and_nearly_the_same_under_autocast(task: DecoderTask) -> None:
    task.eval()
    batch = a_batch()
    reconstructions = task.tokenizer(batch).reconstructions
    exact = task.decoder_terms(batch, task.discriminators(batch), reconstructions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        real = task.discriminators(batch)
        rough = task.decoder_terms(batch, real, reconstructions)
        loss, _ = task(batch)
    assert real[0].scores.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert torch.equal(rough["mel"], exact["mel"])
    for name in ("adversarial", "feature_matching"):
        assert rough[name].dtype == torch.float32
        assert float(rough[name].detach()) == pytest.approx(float(exact[name].detach()), rel=0.02)


# --- what does not change ------------------------------------------------------------------------------------------------


def test_training_changes_the_decoder_and_nothing_else(task: DecoderTask, tmp_path: Path) -> None:
    before = copy_of_state(task.tokenizer)
    discriminators = copy_of_state(task.discriminators)
    tune(task, tmp_path)
    different = changed(before, task.tokenizer)
    assert different == {name for name, _ in task.tokenizer.named_parameters() if ".decoder." in name}
    assert changed(discriminators, task.discriminators) == {name for name, _ in task.discriminators.named_parameters()}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("learning_rate") for line in lines[:2]] == [0.0, 0.0]
    assert lines[0]["learning_rate_discriminators"] > 0
    assert lines[2]["learning_rate"] == 1e-4
    assert {"valid_mel", "valid_adversarial", "valid_feature_matching", "valid_discriminator"} <= lines[-1].keys()


def test_while_the_discriminators_learn_alone_the_decoder_rests(task: DecoderTask, tmp_path: Path) -> None:
    class Stops(DecoderTask):
        def describe(self, metrics: dict[str, float]) -> str:  # called once a step
            states.append((copy_of_state(self.tokenizer), copy_of_state(self.discriminators)))
            return ""

    states: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = [
        (copy_of_state(task.tokenizer), copy_of_state(task.discriminators))
    ]
    task.__class__ = Stops
    tune(task, tmp_path)
    same = [all(torch.equal(states[0][0][name], state[name]) for name in state) for state, _ in states]
    assert same[:4] == [True, True, True, False]
    assert any(not torch.equal(states[0][1][name], states[1][1][name]) for name in states[0][1])


def test_codes_of_real_music_and_identity_stay_and_sound_changes(tiny_run: Path, tuned_run: Path) -> None:
    first, second = Tokenizer.from_pretrained(tiny_run), Tokenizer.from_pretrained(tuned_run)
    codes, again = first.encode_file(TRACK), second.encode_file(TRACK)
    assert len(codes.levels[0]) > 200
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, again.levels, strict=True))
    assert first.hash == second.hash
    for n_levels in (1, 2, 3):
        assert not torch.equal(first.decode(codes, n_levels), second.decode(codes, n_levels))


def test_identity_changes_with_whatever_changes_codes(tiny_run: Path) -> None:
    network = checkpoint.load_tokenizer(tiny_run / "tokenizer")
    identity = tokenizer_hash(network)
    for name, tensor in network.state_dict().items():
        if name.endswith((".counts", ".sums", "n_steps")):
            continue
        old = tensor.clone()
        tensor += 1  # the network's own storage
        assert (tokenizer_hash(network) == identity) == (".decoder." in name), name
        tensor.copy_(old)


# --- the stage in a run -----------------------------------------------------------------------------------------------


def test_priors_made_before_the_tuning_stay_valid(tiny_run: Path, tuned_run: Path, tiny_recipe: Path) -> None:
    for name in ("codes/index.json", "prior-0/model.safetensors", "prior-2/config.json"):
        assert (tiny_run / name).read_bytes() == (tuned_run / name).read_bytes()
    old, new = Generator.from_pretrained(tiny_run), Generator.from_pretrained(tuned_run)
    a, b = old.sample_codes(1.0, seed=3)[0], new.sample_codes(1.0, seed=3)[0]
    assert all(torch.equal(x, y) for x, y in zip(a.levels, b.levels, strict=True))
    result = cli("train", tiny_recipe, "--out", tuned_run, *OPTIONS)
    assert "finished, nothing to do" in result.output
    assert json.loads(cli("info", tuned_run).output)["finished"][:3] == ["tokenizer", "decoder", "codes"]
    assert "decoder" not in json.loads(cli("info", tiny_run).output)["finished"]
    samples = {path.name for path in (tuned_run / "samples" / "decoder").iterdir()}
    assert samples == {path.name for path in (tuned_run / "samples" / "tokenizer").iterdir()}
    assert is_whole(tuned_run / "tokenizer")
    assert checkpoint.tuning_steps(tuned_run / "tokenizer") == 5
    refused = cli("train", tiny_recipe, "--out", tuned_run, *OPTIONS, "--set", "decoder_tuning.training.steps=6")
    assert_one_line_error(refused, "another recipe (decoder_tuning.training.steps: 5 → 6)")


def test_both_phases_in_one_go_are_the_same_as_tuning_afterwards(
    tuned_run: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = cli("train", tiny_recipe, "--out", run, *OPTIONS, "--stage", "tokenizer", "--stage", "decoder")
    assert result.exit_code == 0, result.output
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG):
        assert (run / "tokenizer" / name).read_bytes() == (tuned_run / "tokenizer" / name).read_bytes()
    assert (run / "recipe.yaml").read_text() == (tuned_run / "recipe.yaml").read_text()


@pytest.mark.parametrize("moved", [1, 2])
def test_cut_off_while_it_replaces_the_tokenizer(
    moved: int, tiny_run: Path, tuned_run: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """After each of the files that it replaces one by one: a whole tokenizer is there, and the stage is finished."""
    run = tmp_path / "run"
    shutil.copytree(tuned_run, run)
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(tiny_run / "tokenizer", run / "tokenizer")
    shutil.copytree(tuned_run / "tokenizer", run / ".tokenizer.tuned")
    (run / "tokenizer" / SUMS).unlink()  # goes first: the new weights have other sums
    for name in (checkpoint.WEIGHTS, SUMS)[:moved]:
        (run / ".tokenizer.tuned" / name).replace(run / "tokenizer" / name)
    tokenizer = Tokenizer.from_pretrained(run)
    assert tokenizer.hash == Tokenizer.from_pretrained(tuned_run).hash
    assert checkpoint.tuning_steps(run / "tokenizer") == 0
    result = cli("train", tiny_recipe, "--out", run, *OPTIONS)
    assert result.exit_code == 0, result.output
    for path in (tuned_run / "tokenizer").iterdir():
        assert path.read_bytes() == (run / "tokenizer" / path.name).read_bytes()
    assert not (run / ".tokenizer.tuned").exists()


# --- resuming and several processes -----------------------------------------------------------------------------------


def test_resumed_at_any_step_it_ends_in_the_same_bits(recipe: Recipe, tiny_run: Path, tmp_path: Path) -> None:
    class Breaks(DecoderTask):
        def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            if self.training and next(left) == 0:
                raise ZeroDivisionError
            return super().forward(batch)

    whole = new_task(recipe, tiny_run)
    tune(whole, tmp_path / "whole")
    end = tmp_path / "whole" / "checkpoints" / "step-00000005"
    for step in (1, 3):  # while the decoder rests, and after
        left: Iterator[int] = iter(range(step, -1, -1))
        folder = tmp_path / f"broken-{step}"
        with pytest.raises(ZeroDivisionError):
            tune(new_task(recipe, tiny_run, Breaks), folder)
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-0000000{step}"]
        again = new_task(recipe, tiny_run)
        tune(again, folder)
        for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        for path in end.iterdir():  # weights and moments of both networks
            assert path.read_bytes() == (folder / "checkpoints" / end.name / path.name).read_bytes()
        assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    moments = {k: v for k, v in checkpoint.read_tensors(end / "state.safetensors").items() if "/" in k}
    owners = {name.split("/")[1].split(".")[0] for name in moments}
    assert owners == {"tokenizer", "discriminators"}
    assert {float(v) for k, v in moments.items() if k.startswith("step/tokenizer")} == {3.0}
    assert {float(v) for k, v in moments.items() if k.startswith("step/discriminators")} == {5.0}


@pytest.mark.slow
def test_killed_at_any_moment_the_stage_ends_in_the_same_weights(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, run):
        shutil.copytree(tiny_run, folder)
    options = ("--stage", "decoder", *OPTIONS)
    subprocess.run(command(tiny_recipe, whole, *options), env=environment(), check=True, capture_output=True)
    arguments = command(tiny_recipe, run, *options)
    dice = random.Random(0)
    metrics = run / "training" / "decoder" / "metrics.jsonl"
    for lines in (1, 4):  # killed shortly after so many lines of the log
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= lines):
            time.sleep(0.02)
        time.sleep(0.03 * dice.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert Tokenizer.from_pretrained(run).hash == Tokenizer.from_pretrained(whole).hash
    subprocess.run(arguments, env=environment(), check=True, capture_output=True)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, SUMS):
        assert (run / "tokenizer" / name).read_bytes() == (whole / "tokenizer" / name).read_bytes()
    assert metrics.read_text() == (whole / "training" / "decoder" / "metrics.jsonl").read_text()


def test_two_processes_share_the_work_and_agree(
    tiny_run: Path, tuned_run: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """gloo on one machine, close to one process."""
    run = tmp_path / "two"
    shutil.copytree(tiny_run, run)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29873", "-m", "audiovq",
              "train", str(tiny_recipe), "--out", str(run), "--stage", "decoder", *OPTIONS]  # fmt: skip
    subprocess.run(
        launch, env={**environment(), "ACCELERATE_USE_CPU": "true"}, check=True, capture_output=True, timeout=200
    )
    two, one = (
        [json.loads(line) for line in (folder / "training" / "decoder" / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tuned_run)
    )
    assert len(two) == len(one) == 6
    assert two[0]["discriminator"] == pytest.approx(one[0]["discriminator"], rel=1e-4)
    for key in ("valid_discriminator", "valid_adversarial", "valid_mel"):
        assert two[-1][key] == pytest.approx(one[-1][key], rel=1e-2)
    assert checkpoint.tuning_steps(run / "tokenizer") == 5


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("override", "message"), [
    ("decoder_tuning.training.discriminator_steps=5", "decoder_tuning.training: discriminator_steps: expected less than steps 5, found 5"),
    ("decoder_tuning.adversarial.discriminators=[{kind: multi_resolution, windows: [4096]}]", "tokenizer.crop_seconds: expected at least 4096 samples, the longest window of losses, discriminators and decoder, found 2048"),
    ("tokenizer.losses={mel: 0.0, waveform_l1: 0.0}", "decoder_tuning: expected a reconstruction loss with a weight above 0"),
    ("decoder_tuning.adversarial.discriminators.1.widows=[64]", "did you mean 'windows'?"),
    ("decoder_tuning.trainng.steps=3", "decoder_tuning.trainng: unknown key, did you mean 'training'?"),
])  # fmt: skip
def test_senseless_recipes_are_refused(tiny_recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        load_recipe(str(tiny_recipe), overrides=(*TUNING, override))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_stage_needs_its_recipe_and_a_tokenizer(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    without = cli("train", tiny_recipe, "--out", tiny_run, "--stage", "decoder")
    advice = "decoder_tuning.training.steps=10000"
    assert_one_line_error(without, "stage decoder needs decoder_tuning in the recipe", f"--set {advice}")
    advised = load_recipe(str(tiny_recipe), overrides=(advice,)).decoder_tuning
    assert advised is not None
    assert advised.training.steps == 10000
    early = cli("train", tiny_recipe, "--out", tmp_path / "run", "--stage", "decoder", *OPTIONS)
    assert_one_line_error(early, "stage decoder needs stage tokenizer")
