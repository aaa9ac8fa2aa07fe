"""Codebooks against plain NumPy, and their health. Contract tests run over the table of quantizers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from audiovq.tokenizer.data_init import Bypass
from audiovq.tokenizer.quantizer import (
    QUANTIZERS,
    EMAQuantizer,
    FSQuantizer,
    GumbelQuantizer,
    Quantized,
    Quantizer,
    gumbel_like,
    rotation,
)  # fmt: skip


def make(size: int = 32, dim: int = 4, **options: object) -> EMAQuantizer:
    return EMAQuantizer(EMAQuantizer.Config(codebook_size=size, codebook_dim=dim, **options))  # type: ignore[arg-type]


SMALL = {
    "ema": {"codebook_size": 32, "codebook_dim": 4}, "gumbel": {"codebook_size": 32, "codebook_dim": 4, "temperature_steps": 50},
    "fsq": {"levels": (4, 3, 5)},
}  # fmt: skip


def of_kind(kind: str) -> Quantizer:
    """Small, initialised, and after a step of training."""
    quantizer = QUANTIZERS[kind](QUANTIZERS[kind].Config(**SMALL[kind])).train()
    quantizer.initialise([quantizer.normalise(torch.randn(4, 50, quantizer.codebook_dim))])
    train_once(quantizer)
    return quantizer


def train_once(quantizer: Quantizer) -> Quantized:
    out = quantizer(torch.randn(2, 50, quantizer.codebook_dim))
    quantizer.update([out.latents.detach()], [out.codes])
    return out


def same(a: Quantized, b: Quantized) -> bool:
    losses = all(torch.equal(a.losses[name], b.losses[name]) for name in a.losses)
    return torch.equal(a.vectors, b.vectors) and torch.equal(a.codes, b.codes) and losses


every_kind = pytest.mark.parametrize("kind", QUANTIZERS)


@every_kind
def test_every_code_comes_back_from_its_vector(kind: str) -> None:
    quantizer = of_kind(kind)
    codes = torch.arange(quantizer.codebook_size).reshape(2, -1)
    vectors = quantizer.embed(codes)
    assert vectors.shape == (*codes.shape, quantizer.codebook_dim)
    assert torch.equal(quantizer.encode(vectors), codes)
    assert len(vectors.flatten(0, 1).unique(dim=0)) == quantizer.codebook_size


@every_kind
def test_inference_is_deterministic_and_gives_what_codes_decode_to(kind: str) -> None:
    quantizer = of_kind(kind).eval()
    x = torch.randn(2, 50, quantizer.codebook_dim)
    out = quantizer(x)
    assert out.codes.shape == (2, 50)
    assert out.codes.dtype == torch.int64
    assert 0 <= int(out.codes.min()) <= int(out.codes.max()) < quantizer.codebook_size
    assert torch.allclose(out.vectors, quantizer.embed(out.codes), atol=1e-6)
    assert torch.equal(quantizer.encode(quantizer.normalise(x)), out.codes)
    assert same(quantizer(x), out)


@every_kind
def test_gradients_reach_what_came_in_and_every_parameter(kind: str) -> None:
    quantizer = of_kind(kind)
    weights = torch.randn(2, 50, quantizer.codebook_dim)
    for view in (quantizer, Bypass(quantizer)):
        x = torch.randn(2, 50, quantizer.codebook_dim, requires_grad=True)
        out = view(x)
        (torch.stack([(out.vectors * weights).sum(), *out.losses.values()])).sum().backward()
        assert x.grad is not None
        assert float(x.grad.abs().sum(dim=-1).min()) > 0
        assert all(p.grad is not None for p in quantizer.parameters())  # DDP waits for each, quantized or not
    assert all(float(p.grad.abs().sum()) > 0 for p in quantizer.parameters() if p.grad is not None)


@every_kind
def test_unquantized_latents_pass_as_they_are(kind: str) -> None:
    quantizer = of_kind(kind)
    x = torch.randn(2, 50, quantizer.codebook_dim)
    out = Bypass(quantizer)(x)
    assert torch.equal(out.vectors, quantizer.normalise(x))
    assert torch.equal(out.codes, torch.zeros(2, 50, dtype=torch.int64))
    assert out.losses.keys() == quantizer(x).losses.keys()
    assert all(float(value.detach()) == 0 for value in out.losses.values())


@every_kind
def test_all_is_float32_whatever_autocast_says(kind: str) -> None:
    options = {} if kind == "fsq" else {"codebook_size": 2048, "codebook_dim": 16}
    quantizer = QUANTIZERS[kind](QUANTIZERS[kind].Config(**options))
    x = torch.randn(1, 2000, quantizer.codebook_dim)
    torch.manual_seed(1)
    plain = quantizer(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        under = quantizer(x)
    assert under.vectors.dtype == torch.float32
    assert same(under, plain)


@every_kind
def test_the_state_dict_holds_all_training_state(kind: str) -> None:
    one = of_kind(kind)
    two = QUANTIZERS[kind](one.config).train()
    two.load_state_dict(one.state_dict())
    for quantizer in (one, two):
        torch.manual_seed(5)
        train_once(quantizer)
        train_once(quantizer)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    torch.manual_seed(6)
    a = train_once(one)
    torch.manual_seed(6)
    assert same(a, train_once(two))


@every_kind
def test_a_little_training_lowers_the_loss(kind: str) -> None:
    """An autoencoder of points on a circle in 8 dimensions; judged in inference, by hard codes."""
    quantizer = of_kind(kind)
    inner, outer = torch.nn.Linear(8, quantizer.codebook_dim), torch.nn.Linear(quantizer.codebook_dim, 8)
    plane = torch.randn(2, 8)

    def error() -> tuple[torch.Tensor, Quantized]:
        angles = 2 * torch.pi * torch.rand(4, 64)
        points = torch.stack([angles.cos(), angles.sin()], dim=-1) @ plane
        out = quantizer(inner(points))
        return (outer(out.vectors) - points).square().mean(), out

    before = float(error()[0].detach())
    optimizer = torch.optim.Adam([*quantizer.parameters(), *inner.parameters(), *outer.parameters()], lr=1e-2)
    for _ in range(150):
        loss, out = error()
        optimizer.zero_grad()
        torch.stack([loss, *(0.1 * value for value in out.losses.values())]).sum().backward()
        optimizer.step()
        quantizer.update([out.latents.detach()], [out.codes])
    quantizer.eval()
    assert float(error()[0].detach()) < 0.15 * before


def test_kinds_are_in_the_table() -> None:
    assert {"ema": EMAQuantizer, "gumbel": GumbelQuantizer, "fsq": FSQuantizer} == QUANTIZERS


def test_nearest_code_and_commitment_equal_numpy() -> None:
    quantizer = make(size=64, dim=8)
    x = torch.randn(3, 40, 8)
    out = quantizer(x)
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=-1, keepdims=True)
    distances = ((unit[:, :, None] - quantizer.embedding.numpy()) ** 2).sum(-1)
    assert np.array_equal(out.codes.numpy(), distances.argmin(-1))
    assert float(out.losses["commitment"]) == pytest.approx(distances.min(-1).mean(), rel=1e-5)


def test_straight_through_passes_the_gradient_unchanged() -> None:
    quantizer = make(dim=4)
    latents = F.normalize(torch.randn(1, 10, 4), dim=-1).requires_grad_()
    weights = torch.randn(1, 10, 4)
    (quantizer(latents).vectors * weights).sum().backward()
    # through the projection to the sphere: the part of the gradient along the latent is gone, the rest is as it was
    along = (weights * latents.detach()).sum(-1, keepdim=True) * latents.detach()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, weights - along, atol=1e-5)


def rotation_matrix(e: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The rotation of the plane of two unit vectors that takes e to q, by its angle (Rodrigues)."""
    cosine = e @ q
    across = (q - cosine * e) / np.linalg.norm(q - cosine * e)
    turn = np.outer(across, e) - np.outer(e, across)
    return np.eye(len(e)) + np.sqrt(1 - cosine**2) * turn + (1 - cosine) * turn @ turn


