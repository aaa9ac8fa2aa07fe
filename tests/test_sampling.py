"""Noise, drawing a code, and generating: cached against naive, any batch, any length, prompts."""

import math

import numpy as np
import pytest
import torch
from test_prior import make
from torch.nn import functional as F

from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.decode_state import coarser_at_rate_above
from audiovq.sampling.generate import generate
from audiovq.sampling.guidance import Request
from audiovq.sampling.next_code import gumbel_noise, keep_top_k, keep_top_p, next_code

HOPS = [256, 128, 32]


def test_noise_of_a_position_does_not_depend_on_where_one_starts() -> None:
    whole = gumbel_noise(7, 3, 1, 0, 50, 1023)
    assert torch.equal(gumbel_noise(7, 3, 1, 20, 33, 1023), whole[20:33])
    assert whole.shape == (50, 1023)
    for other in (
        gumbel_noise(8, 3, 1, 0, 50, 1023),
        gumbel_noise(7, 4, 1, 0, 50, 1023),
        gumbel_noise(7, 3, 2, 0, 50, 1023),
    ):
        assert abs(float(np.corrcoef(other.flatten(), whole.flatten())[0, 1])) < 0.02


def test_noise_is_gumbel() -> None:
    noise = gumbel_noise(0, 0, 0, 0, 200, 1024).flatten().double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    for q in (0.01, 0.5, 0.99):
        assert float(noise.quantile(q)) == pytest.approx(-math.log(-math.log(q)), abs=0.05)


def test_large_seeds_are_seeds_too() -> None:
    assert not torch.equal(gumbel_noise(2**70 + 1, 0, 0, 0, 1, 16), gumbel_noise(2, 0, 0, 0, 1, 16))


def test_codes_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20000, 4)
    noise = gumbel_noise(1, 0, 0, 0, 20000, 4)
    for temperature in (0.5, 1.0, 2.0):
        drawn = next_code(logits, noise, temperature).bincount(minlength=4) / 20000
        assert torch.allclose(drawn, (logits[0] / temperature).softmax(-1), atol=0.012)
    assert next_code(logits[:5], noise[:5], 0).tolist() == [0] * 5


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.1, 0.15, 0.05]]).log()
    possible = lambda x: x.isfinite()[0].tolist()  # noqa: E731
    assert possible(keep_top_k(logits, 2)) == [True, True, False, False, False]
    assert possible(keep_top_k(logits, 0)) == [True] * 5
    assert possible(keep_top_p(logits, 0.6)) == [True, True, False, False, False]
    assert possible(keep_top_p(logits, 0.71)) == [True, True, False, True, False]
    assert possible(keep_top_p(logits, 1e-6)) == [True, False, False, False, False]
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def priors(hops: list[int] = HOPS) -> list[Prior]:
    return [make(level, hops) for level in range(len(hops))]


def request(n_samples: int = 5000, items: tuple[int, ...] = (0, 1), **labels: int) -> Request:
    return Request(n_samples, list(items), 42, {**labels}, precision="fp32")  # as the plain network


def naive(models: list[Prior], settings: list[SamplingConfig], wanted: Request) -> list[torch.Tensor]:
    """No cache, no blocks: the whole sequence anew for every code."""
    levels: list[torch.Tensor] = []
    batch = len(wanted.items)
    for level, prior in enumerate(models):
        n = -(-wanted.n_samples // prior.spec.hop_lengths[level])
        around = coarser_at_rate_above(prior, levels, batch, n)
        given = Conditions(
            {"genre": torch.tensor(wanted.labels.get("genre", 0)).expand(batch)}, torch.full((batch,), wanted.n_samples),
            torch.zeros(batch, dtype=torch.int64),
        )  # fmt: skip
        context = prior.context(around, given, n).expand(batch, -1, -1)
        codes = torch.full((batch, 1), 20)
        noise = torch.stack([gumbel_noise(wanted.seed, item, level, 0, n, 20) for item in wanted.items])
        for t in range(n):
            logits = prior(codes, context[:, : t + 1])[:, -1]
            setting = settings[level]
            drawn = next_code(logits, noise[:, t], setting.temperature, setting.top_k, setting.top_p)
            codes = torch.cat([codes, drawn[:, None]], dim=1)
        levels.append(codes[:, 1:])
    return levels


@torch.no_grad()
@pytest.mark.parametrize("hops", [HOPS, [128, 128, 64], [128, 64, 64], [128, 128, 128]])
def test_fast_generation_equals_naive_generation(monkeypatch: pytest.MonkeyPatch, hops: list[int]) -> None:
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)
    models = priors(hops)
    settings = [SamplingConfig(temperature=0.8), SamplingConfig(top_k=5), SamplingConfig(top_p=0.9)]
    wanted = request(3000, genre=2)
    fast = generate(models, settings, wanted)
    for a, b in zip(fast, naive(models, settings, wanted), strict=True):
        assert torch.equal(a, b)


