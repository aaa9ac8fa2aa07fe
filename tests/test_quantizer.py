"""Codebooks against plain NumPy, and their health. Contract tests run over the table of quantizers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from audiovq.tokenizer.quantizer import QUANTIZERS, EMAQuantizer, Standardise


def make(size: int = 32, dim: int = 4, **options: float) -> EMAQuantizer:
    return EMAQuantizer(EMAQuantizer.Config(codebook_size=size, codebook_dim=dim, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_contract_of_every_quantizer(kind: str) -> None:
    config = QUANTIZERS[kind].Config()
    quantizer = QUANTIZERS[kind](config).train()
    x = torch.randn(2, 50, config.codebook_dim, requires_grad=True)
    quantizer.initialise([x.detach()])
    out = quantizer(x)
    assert out.codes.shape == (2, 50)
    assert out.codes.dtype == torch.int64
    assert 0 <= int(out.codes.min()) <= int(out.codes.max()) < config.codebook_size
    assert torch.allclose(out.vectors, quantizer.embed(out.codes), atol=1e-6)  # what is decoded later is what trained
    assert torch.equal(quantizer.encode(x), out.codes)
    (out.vectors.sum() + out.commitment).backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    state = quantizer.state_dict()
    other = QUANTIZERS[kind](config)
    other.load_state_dict(state)
    assert torch.equal(other.encode(x), out.codes)


def test_nearest_code_and_commitment_equal_numpy() -> None:
    quantizer = make(size=64, dim=8)
    x = torch.randn(3, 40, 8)
    out = quantizer(x)
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=-1, keepdims=True)
    distances = ((unit[:, :, None] - quantizer.embedding.numpy()) ** 2).sum(-1)
    assert np.array_equal(out.codes.numpy(), distances.argmin(-1))
    assert float(out.commitment) == pytest.approx(distances.min(-1).mean(), rel=1e-5)


def test_straight_through_passes_the_gradient_unchanged() -> None:
    quantizer = make(dim=4)
    latents = F.normalize(torch.randn(1, 10, 4), dim=-1).requires_grad_()
    weights = torch.randn(1, 10, 4)
    (quantizer(latents).vectors * weights).sum().backward()
    # through the projection to the sphere: the part of the gradient along the latent is gone, the rest is as it was
    along = (weights * latents.detach()).sum(-1, keepdim=True) * latents.detach()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, weights - along, atol=1e-5)


def test_one_update_pools_the_levels_and_decays_once() -> None:
    quantizer = make(size=8, dim=2, decay=0.9, revival_fraction=0.0)
    counts, sums = quantizer.counts.numpy().copy(), quantizer.sums.numpy().copy()
    latents = [F.normalize(torch.randn(2, n, 2), dim=-1) for n in (5, 10, 20)]
    codes = [quantizer.encode(level) for level in latents]
    quantizer.update(latents, codes)
    x = np.concatenate([level.numpy().reshape(-1, 2) for level in latents])
    flat = np.concatenate([level.numpy().ravel() for level in codes])
    for k in range(8):
        counts[k] = 0.9 * counts[k] + 0.1 * (flat == k).sum()
        sums[k] = 0.9 * sums[k] + 0.1 * x[flat == k].sum(axis=0)
    assert np.allclose(quantizer.counts.numpy(), counts, atol=1e-5)
    assert np.allclose(quantizer.sums.numpy(), sums, atol=1e-5)
    assert np.allclose(quantizer.embedding.numpy(), sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-5)


def test_dead_codes_are_revived_with_full_counts_and_live() -> None:
    quantizer = make(size=16, dim=4, revival_fraction=0.1)
    quantizer.counts[4:] = 1e-4  # planted: twelve codes that nobody uses
    quantizer.embedding[4:] = quantizer.embedding[:1]  # the first of equals is taken, so these never are
    x = F.normalize(torch.randn(1, 400, 4), dim=-1)
    before = quantizer.embedding.clone()
    quantizer.update([x], [quantizer.encode(x)])
    revived = (quantizer.embedding[4:] - before[4:]).norm(dim=-1) > 1e-4
    assert revived.all()
    live = x.reshape(-1, 4)
    assert all(bool((live == code).all(-1).any()) for code in quantizer.embedding[4:])  # each is a latent of this batch
    assert torch.allclose(quantizer.counts[4:], quantizer.counts[4:].max().expand(12))
    assert torch.allclose(quantizer.sums[4:], quantizer.embedding[4:] * quantizer.counts[4:, None], atol=1e-5)
    for _ in range(30):
        quantizer.update([x], [quantizer.encode(x)])
    assert len(quantizer.encode(x).unique()) >= 15  # and now they are used


def test_a_revived_code_survives_the_next_update() -> None:
    quantizer = make(size=16, dim=4, revival_fraction=0.1)
    quantizer.counts[3] = 0
    x = F.normalize(torch.randn(1, 200, 4), dim=-1)
    quantizer.update([x], [quantizer.encode(x)])
    code = quantizer.embedding[3].clone()
    quantizer.update([x], [quantizer.encode(x)])
    assert float(code @ quantizer.embedding[3]) > 0.9  # moved by its latents, not drawn anew


def test_k_means_finds_the_clusters() -> None:
    centres = F.normalize(torch.eye(4) + 0.01, dim=-1)
    x = F.normalize(centres.repeat_interleave(100, 0) + 0.05 * torch.randn(400, 4), dim=-1)
    quantizer = make(size=8, dim=4)
    quantizer.initialise([x[None, :150], x[None, 150:]])
    nearest = (centres @ quantizer.embedding.T).max(dim=1).values
    assert float(nearest.min()) > 0.99
    assert float(quantizer.counts.sum()) == pytest.approx(400)


def test_k_means_copes_with_fewer_vectors_than_codes() -> None:
    quantizer = make(size=64, dim=4)
    quantizer.initialise([torch.randn(1, 10, 4)])
    assert bool(quantizer.embedding.isfinite().all())
    assert torch.allclose(quantizer.embedding.norm(dim=-1), torch.ones(64), atol=1e-5)


def test_nearest_is_found_in_float32_under_autocast() -> None:
    quantizer = make(size=2048, dim=16)
    x = torch.randn(1, 2000, 16)
    with torch.autocast("cpu", torch.bfloat16):
        under = quantizer(x).codes
    assert torch.equal(under, quantizer(x).codes)


def test_standardise_equals_numpy_and_keeps_statistics() -> None:
    layer = Standardise(3, momentum=0.5).train()
    x = torch.randn(4, 25, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    flat = x.numpy().reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    assert np.allclose(layer(x).numpy().reshape(-1, 3), expected, atol=1e-3)
    assert np.allclose(layer.mean.numpy(), flat.mean(0) / 2, rtol=1e-3)
    for _ in range(30):
        layer(x)
    assert np.allclose(layer.eval()(x).numpy().reshape(-1, 3), expected, atol=1e-2)
