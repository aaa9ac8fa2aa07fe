"""Every fast step against the prior's own forward, and an item against itself in other batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_prior import make

from audiovq.prior.prior import Prior, PriorConfig, PriorSpec
from audiovq.prior.transformer import TransformerConfig
from audiovq.sampling.engine import Engine, GraphEngine, PackedEngine, new_engine, precisions

N = 60  # positions: the ring of 12 goes round five times


def inputs(prior: Prior, batch: int, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    dim = prior.config.transformer.dim
    return torch.randint(0, prior.spec.codebook_size, (batch, n)), 0.5 * torch.randn(batch, n, dim)


def run(engine: Engine, previous: torch.Tensor, context: torch.Tensor, prefills: tuple[int, ...] = ()) -> torch.Tensor:
    """Logits [batch, n - sum(prefills), size] of the positions that are not prefilled."""
    start = 0
    for n in prefills:
        engine.prefill(previous[:, start : start + n], context[:, start : start + n])
        start += n
    steps = range(start, previous.shape[1])
    return torch.stack([engine.step(previous[:, t], context[:, t]).clone() for t in steps], dim=1)


def wide(dim: int = 64, n_heads: int = 4, n_kv_heads: int | None = None, window: int = 12, size: int = 50) -> Prior:
    """As large weights as training gives, so that logits spread over about a unit."""
    torch.manual_seed(3)
    transformer = TransformerConfig(
        dim=dim, n_layers=3, n_heads=n_heads, n_kv_heads=n_kv_heads, context=64, attention_window=window
    )
    prior = Prior(PriorConfig(transformer=transformer), PriorSpec(0, [256], 8000, size, "f" * 64, {})).eval()
    with torch.no_grad():
        for name, parameter in prior.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 2)
        prior.head.weight *= 0.7
    return prior.requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("n_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("kind", [PackedEngine, GraphEngine])
@torch.inference_mode()
def test_steps_equal_the_whole_sequence(kind: type, n_kv_heads: int | None, batch: int) -> None:
    prior = wide(n_kv_heads=n_kv_heads)
    previous, context = inputs(prior, batch)
    whole = prior(previous, context)
    assert torch.allclose(run(kind(prior, batch, "fp32"), previous, context), whole, atol=1e-5)


@pytest.mark.parametrize("prefills", [(1,), (5,), (12,), (13,), (40,), (7, 1, 20), (30, 2)])
@pytest.mark.parametrize("kind", [PackedEngine, GraphEngine])
@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_steps_after_a_prefill_of_any_length(kind: type, prefills: tuple[int, ...], batch: int) -> None:
    prior = wide(n_kv_heads=2)
    previous, context = inputs(prior, batch)
    whole = prior(previous, context)[:, sum(prefills) :]
    assert torch.allclose(run(kind(prior, batch, "fp32"), previous, context, prefills), whole, atol=1e-5)


@torch.inference_mode()
def test_steps_past_the_first_table_of_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.engine.ANGLES", 16)
    prior = make(0)
    previous, context = inputs(prior, 2)
    whole = prior(previous, context)
    assert torch.allclose(run(PackedEngine(prior, 2, "fp32"), previous, context), whole, atol=1e-5)
    assert torch.allclose(run(PackedEngine(prior, 2, "fp32"), previous, context, (21,)), whole[:, 21:], atol=1e-5)


@torch.inference_mode()
def test_angles_are_exact_after_days_of_music() -> None:
    prior, dim = make(0), make(0).config.transformer.head_dim
    engine = PackedEngine(prior, 1, "fp32")
    engine.cache.advance(10**8 + 7)
    frequencies = 10000 ** (-np.arange(0, dim, 2) / dim) * (np.arange(dim // 2) < dim // 2 - prior.transformer.n_fixed)
    exact = np.exp(1j * (10**8 + 7) * frequencies)
    assert np.allclose(engine._rotation()[0].numpy(), exact, atol=1e-6)


@torch.inference_mode()
def test_zeros_and_large_numbers_are_normed_as_the_network_norms_them() -> None:
    prior = wide()
    prior.embedding.weight.zero_()
    for scale in (0.0, 1e-4, 1e4):
        previous, context = inputs(prior, 2, 20)
        whole = prior(previous, scale * context)
        assert torch.allclose(run(PackedEngine(prior, 2, "fp32"), previous, scale * context), whole, atol=1e-4)


# Root mean square deviation of the logits, as a share of their standard deviation: at least and at most.
DEVIATION = {"fp32": (0, 2e-6), "fp16": (1e-5, 1e-3)}


@pytest.mark.parametrize("precision", DEVIATION)
@torch.inference_mode()
def test_precisions_are_as_near_as_they_say(precision: str) -> None:
    if precision not in precisions():
        pytest.skip("no FBGEMM here")
    prior = wide(dim=128)
    previous, context = inputs(prior, 4)
    whole = prior(previous, context)[:, 9:]
    deviation = run(new_engine(prior, 4, precision), previous, context, (9,)) - whole
    least, most = DEVIATION[precision]
    assert least <= float(deviation.std() / whole.std()) <= most


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="holds with MKL and FBGEMM")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("sizes", [(64, 4, None, 12, 50), (104, 4, 1, 30, 77), (192, 4, 2, 40, 1024)])
@torch.inference_mode()
def test_an_item_gets_the_same_bits_in_any_batch(precision: str, sizes: tuple[int, int, int | None, int, int]) -> None:
    if precision not in precisions():
        pytest.skip("no FBGEMM here")
    if precision == "fp32" and "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("on other makers' CPUs MKL's float32 products change their last bit with the number of rows")
    prior = wide(*sizes)
    previous, context = inputs(prior, 17)
    together = run(PackedEngine(prior, 17, precision), previous, context, (6,))
    for items in ([0], [3], [16], [3, 1], [5, 16, 0], list(range(8)), list(range(2, 15))):
        some = run(PackedEngine(prior, len(items), precision), previous[items], context[items], (6,))
        assert torch.equal(some, together[items]), items


def test_the_default_is_the_last_that_this_machine_has() -> None:
    assert new_engine(make(0), 1).precision == precisions()[-1]


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: expected auto or one of fp32.* found int4"):
        new_engine(make(0), 1, "int4")
