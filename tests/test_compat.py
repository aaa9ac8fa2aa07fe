"""What earlier versions wrote loads, resumes and gives the same codes. tests/fixtures/v0_1 was written by version 0.1."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import cli
from torch import nn

from audiovq import Codes, Generator, Tokenizer
from audiovq.config import build
from audiovq.pretrained.identity import (
    CANONICAL_NAMES,
    ENCODER,
    FRONTS,
    QUANTIZERS,
    TOKENIZER,
    canonical_tokenizer,
)
from audiovq.recipe import TrainingConfig, load_recipe
from audiovq.tokenizer import encoder, fronts, quantizer
from audiovq.tokenizer.vqvae import VQVAEConfig
from audiovq.training.averages import Averages
from audiovq.training.checkpoints import Checkpoints
from audiovq.utils import compat

OLD = Path(__file__).parent / "fixtures" / "v0_1"
# Settings that do not change the codes: tuning changes the decoder, and dropout works in training alone. A
# published codec has an identity of its own.
WITHOUT_EFFECT = {"decoder", "level_dropout", "codec"}
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def waveform() -> torch.Tensor:
    return torch.from_numpy(soundfile.read(OLD / "music" / "track-3.flac", dtype="float32")[0])


def copied(name: str, to: Path) -> Path:
    """A run of the fixtures whose music is where the fixtures are."""
    run = Path(shutil.copytree(OLD / name, to / name))
    for path in (run / "recipe.yaml", run / "data" / "report.json"):
        path.write_text(path.read_text().replace("MUSIC", str(OLD / "music")))
    return run


def levels(codes: Codes) -> list[list[int]]:
    return [level.tolist() for level in codes.levels]


def test_an_old_run_gives_the_same_codes_and_music(tmp_path: Path, waveform: torch.Tensor) -> None:
    run = copied("run", tmp_path)
    tokenizer = Tokenizer.from_pretrained(run, "cpu")
    assert tokenizer.hash == EXPECTED["tokenizer_hash"]
    codes = tokenizer.encode(waveform, 8000)
    assert levels(codes) == EXPECTED["codes"]
    assert tokenizer.decode(codes)[0, ::200].numpy() == pytest.approx(np.array(EXPECTED["decoded"]), abs=1e-4)
    generator = Generator.from_pretrained(run, "cpu")
    piece = generator.sample_codes(1.0, seed=3, labels={"genre": "folk"}, precision="fp32")[0]
    assert levels(piece) == EXPECTED["sampled"]


def test_an_old_exported_model_gives_the_same_codes(waveform: torch.Tensor) -> None:
    tokenizer = Tokenizer.from_pretrained(OLD / "exported", "cpu")
    assert tokenizer.hash == EXPECTED["exported_hash"]
    assert levels(tokenizer.encode(waveform, 8000)) == EXPECTED["exported_codes"]
    assert Generator.from_pretrained(OLD / "exported", "cpu").sample_codes(0.5, seed=0)


@pytest.mark.parametrize("name", ["track-3.codes", "track-3-compressed.codes"])
def test_old_codes_files_load_and_decode(name: str) -> None:
    codes = Codes.load(OLD / name)
    assert levels(codes) == EXPECTED["codes"]
    waveform = Tokenizer.from_pretrained(OLD / "run", "cpu").decode(codes)
    assert waveform[0, ::200].numpy() == pytest.approx(np.array(EXPECTED["decoded"]), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "stage", "losses"),
    [("half-tokenizer", "tokenizer", "tokenizer_losses"), ("half-prior", "prior-1", "prior_1_losses")],
)
def test_an_old_run_that_was_interrupted_goes_on(tmp_path: Path, name: str, stage: str, losses: str) -> None:
    run = copied(name, tmp_path)
    folder = ["--set", f"data.folder={OLD / 'music'}"]
    result = cli("train", OLD / "recipe.yaml", "--out", run, *folder)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (run / "training" / stage / "metrics.jsonl").read_text().splitlines()]
    found = [row["loss"] for row in rows if "loss" in row]
    assert found == pytest.approx(EXPECTED[losses], rel=1e-3)
    assert Generator.from_pretrained(run, "cpu").sample_codes(0.5, seed=0)


def test_an_old_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    run = copied("run", tmp_path)
    (run / "samples" / "prior-2").mkdir(parents=True)
    (run / "samples" / "prior-2" / "item-0.wav").touch()
    result = cli("train", OLD / "recipe.yaml", "--out", run, "--set", f"data.folder={OLD / 'music'}")
    assert result.exit_code == 0, result.output
    assert "nothing to do" in result.output


def test_an_old_recipe_means_what_its_new_names_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = (OLD / "recipe.yaml").read_text()
    new = old
    for before, after in (
        ("decorrelate:", "whiten_latents:"),
        ("    quantize_after: 2\n", ""),
        ("  crop_seconds:", "  vq_start_step: 2\n  crop_seconds:"),
        ("convergence:", "spectral_convergence:"),
        ("waveform_first:", "waveform_warmup_steps:"),
        ("halo:", "context_codes:"),
    ):
        assert before in new
        new = new.replace(before, after)
    for name, text in (("old", old), ("new", new)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("data: {", "name: same\ndata: {"))
    first, second = (load_recipe(str(tmp_path / f"{name}.yaml")) for name in ("old", "new"))
    assert first == second
    lines = capsys.readouterr().err.splitlines()
    assert sum("is now called" in line for line in lines) == len(compat.RECIPE_KEYS)


def test_set_takes_old_names_too() -> None:
    recipe = load_recipe("quickstart", overrides=("priors.0.model.halo=2", "tokenizer.model.decorrelate=true"))
    assert recipe.priors[0].model.context_codes == 2
    assert recipe.tokenizer.model.whiten_latents


def test_a_key_by_both_its_names_is_refused() -> None:
    mapping = {"tokenizer": {"losses": {"convergence": 1, "spectral_convergence": 2}}}
    with pytest.raises(ValueError, match=r"old or its new name.*found both"):
        compat.current_recipe(mapping, "x.yaml")


def test_an_old_checkpoint_with_tensors_that_networks_no_longer_have_loads(tmp_path: Path) -> None:
    old, new = (nn.ModuleDict({"tokenizer": nn.Linear(2, 2)}) for _ in range(2))
    old["tokenizer"].register_buffer("n_steps", torch.tensor(5))
    checkpoints = Checkpoints(tmp_path, old, [], Averages(old, None), TrainingConfig())
    checkpoints.save(3)
    checkpoints.wait()
    assert Checkpoints(tmp_path, new, [], Averages(new, None), TrainingConfig()).load()["step"] == 3
    assert torch.equal(old.state_dict()["tokenizer.weight"], new.state_dict()["tokenizer.weight"])


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", json.loads((OLD / "identity.json").read_text()), ids=lambda case: case["facts"][:60])
def test_identities_are_those_of_version_0_1(case: dict[str, Any]) -> None:
    config = build(VQVAEConfig, compat.current_model_config("tokenizer", case["config"]))
    assert canonical_tokenizer(config.model_dump(mode="json")) == case["facts"]


def test_every_setting_of_a_tokenizer_counts_for_its_identity_or_is_known_not_to() -> None:
    def names(config: Any) -> set[str]:
        return {CANONICAL_NAMES.get(name) or name for name in config.model_fields} - {"kind"}

    assert names(VQVAEConfig) == {*TOKENIZER, *WITHOUT_EFFECT, "encoder", "quantizer"}
    assert names(encoder.EncoderConfig) == {*ENCODER, "front"}
    for tables, kinds in ((FRONTS, fronts.FRONTS), (QUANTIZERS, quantizer.QUANTIZERS)):
        for kind in tables.keys() & kinds.keys():
            assert names(kinds[kind].Config) == tables[kind].keys(), kind
