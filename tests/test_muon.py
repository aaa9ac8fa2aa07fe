"""Muon: orthogonal steps, momentum, skipped steps, and the parameters that use AdamW."""

from pathlib import Path

import pytest
import torch
from conftest import cli
from torch import nn

from audiovq.prior.conditioners import LabelConditioner, TimingConditioner
from audiovq.prior.prior import Prior, PriorConfig, PriorSpec
from audiovq.prior.transformer import TransformerConfig
from audiovq.recipe import PriorTrainingConfig, TrainingConfig
from audiovq.tokenizer.decoders import IstftDecoder
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.averages import Averages
from audiovq.training.checkpoints import Checkpoints
from audiovq.training.optimizer import MOMENTUM, SCALE, Muon, make_optimizer, orthogonal

CONFIG = PriorTrainingConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_singular_values_become_alike_and_directions_stay(shape: tuple[int, int]) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = 1e-3 * u @ torch.linspace(0.05, 1, min(shape)).diag() @ v
    found = orthogonal(matrix)
    turned = u.T @ found @ v.T  # diagonal, if the directions are the same
    values = turned.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (turned - values.diag()).abs().max() < 1e-4


def test_steps_are_those_of_the_formula() -> None:
    start, gradients = torch.randn(6, 10), torch.randn(3, 6, 10)
    weight = nn.Parameter(start.clone())
    optimizer = Muon([{"params": [weight], "orthogonal": True, "weight_decay": 0.1}], lr=0.01, fused=True)
    expected, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        direction = orthogonal((1 - MOMENTUM) * gradient + MOMENTUM * momentum)
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * SCALE * 10**0.5 * direction
        torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.8 has no Muon")
@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
def test_steps_are_those_of_torch_up_to_bfloat16(shape: tuple[int, int]) -> None:
    """torch.optim.Muon has a fifth of the scale, computes in bfloat16 on a CPU, too, and cannot skip a step."""
    start = torch.randn(shape)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([{"params": [mine], "orthogonal": True, "weight_decay": 0.1}], lr=0.01, fused=True)
    b = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    for gradient in torch.randn(3, *shape):
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert torch.equal(a.state[mine]["momentum"], b.state[theirs]["momentum_buffer"])
    assert (mine - theirs).norm() < 0.02 * (mine - start).norm()
    theirs.grad, b.found_inf = torch.full(shape, torch.nan), torch.tensor(1.0)  # type: ignore[attr-defined]
    b.step()
    assert theirs.isnan().any()


def test_a_skipped_step_changes_nothing() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    before = weight.detach().clone()
    optimizer = Muon([{"params": [weight], "orthogonal": True}], lr=0.01, fused=True)
    for gradient, found_inf in [(torch.full((4, 4), torch.nan), 1.0), (torch.ones(4, 4), 0.0)]:
        weight.grad = gradient
        optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        optimizer.step()
        if found_inf:
            assert torch.equal(weight, before)
            assert not optimizer.state[weight]["momentum"].any()
    assert (weight - before).abs().max() > 1e-4


def small_prior() -> Prior:
    torch.manual_seed(0)
    config = PriorConfig(
        transformer=TransformerConfig(dim=16, n_layers=2, n_heads=2, context=8),
        conditioners=(LabelConditioner.Config(name="genre"), TimingConditioner.Config()),
    )
    return Prior(config, PriorSpec(0, [8], 8000, 12, "", {"genre": ["folk", "rock"]}))


def test_muon_trains_the_matrices_of_layers() -> None:
    prior = small_prior()
    optimizer = make_optimizer(prior, CONFIG)
    assert isinstance(optimizer, Muon)
    names = {id(p): name for name, p in prior.named_parameters()}
    mine = {names[id(p)] for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]}
    kinds = ("attention.qkv", "attention.out", "gate_up", "down")
    assert {f"transformer.layers.{i}.{kind}.weight" for i in range(2) for kind in kinds} <= mine
    assert not mine & {"head.weight", "embedding.weight"}
    assert all(p.ndim == 2 for name, p in prior.named_parameters() if name in mine)
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(names), "each parameter once"
    assert type(make_optimizer(prior, PriorTrainingConfig())) is torch.optim.AdamW


def test_muon_trains_the_blocks_of_a_tokenizer_and_not_its_spectra() -> None:
    network = VQVAE(VQVAEConfig(dim=16, decoder=IstftDecoder.Config(dim=16, n_blocks=1)))
    optimizer = make_optimizer(network, TrainingConfig(optimizer="muon"))
    names = {id(p): name for name, p in network.named_parameters()}
    mine = {names[id(p)] for group in optimizer.param_groups if group.get("orthogonal") for p in group["params"]}
    assert "groups.0.decoder.stack.0.expand.weight" in mine
    assert not any("head" in name or "front" in name for name in mine)


def test_other_parameters_move_as_with_adamw() -> None:
    moved = []
    for config in (CONFIG, CONFIG.model_copy(update={"optimizer": "adamw"})):
        prior = small_prior()
        optimizer = make_optimizer(prior, config)
        for p in prior.parameters():
            p.grad = torch.full_like(p, 0.1)
        optimizer.step()
        moved.append(dict(prior.named_parameters()))
    for name in ("head.weight", "embedding.weight", "transformer.layers.0.attention_norm.weight"):
        assert torch.equal(moved[0][name], moved[1][name])
    assert not torch.equal(moved[0]["transformer.layers.0.down.weight"], moved[1]["transformer.layers.0.down.weight"])


def test_a_run_with_muon_and_its_checkpoints(tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    only = ("--codes", tiny_run / "codes", "--set", "priors.0.training.optimizer=muon")
    result = cli("train", tiny_recipe, "--out", tmp_path / "run", *only)
    assert result.exit_code == 0, result.output
    prior = small_prior()
    optimizer = make_optimizer(prior, CONFIG)
    for p in prior.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    checkpoints = Checkpoints(tmp_path, prior, [optimizer], Averages(prior, None), TrainingConfig())
    checkpoints.save(1)
    checkpoints.wait()
    other = small_prior()
    fresh = make_optimizer(other, CONFIG)
    assert Checkpoints(tmp_path, other, [fresh], Averages(other, None), TrainingConfig()).load() == {"step": 1}
    for p, q in zip(prior.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p].keys() == fresh.state[q].keys()
        assert all(torch.equal(optimizer.state[p][key], fresh.state[q][key]) for key in optimizer.state[p])
