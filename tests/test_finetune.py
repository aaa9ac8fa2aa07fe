"""Finetuning: pretrained tokenizer and priors, new labels, adapters, early stopping."""

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from accelerate import Accelerator
from conftest import assert_one_line_error, cli, tones
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiovq import Generator, Tokenizer, api
from audiovq.data.shards import Shards
from audiovq.pretrained import checkpoint
from audiovq.pretrained.adopt import adopt_pretrained
from audiovq.prior.conditioners import Conditions
from audiovq.prior.extend import describe_new_labels, extend_vocabularies, extended
from audiovq.prior.prior import Prior, PriorConfig, PriorSpec
from audiovq.recipe import TrainingConfig, load_recipe
from audiovq.training import loop
from audiovq.training.loop import Training
from audiovq.training.prior_task import PriorTask
from audiovq.training.task import Task
from audiovq.utils.compat import current_recipe

FINETUNE = """
data: {{folder: {folder}, valid_fraction: 0.34, min_seconds: 0.5}}
precision: fp32
tokenizer: {{from_pretrained: {run}}}
priors:
  - from_pretrained: {run}
    model: {{conditioners: [{{kind: label, name: genre}}, {{kind: label, name: mood}}], transformer: {{dropout: 0.3}}}}
    training: {{steps: 6, batch_size: 2, log_steps: 1, evaluate_steps: 2, evaluate_batches: 1, warmup_steps: 1, patience: 2}}
samples: {{seconds: 0.3, n: 1}}
"""


@pytest.fixture(scope="module")
def own_music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for i, genre in enumerate(("jazz", "folk", "blues")):
        soundfile.write(folder / f"own-{i}.wav", tones(2, 8000, seed=20 + i), 8000)
        (folder / f"own-{i}.json").write_text(
            json.dumps({"genre": genre, "mood": "calm", "split": "valid" if i == 1 else "train"})
        )
    return folder


@pytest.fixture(scope="module")
def finetune_recipe(tmp_path_factory: pytest.TempPathFactory, own_music: Path, tiny_run: Path) -> Path:
    path = tmp_path_factory.mktemp("finetune") / "own.yaml"
    path.write_text(FINETUNE.format(folder=own_music, run=tiny_run))
    return path


@pytest.fixture(scope="module")
def finetuned(finetune_recipe: Path) -> Path:
    out = finetune_recipe.parent / "run"
    result = cli("train", finetune_recipe, "--out", out)
    assert result.exit_code == 0, result.output
    assert "genre: new blues, jazz, known folk, rock; mood: new calm" in result.output
    return out


def test_the_tokenizer_is_copied_and_the_codes_are_its_own(finetuned: Path, tiny_run: Path) -> None:
    old, new = Tokenizer.from_pretrained(tiny_run), Tokenizer.from_pretrained(finetuned)
    assert new.hash == old.hash
    assert all(
        torch.equal(a, b)
        for a, b in zip(new.network.state_dict().values(), old.network.state_dict().values(), strict=True)
    )
    assert Shards(finetuned / "codes").index.tokenizer_hash == old.hash
    assert not (finetuned / "training" / "tokenizer").exists()
    assert list((finetuned / "samples" / "tokenizer").glob("own-1-*.wav"))


def test_priors_learned_and_know_old_and_new_labels(finetuned: Path, tiny_run: Path) -> None:
    old, new = Generator.from_pretrained(tiny_run), Generator.from_pretrained(finetuned)
    assert new.labels == {"genre": ["folk", "rock", "blues", "jazz"], "mood": ["calm"]}
    assert any(not torch.equal(a.head.weight, b.head.weight) for a, b in zip(old.priors, new.priors, strict=True))
    assert new.priors[0].config.transformer.dropout == 0.3
    assert new.sample(0.3, labels={"genre": "jazz", "mood": "calm"}).shape == (1, 1, 2400)
    assert (finetuned / "report.json").is_file()


def test_only_the_new_prior_is_trained(finetuned: Path, tiny_run: Path) -> None:
    """The task has no other weights, which would take memory on the device."""
    start, _ = checkpoint.load_prior(tiny_run / "prior-0")
    stage = load_recipe(str(finetuned / "recipe.yaml")).prior(0)
    task = PriorTask(stage, Shards(finetuned / "codes"), 0, 0, start)
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.network.parameters()}


