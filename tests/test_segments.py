"""A level in several segments at once against each segment alone, and against the sequential level."""

import pytest
import torch
from test_prior import CONFIG, spec
from test_sampling import HOPS, priors, request

from audiovq.prior.prior import Prior, PriorConfig
from audiovq.recipe import PickConfig
from audiovq.sampling.generate import Request, generate, generate_level, generate_level_in_segments
from audiovq.sampling.segments import plan_segments


def wanted(parallel: int, n_samples: int = 6000, items: tuple[int, ...] = (0, 1)) -> Request:
    made = request(n_samples, items, genre=1)
    made.parallel = parallel
    return made


@pytest.mark.parametrize("n_codes", [1, 25, 188, 333, 1000])
@pytest.mark.parametrize("n_segments", [1, 2, 5, 50])
@pytest.mark.parametrize(("window", "ratio"), [(12, 1), (12, 4), (10, 4)])
def test_a_plan_covers_every_position_once_after_a_whole_window(
    n_codes: int, n_segments: int, window: int, ratio: int
) -> None:
    plan = plan_segments(n_codes, n_segments, window, ratio)
    assert plan.n_segments <= n_segments
    assert all(start % ratio == 0 for start in plan.starts)
    assert all(seam - start >= window for seam, start in zip(plan.seams, plan.starts[1:], strict=True))
    positions = [torch.arange(start, start + plan.length)[None] for start in plan.starts]
    assert torch.equal(plan.join(positions)[0], torch.arange(n_codes))
    if plan.n_segments > 1:
        assert plan.length < n_codes  # it saves something
        assert plan.starts[-1] + plan.overlap < n_codes  # no segment is for nothing


@pytest.mark.parametrize("level", [1, 2])
def test_segments_together_equal_each_alone_to_the_bit(level: int) -> None:
    prior, pick, asked = priors()[level], PickConfig(temperature=0.9, top_p=0.95), wanted(4)
    n_codes = -(-asked.n_samples // HOPS[level])
    coarser = [torch.randint(0, 20, (2, -(-asked.n_samples // hop))) for hop in HOPS[:level]]
    begun = torch.zeros(2, 0, dtype=torch.int64)
    told = (prior, coarser, begun, n_codes, pick, asked)
    together = generate_level_in_segments(*told, lambda n: None)
    plan = plan_segments(n_codes, 4, 12, prior.spec.ratio)
    assert plan.n_segments == (2 if level == 1 else 4)
    alone = [generate_level_in_segments(*told, lambda n: None, only=k) for k in range(plan.n_segments)]
    assert torch.equal(together, plan.join(alone))
    sequential = generate_level(*told, lambda n: None)
    assert torch.equal(together[:, : plan.length], sequential[:, : plan.length])


def test_one_segment_is_the_sequential_level_and_an_item_is_the_same_in_any_batch() -> None:
    models, picks = priors(), [PickConfig()] * 3
    for a, b in zip(generate(models, picks, wanted(3, 400)), generate(models, picks, wanted(1, 400)), strict=True):
        assert torch.equal(a, b)  # too short for more than one segment
    together = generate(models, picks, wanted(3, items=(0, 1, 2, 3)))
    alone = generate(models, picks, wanted(3, items=(2,)))
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_a_prompt_is_kept_and_steps_are_counted() -> None:
    models, picks, counted = priors(), [PickConfig()] * 3, []
    prompt = [torch.randint(0, 20, (16 * (256 // hop),)) for hop in HOPS]
    told = generate(models, picks, wanted(3), prompt, counted.append)
    assert [level.shape for level in told] == [(2, -(-6000 // hop)) for hop in HOPS]
    for level, begin in zip(told, prompt, strict=True):
        assert torch.equal(level[1, : len(begin)], begin)
    assert sum(counted) == 24 + plan_segments(47, 3, 12, 2).length + plan_segments(188, 3, 12, 4).length


def test_a_warm_up_as_long_as_the_model_sees_makes_a_segment_sequential() -> None:
    """One layer sees a window, and that is the warm-up: with its codes given, the segment goes on as the whole would."""
    torch.manual_seed(5)
    transformer = CONFIG.model_copy(update={"n_layers": 1})
    prior = Prior(PriorConfig(transformer=transformer, halo=2), spec(2)).eval()
    plan = plan_segments(188, 2, 12, 4)
    coarser = [torch.randint(0, 20, (2, -(-6000 // hop))) for hop in HOPS[:2]]
    begun = torch.randint(0, 20, (2, plan.seams[0]))
    told = (prior, coarser, begun, 188, PickConfig(), wanted(2))
    together = generate_level_in_segments(*told, lambda n: None)
    assert torch.equal(together, generate_level(*told, lambda n: None))
    assert torch.equal(together[:, : plan.seams[0]], begun)
