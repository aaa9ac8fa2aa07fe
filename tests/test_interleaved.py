"""Levels in the order of time against level by level: the codes are the same, to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_control import ask, make
from test_inpainting import holes
from test_sampling import HOPS, priors, request
from torch.nn import functional as F

from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.generate import generate
from audiovq.sampling.guidance import Request

SETTINGS = [SamplingConfig(temperature=0.8), SamplingConfig(top_k=5), SamplingConfig(top_p=0.9)]
GUIDED = [SamplingConfig(guidance=2.5), SamplingConfig(guidance=0.5), SamplingConfig(guidance=1.5)]


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)


def assert_same(
    models: list[Prior], settings: list[SamplingConfig], wanted: Request, given: list | None = None
) -> None:
    order: list[int] = []
    plain = generate(models, settings, wanted, given)
    timed = generate(
        models, settings, wanted, given, on_codes=lambda level, codes: order.append(level), in_time_order=True
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, timed, strict=True))
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > 2 * len(models)  # they do alternate


@pytest.mark.parametrize("hops", [HOPS, [128, 128, 64], [128, 64, 64], [128, 128, 128]])
@pytest.mark.parametrize("items", [(0,), (0, 3, 5)])
def test_levels_in_time_order_are_those_of_level_by_level(hops: list[int], items: tuple[int, ...]) -> None:
    """Windows of 12 codes go round many times."""
    assert_same(priors(hops), SETTINGS, request(9000, items, genre=2))


@pytest.mark.parametrize("settings", [SETTINGS, GUIDED])
def test_all_conditioners_and_guidance(settings: list[SamplingConfig]) -> None:
    models = [make(level) for level in range(3)]
    wanted = ask("Ave", precision="fp32")
    wanted.n_samples = 6000
    assert_same(models, settings, wanted)
    assert_same(models, settings, wanted, holes(6000, 2))


def test_a_prompt_and_kept_levels() -> None:
    wanted = request(9000)
    prompt = [torch.randint(0, 20, (1, 9 * 256 // hop)) for hop in HOPS]
    lengths = [-(-9000 // hop) for hop in HOPS]
    given = [F.pad(level, (0, n - level.shape[1]), value=-1) for level, n in zip(prompt, lengths, strict=True)]
    assert_same(priors(), SETTINGS, wanted, given)
    given[0] = torch.randint(0, 20, (1, lengths[0]))
    assert_same(priors(), SETTINGS, wanted, given)


def test_finer_codes_come_as_soon_as_the_look_ahead_allows() -> None:
    counts, reached = [0, 0, 0], []

    def on_codes(level: int, codes: torch.Tensor) -> None:
        counts[level] = codes.shape[1]
        reached.append([n * hop for n, hop in zip(counts, HOPS, strict=True)])

    generate(priors(), SETTINGS, request(40000, (0,)), on_codes=on_codes, in_time_order=True)
    # A pass looks at most a block of 16 and the 2 neighbours of each coarser level ahead.
    ahead = 2 * HOPS[0] + 16 * HOPS[1] + 2 * HOPS[1] + 16 * HOPS[2] + HOPS[0]
    assert max(top - fine for top, _, fine in reached) <= ahead