def test_the_same_command_finds_it_finished_and_another_recipe_is_refused(
    finetune_recipe: Path, finetuned: Path
) -> None:
    assert "finished, nothing to do" in cli("train", finetune_recipe, "--out", finetuned).output
    assert "finished, nothing to do" in cli("train", finetuned / "recipe.yaml", "--out", finetuned).output
    other = cli("train", finetune_recipe, "--out", finetuned, "--set", "priors.0.model.transformer.dropout=0.1")
    assert_one_line_error(other, "holds a run of another recipe")


def test_contradictions_to_the_pretrained_model_are_errors(finetune_recipe: Path, tmp_path: Path) -> None:
    for override, words in (
        ("tokenizer.model.dim=32", ("tokenizer.model.dim", "16 → 32")),
        ("priors.0.model.transformer.dim=32", ("priors.0.model.transformer.dim", "16 → 32")),
        ("priors.0.model.conditioners=[{kind: text}]", ("a text conditioner cannot be added",)),
        ("tokenizer.from_pretrained=null", ("priors.0.from_pretrained: expected tokenizer.from_pretrained, too",)),
        ("tokenizer.from_pretrained=default", ("expected a prior of tokenizer",)),
        ("tokenizer.from_pretrained=./nowhere", ("no such model",)),
    ):
        assert_one_line_error(cli("train", finetune_recipe, "--out", tmp_path / "x", "--set", override), *words)
    assert current_recipe({"priors": [{"lora": None}]}, "own.yaml") == {"priors": [{}]}
    with pytest.raises(ValueError, match=r"own\.yaml: priors.*lora no longer exists"):
        current_recipe({"priors": [{"lora": {"rank": 2}}]}, "own.yaml")


def test_the_finetune_recipe_adopts_the_bundled_model() -> None:
    recipe = adopt_pretrained(load_recipe("finetune"))
    assert recipe.tokenizer.model == checkpoint.load_tokenizer(api.bundled_model() / "tokenizer").config
    assert len(recipe.priors) == 4
    assert [(c.kind, c.name) for c in recipe.priors[2].model.conditioners] == [("label", "timbre"), ("label", "genre")]
    silent = [[(c.kind, c.dropout) for c in prior.model.conditioners if c.kind == "timing"] for prior in recipe.priors]
    assert silent == [[("timing", 1.0)], [("timing", 1.0)], [], []]  # where there is none, none is added to be silent
    assert recipe.priors[0].model.transformer.dim == 192
    assert recipe.priors[0].model.transformer.dropout == 0.2
    assert adopt_pretrained(recipe) == recipe
    only_tokenizer = adopt_pretrained(recipe.model_copy(update={"priors": ()}))
    assert (only_tokenizer.n_priors, only_tokenizer.tokenizer.model) == (0, recipe.tokenizer.model)


def test_sampling_settings_are_those_of_the_pretrained_priors_unless_the_recipe_has_its_own(tmp_path: Path) -> None:
    priors = "priors: [{from_pretrained: default, sampling: {temperature: 0.9}}]"
    (tmp_path / "own.yaml").write_text(f"tokenizer: {{from_pretrained: default}}\n{priors}\n")
    recipe = adopt_pretrained(load_recipe(str(tmp_path / "own.yaml")))
    found = [(prior.sampling.temperature, prior.sampling.top_p) for prior in recipe.priors]
    assert found == [(0.9, 0.95), (0.9, 0.95), (0.9, 0.5), (0.9, 0.3)]


# --- a prior that goes on ---------------------------------------------------------------------------------------------


def small_prior() -> Prior:
    config = PriorConfig.model_validate({
        "transformer": {"dim": 16, "n_layers": 2, "n_heads": 2, "context": 16}, "conditioners": ({"kind": "label", "name": "genre"},),
    })  # fmt: skip
    return Prior(config, PriorSpec(0, [64], 8000, 8, "0" * 64, {"genre": ["folk", "rock"]})).eval()