def test_an_item_is_the_same_in_any_batch() -> None:
    models, settings = priors(), [SamplingConfig()] * 3
    together = generate(models, settings, request(items=(0, 1, 2, 3)))
    alone = generate(models, settings, request(items=(2,)))
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2:3], b)
    assert not torch.equal(together[0][0], together[0][1])


@pytest.mark.parametrize("n_samples", [1, 31, 256, 257, 5000])
def test_any_length_has_the_codes_that_decoding_needs(n_samples: int) -> None:
    levels = generate(priors(), [SamplingConfig()] * 3, request(n_samples))
    assert [level.shape for level in levels] == [(2, -(-n_samples // hop)) for hop in HOPS]
    assert all(0 <= int(level.min()) <= int(level.max()) < 20 for level in levels)


def beginning(prompt: list[torch.Tensor], n_samples: int) -> list[torch.Tensor]:
    """A prompt, and -1 to the end."""
    wholes = [-(-n_samples // hop) for hop in HOPS]
    return [F.pad(level, (0, n - len(level)), value=-1)[None] for level, n in zip(prompt, wholes, strict=True)]


def test_a_prompt_is_kept_and_changes_what_follows() -> None:
    models, settings, wanted = priors(), [SamplingConfig()] * 3, request(6000)
    free = generate(models, settings, wanted)
    prompt = [torch.randint(0, 20, (7 * (256 // hop),)) for hop in HOPS]
    continued = generate(models, settings, wanted, beginning(prompt, 6000))
    for level, begin in zip(continued, prompt, strict=True):
        assert torch.equal(level[0, : len(begin)], begin)
    assert [level.shape for level in continued] == [level.shape for level in free]
    begins = [len(level) for level in prompt]
    assert any(not torch.equal(a[:, n:], b[:, n:]) for a, b, n in zip(continued, free, begins, strict=True))


def test_codes_that_are_reported_are_final() -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    prompt = [torch.randint(0, 20, (16 * (256 // hop),)) for hop in HOPS]

    def collect(level: int, codes: torch.Tensor) -> None:
        seen.setdefault(level, []).append(codes.clone())

    made = generate(priors(), [SamplingConfig()] * 3, request(6000, genre=1), beginning(prompt, 6000), collect)
    for level, steps in seen.items():
        counts = [codes.shape[1] for codes in steps]
        assert counts == sorted(counts)
        assert counts[-1] == made[level].shape[1]
        assert all(torch.equal(codes, made[level][:, : codes.shape[1]]) for codes in steps)


def test_its_own_beginning_as_prompt_gives_the_same_piece() -> None:
    """Prefill in one pass and step by step lead to the same continuation."""
    models, settings, wanted = priors(), [SamplingConfig()] * 3, request(20000, items=(0,))
    free = generate(models, settings, wanted)
    prompt = [level[0, : 40 * (256 // hop)] for level, hop in zip(free, HOPS, strict=True)]
    again = generate(models, settings, wanted, beginning(prompt, 20000))
    assert all(torch.equal(a, b) for a, b in zip(free, again, strict=True))


@torch.no_grad()
def test_labels_change_the_music_and_progress_counts_every_position() -> None:
    models, settings = priors(), [SamplingConfig()] * 3
    counted: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for model in models:
        model.conditioners[0].embedding.weight *= 50  # type: ignore[operator,union-attr]
    folk = generate(
        models, settings, request(genre=1), on_codes=lambda level, codes: counted[level].append(codes.shape[1])
    )
    rock = generate(models, settings, request(genre=2))
    assert not torch.equal(folk[0], rock[0])
    for level, hop in enumerate(HOPS):
        n = -(-5000 // hop)
        assert counted[level] == [*range(1, n + 1), n]