def test_rotation_gradient_equals_the_explicit_matrix() -> None:
    latents = F.normalize(torch.randn(1, 30, 5).double(), dim=-1).requires_grad_()
    nearest = F.normalize(latents.detach() + 0.5 * torch.randn(1, 30, 5).double(), dim=-1)
    weights = torch.randn(1, 30, 5).double()
    out = rotation(latents, nearest)
    (out * weights).sum().backward()
    assert torch.allclose(out, nearest, atol=1e-12)
    assert latents.grad is not None
    for e, q, g, found in zip(latents.detach()[0], nearest[0], weights[0], latents.grad[0], strict=True):
        matrix = rotation_matrix(e.numpy(), q.numpy())
        assert np.allclose(matrix @ e.numpy(), q.numpy(), atol=1e-12)
        assert np.allclose(found.numpy(), matrix.T @ g.numpy(), atol=1e-9)


def test_the_gradient_option_changes_the_gradient_alone() -> None:
    outs, gradients = [], []
    for gradient in ("straight_through", "rotation"):
        torch.manual_seed(3)
        quantizer, x = make(dim=4, gradient=gradient), torch.randn(1, 20, 4, requires_grad=True)
        outs.append(quantizer(x))
        (outs[-1].vectors * torch.randn(1, 20, 4)).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(outs[0].codes, outs[1].codes)
    assert torch.allclose(outs[0].vectors, outs[1].vectors, atol=1e-6)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-2)


