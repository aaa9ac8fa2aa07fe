"""A level in several segments at once against each segment alone, and against the sequential level."""

import pytest
import torch
from test_prior import CONFIG, spec
from test_sampling import HOPS, priors, request

from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.sampling.generate import Request, generate, generate_level
from audiovq.sampling.segments import lay_out_segments


def empty(n: int, n_codes: int) -> torch.Tensor:
    return torch.full((n, n_codes), -1)


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
    plan = lay_out_segments(n_codes, n_segments, window, ratio)
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
    prior, pick, asked = priors()[level], SamplingConfig(temperature=0.9, top_p=0.95), wanted(4)
    n_codes = -(-asked.n_samples // HOPS[level])
    coarser = [torch.randint(0, 20, (2, -(-asked.n_samples // hop))) for hop in HOPS[:level]]
    told = (prior, coarser, empty(2, n_codes), pick, asked)
    together = generate_level(*told)
    plan = lay_out_segments(n_codes, 4, 12, prior.spec.ratio)
    assert plan.n_segments == (2 if level == 1 else 4)
    alone = [generate_level(*told, only=k) for k in range(plan.n_segments)]
    assert torch.equal(together, plan.join(alone))
    sequential = generate_level(*told[:-1], wanted(1))
    assert torch.equal(together[:, : plan.length], sequential[:, : plan.length])


def test_one_segment_is_the_sequential_level_and_an_item_is_the_same_in_any_batch() -> None:
    models, picks = priors(), [SamplingConfig()] * 3
    for a, b in zip(generate(models, picks, wanted(3, 400)), generate(models, picks, wanted(1, 400)), strict=True):
        assert torch.equal(a, b)  # too short for more than one segment
    together = generate(models, picks, wanted(3, items=(0, 1, 2, 3)))
    alone = generate(models, picks, wanted(3, items=(2,)))
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_a_prompt_is_kept_and_positions_are_told() -> None:
    models, picks, heard = priors(), [SamplingConfig()] * 3, {}
    given = [empty(1, -(-6000 // hop)) for hop in HOPS]
    for level, hop in zip(given, HOPS, strict=True):
        level[:, : 16 * (256 // hop)] = torch.randint(0, 20, (1, 16 * (256 // hop)))

    def listen(level: int, codes: torch.Tensor, n_done: int) -> None:
        heard.setdefault(level, []).append((n_done, codes[:, :n_done].clone()))

    made = generate(models, picks, wanted(3), given, listen)
    assert [level.shape for level in made] == [(2, -(-6000 // hop)) for hop in HOPS]
    for level, told in zip(made, given, strict=True):
        assert torch.equal(level[told.expand(2, -1) >= 0], told.expand(2, -1)[told.expand(2, -1) >= 0])
    for level, steps in heard.items():
        counts = [n for n, _ in steps]
        assert counts == sorted(counts)
        assert counts[-1] == made[level].shape[1]
        assert all(torch.equal(codes, made[level][:, :n]) for n, codes in steps)  # what was told as final is final


def test_a_warm_up_as_long_as_the_model_sees_makes_a_segment_sequential() -> None:
    """One layer sees a window, and that is the warm-up: with its codes given, the segment goes on as the whole would."""
    torch.manual_seed(5)
    transformer = CONFIG.model_copy(update={"n_layers": 1})
    prior = Prior(PriorConfig(transformer=transformer, context_codes=2), spec(2)).eval()
    plan = lay_out_segments(188, 2, 12, 4)
    coarser = [torch.randint(0, 20, (2, -(-6000 // hop))) for hop in HOPS[:2]]
    begun, given = torch.randint(0, 20, (2, plan.seams[0])), empty(2, 188)
    given[:, : plan.seams[0]] = begun
    told = (prior, coarser, given, SamplingConfig())
    together = generate_level(*told, wanted(2))
    assert torch.equal(together, generate_level(*told, wanted(1)))
    assert torch.equal(together[:, : plan.seams[0]], begun)