def logits(prior: Prior, genre: int, mood: int = 0) -> Tensor:
    conditions = Conditions(
        {"genre": torch.tensor([genre]), "mood": torch.tensor([mood])}, torch.tensor([6400]), torch.tensor([0])
    )
    codes = torch.tensor([[8, 1, 2, 3, 4, 5]])
    return prior(codes, prior.context(torch.zeros(0), conditions, 6)).detach()


def test_an_extended_prior_begins_as_the_old_one() -> None:
    old = small_prior()
    config = PriorConfig.model_validate({
        **old.config.model_dump(),
        "conditioners": (*old.config.model_dump()["conditioners"], {"kind": "label", "name": "mood"}, {"kind": "timing"}, {"kind": "chroma"}),
    })  # fmt: skip
    known = extend_vocabularies(old.spec.vocabularies, {"genre": ["blues", "folk"], "mood": ["calm"]})
    assert known == {"genre": ["folk", "rock", "blues"], "mood": ["calm"]}
    new = extended(old, config, PriorSpec(0, [64], 8000, 8, "0" * 64, known)).eval()
    for genre in (0, 1, 2):
        assert torch.equal(logits(new, genre), logits(old, genre))
    assert torch.equal(logits(new, 3), logits(old, 0))  # a new value is a copy of unknown
    assert not torch.equal(logits(new, 1, mood=1), logits(new, 1))
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert describe_new_labels(old.spec.vocabularies, known) == (
        "labels: genre: new blues, known folk, rock; mood: new calm"
    )


# --- early stopping ---------------------------------------------------------------------------------------------------


class Zeros(Dataset[Tensor]):
    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(())


class Overfits(Task):
    """Held-out loss falls until the weight is 3 and rises after; each training step raises the weight by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)

    def dataset(self, split: str) -> Dataset[Tensor]:
        return Zeros()

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weight = next(self.network.parameters()).sum()
        loss = -weight if self.training else (weight - 3).abs()
        return loss, {"weight": weight.detach()}


@pytest.fixture
def steps_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "audiovq.training.loop.make_optimizer", lambda n, c: torch.optim.SGD(n.parameters(), lr=1.0, fused=True)
    )
    monkeypatch.setattr("audiovq.training.task.Part.learning_rate", lambda part, step: 1.0)


def run_overfits(folder: Path, **settings: float) -> float:
    config = TrainingConfig(steps=20, batch_size=1, evaluate_steps=1, evaluate_batches=1, **settings)  # type: ignore[arg-type]
    task = Overfits()
    Training(task, folder, config, Accelerator(cpu=True)).run()
    return float(next(task.network.parameters()).detach())


@pytest.mark.usefixtures("steps_of_one")
def test_training_stops_with_the_best_weights(tmp_path: Path) -> None:
    assert run_overfits(tmp_path / "a") == pytest.approx(20, abs=1e-3)
    assert run_overfits(tmp_path / "b", patience=4) == pytest.approx(3, abs=1e-3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 7
    assert run_overfits(tmp_path / "b", patience=4) == pytest.approx(3, abs=1e-3)  # killed after the loop: all is there


@pytest.mark.usefixtures("steps_of_one")
def test_losses_from_before_the_codes_are_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overfits, "health_facts", lambda self: {"codes_from": 8})
    assert run_overfits(tmp_path, patience=4) == pytest.approx(9, abs=1e-3)  # the first one that counts


def test_checkpoints_of_every_so_many_steps_are_written_and_kept(tmp_path: Path) -> None:
    run_overfits(tmp_path, keep_every_steps=6, keep_checkpoints=1, checkpoint_seconds=1e6)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == [
        f"step-{n:08d}" for n in (6, 12, 18, 20)
    ]


@pytest.mark.usefixtures("steps_of_one")
def test_early_stopping_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = loop.Training.evaluate, 0

    def killed(*arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt  # as kill -9: after the best weights of step 3 and before the checkpoint of step 5
        return evaluate(*arguments)

    monkeypatch.setattr(loop.Training, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run_overfits(tmp_path, patience=4, checkpoint_seconds=0.0)
    monkeypatch.setattr(loop.Training, "evaluate", evaluate)
    assert run_overfits(tmp_path, patience=4) == pytest.approx(3, abs=1e-3)