def test_rotation_to_the_opposite_side_is_finite() -> None:
    latents = F.normalize(torch.randn(1, 5, 4), dim=-1).requires_grad_()
    out = rotation(latents, -latents.detach())
    out.sum().backward()
    assert torch.allclose(out, -latents, atol=1e-6)
    assert latents.grad is not None
    assert bool(latents.grad.isfinite().all())


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
    quantizer.counts[4:] = 1e-4  # twelve codes are not used
    quantizer.embedding[4:] = quantizer.embedding[:1]  # of equal codes the first is chosen, so these never are
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


def test_revived_codes_stay_alive_without_churning() -> None:
    """A code that equals a latent of the batch to the bit was drawn anew in this step; only dead codes are."""
    quantizer = make(size=32, dim=4, decay=0.9, revival_fraction=0.1)
    quantizer.counts[8:] = 0  # 24 codes are not used
    quantizer.embedding[8:] = quantizer.embedding[:1]
    drawn = []
    for _ in range(200):
        x = F.normalize(torch.randn(1, 500, 4), dim=-1)
        quantizer.update([x], [quantizer.encode(x)])
        drawn.append(int((quantizer.embedding[:, None] == x).all(-1).any(-1).sum()))
    assert drawn[0] == 24
    assert sum(drawn[1:]) <= 2  # twins, drawn close to each other, may part once more
    assert sum(drawn[20:]) == 0
    usage = quantizer.encode(F.normalize(torch.randn(1, 20000, 4), dim=-1)).flatten().bincount(minlength=32) / 20000
    assert float(usage.min()) > 0.3 / 32
    assert float(quantizer.counts.min()) > 0.3 * float(quantizer.counts.mean())


def test_a_code_that_one_of_several_levels_uses_is_not_dead() -> None:
    quantizer = make(size=4, dim=2, decay=0.5, revival_fraction=0.2)
    quantizer.embedding.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
    quantizer.sums.copy_(quantizer.embedding)
    levels = [quantizer.embedding[[0, 1]].repeat(20, 1)[None], quantizer.embedding[[2, 3]].repeat(5, 1)[None]]
    for _ in range(20):
        quantizer.update(levels, [quantizer.encode(level) for level in levels])
    assert torch.allclose(quantizer.embedding, torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6)
    assert torch.allclose(quantizer.counts, torch.tensor([20.0, 20, 5, 5]), atol=1e-3)


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
    quantizer.initialise([F.normalize(torch.randn(1, 10, 4), dim=-1)])
    assert bool(quantizer.embedding.isfinite().all())
    assert torch.allclose(quantizer.embedding.norm(dim=-1), torch.ones(64), atol=1e-5)


def fsq(*levels: int) -> FSQuantizer:
    return FSQuantizer(FSQuantizer.Config(levels=levels))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (2, 2, 2), (7, 8, 9)])
def test_fsq_codes_are_mixed_radix_numbers_over_all_codes(levels: tuple[int, ...]) -> None:
    quantizer = fsq(*levels)
    assert quantizer.codebook_size == np.prod(levels)
    assert quantizer.codebook_dim == len(levels)
    codes = np.arange(quantizer.codebook_size)
    digits = np.stack(np.unravel_index(codes, levels, order="F"), axis=-1)
    vectors = 2 * digits / (np.array(levels) - 1) - 1
    assert np.allclose(quantizer.embed(torch.from_numpy(codes)).numpy(), vectors, atol=1e-6)
    assert np.array_equal(quantizer.encode(torch.from_numpy(vectors).float()).numpy(), codes)
    assert not quantizer.state_dict()


def test_fsq_rounds_the_bounded_latents_and_passes_the_gradient_through() -> None:
    quantizer = fsq(8, 5, 4)
    x = (2 * torch.randn(3, 40, 3)).requires_grad_()
    weights = torch.randn(3, 40, 3)
    out = quantizer(x)
    bounded, steps = np.tanh(x.detach().numpy()), np.array([7, 4, 3])
    assert np.allclose(out.vectors.detach().numpy(), np.round((bounded + 1) / 2 * steps) / steps * 2 - 1, atol=1e-6)
    (out.vectors * weights).sum().backward()
    assert x.grad is not None
    assert np.allclose(x.grad.numpy(), (1 - bounded**2) * weights.numpy(), atol=1e-5)
    assert int(quantizer(torch.full((1, 1, 3), 1e9)).codes) == 8 * 5 * 4 - 1
    assert int(quantizer(torch.full((1, 1, 3), -1e9)).codes) == 0


@pytest.mark.parametrize("levels", [(), (8, 1), (64, 64, 64)])
def test_fsq_refuses_levels_that_cannot_be(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels: expected numbers of at least 2 with a product of at most 65536"):
        fsq(*levels)


def gumbel(size: int = 12, dim: int = 4, **options: object) -> GumbelQuantizer:
    return GumbelQuantizer(GumbelQuantizer.Config(codebook_size=size, codebook_dim=dim, **options))  # type: ignore[arg-type]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_gumbel_softmax_and_kl_equal_numpy() -> None:
    quantizer = gumbel(temperature_start=0.7, scale=5.0).train()
    x = torch.randn(3, 20, 4)
    torch.manual_seed(1)
    out = quantizer(x)
    torch.manual_seed(1)
    noise = gumbel_like(torch.zeros(3, 20, 12)).numpy()
    vectors = quantizer.embedding.detach().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    logits = 5 * (x.numpy() / np.linalg.norm(x.numpy(), axis=-1, keepdims=True)) @ unit.T
    assert np.allclose(out.vectors.detach().numpy(), softmax((logits + noise) / 0.7) @ unit, atol=1e-5)
    assert np.array_equal(out.codes.numpy(), logits.argmax(-1))
    q = softmax(logits)
    assert float(out.losses["kl"].detach()) == pytest.approx((q * np.log(q * 12)).sum(-1).mean(), rel=1e-4)


def test_kl_is_zero_for_a_uniform_posterior_and_log_k_for_a_certain_one() -> None:
    for scale, expected in ((1e-9, 0.0), (1e4, np.log(12))):
        quantizer = gumbel(scale=scale)
        kl = quantizer(quantizer.embed(torch.arange(12))[None]).losses["kl"]
        assert float(kl.detach()) == pytest.approx(expected, abs=1e-4)


def test_temperature_falls_by_equal_factors_and_stays() -> None:
    quantizer = gumbel(temperature_start=2.0, temperature_end=0.125, temperature_steps=8)
    found = []
    for _ in range(12):
        found.append(float(quantizer.temperature))
        train_once(quantizer)
    expected = [2 * (0.125 / 2) ** (min(step, 8) / 8) for step in range(12)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert int(quantizer.state_dict()["n_steps"]) == 12


def test_codes_of_gumbel_that_are_dead_move_to_where_latents_are() -> None:
    quantizer = gumbel(size=16, revival_fraction=0.1, decay=0.9).train()
    quantizer.initialise([F.normalize(torch.randn(1, 400, 4), dim=-1)])
    assert torch.allclose(quantizer.counts, torch.tensor(400 / 16))
    with torch.no_grad():
        quantizer.embedding[4:] = quantizer.embedding[:1]  # of equal codes the first is chosen, so these never are
    quantizer.counts[4:] = 1e-4
    live, counts = quantizer.embedding[:4].clone(), quantizer.counts.numpy().copy()
    out = quantizer(torch.randn(1, 400, 4))
    quantizer.update([out.latents.detach()], [out.codes])
    latents = out.latents.detach().reshape(-1, 4)
    assert all(bool((latents == code).all(-1).any()) for code in quantizer.embedding[4:].detach())
    assert torch.equal(quantizer.embedding[:4], live)
    counts = 0.9 * counts + 0.1 * np.bincount(out.codes.numpy().ravel(), minlength=16)
    assert np.allclose(quantizer.counts[:4].numpy(), counts[:4], rtol=1e-5)
    assert np.allclose(quantizer.counts[4:].numpy(), counts.mean(), rtol=1e-5)
    (out.vectors * torch.randn_like(out.vectors)).sum().backward()  # the step's gradient is that of the old vectors
    assert quantizer.embedding.grad is not None
    assert bool(quantizer.embedding.grad.isfinite().all())
    assert len(quantizer(torch.randn(1, 4000, 4)).codes.unique()) >= 14  # two may have drawn the same latent


def test_gumbel_without_revival_leaves_codes_alone() -> None:
    quantizer = gumbel(size=16, revival_fraction=0.0).train()
    before = quantizer.embedding.detach().clone()
    train_once(quantizer)
    assert torch.equal(quantizer.embedding, before)


def test_at_temperature_zero_the_mixture_is_one_code_drawn_from_q() -> None:
    quantizer = gumbel(size=6, scale=2.0, temperature_start=1e-4, temperature_end=1e-4).train()
    latent = quantizer.normalise(torch.randn(4))
    vectors = quantizer(latent.expand(1, 60000, 4)).vectors.detach()
    drawn = quantizer.encode(vectors).flatten().bincount(minlength=6).numpy()
    assert float((vectors - quantizer.embed(quantizer.encode(vectors))).abs().mean()) < 1e-3
    expected = 60000 * softmax(quantizer.logits(latent).detach().numpy())
    assert ((drawn - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees of freedom: one in a thousand


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_like(torch.zeros(200000))
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, rel=0.02)
