"""A level in several segments at once against each segment alone, and against the sequential level."""

import dataclasses

import pytest
import torch
from test_prior import CONFIG, spec
from test_sampling import HOPS, priors, request

from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.sampling.decode_state import DecodeState
from audiovq.sampling.generate import draw_level, generate
from audiovq.sampling.segments import lay_out_segments


def empty(n: int, n_codes: int) -> torch.Tensor:
    return torch.full((n, n_codes), -1)


@torch.inference_mode()
def drawn(state: DecodeState, setting: SamplingConfig) -> DecodeState:
    for _ in draw_level(state, setting):
        pass
    return state


@pytest.mark.parametrize("n_codes", [1, 25, 188, 333, 1000])
@pytest.mark.parametrize("n_segments", [1, 2, 5, 50])
@pytest.mark.parametrize(("window", "ratio"), [(12, 1), (12, 4), (10, 4)])
def test_a_layout_covers_every_position_once_after_a_whole_window(
    n_codes: int, n_segments: int, window: int, ratio: int
) -> None:
    layout = lay_out_segments(n_codes, n_segments, window, ratio)
    assert len(layout.starts) <= n_segments
    assert all(start % ratio == 0 for start in layout.starts)
    assert layout.overlap >= window or len(layout.starts) == 1
    positions = [torch.arange(start, start + layout.length)[None] for start in layout.starts]
    assert torch.equal(layout.join(positions)[0], torch.arange(n_codes))
    if len(layout.starts) > 1:
        assert layout.length < n_codes  # it saves something
        assert layout.starts[-1] + layout.overlap < n_codes  # no segment is superfluous


@pytest.mark.parametrize("level", [1, 2])
def test_segments_together_equal_each_alone_to_the_bit(level: int) -> None:
    prior, setting = priors()[level], SamplingConfig(temperature=0.9, top_p=0.95)
    n_codes = -(-6000 // HOPS[level])
    coarser = [torch.randint(0, 20, (2, -(-6000 // hop))) for hop in HOPS[:level]]
    known = (prior, coarser, empty(2, n_codes))
    together = drawn(DecodeState(*known, request(6000, segments=4, genre=1)), setting)
    layout = together.layout
    assert len(layout.starts) == (2 if level == 1 else 4)
    alone = []
    for start in layout.starts:
        only = dataclasses.replace(layout, starts=[start])
        alone.append(drawn(DecodeState(*known, request(6000, genre=1), layout=only), setting).codes[:, 1:])
    assert torch.equal(together.joined(), layout.join(alone))
    sequential = drawn(DecodeState(*known, request(6000, genre=1)), setting).joined()
    assert torch.equal(together.joined()[:, : layout.length], sequential[:, : layout.length])


def test_one_segment_is_the_sequential_level_and_an_item_is_the_same_in_any_batch() -> None:
    models, settings = priors(), [SamplingConfig()] * 3
    three, one = (generate(models, settings, request(400, segments=n, genre=1)) for n in (3, 1))
    assert all(torch.equal(a, b) for a, b in zip(three, one, strict=True))  # too short for more than one segment
    together = generate(models, settings, request(6000, (0, 1, 2, 3), segments=3, genre=1))
    alone = generate(models, settings, request(6000, (2,), segments=3, genre=1))
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_a_prompt_stays_and_final_codes_are_final() -> None:
    models, settings, seen = priors(), [SamplingConfig()] * 3, {}
    given = [empty(1, -(-6000 // hop)) for hop in HOPS]
    for level, hop in zip(given, HOPS, strict=True):
        level[:, : 16 * (256 // hop)] = torch.randint(0, 20, (1, 16 * (256 // hop)))

    def collect(level: int, codes: torch.Tensor) -> None:
        seen.setdefault(level, []).append(codes.clone())

    made = generate(models, settings, request(6000, segments=3, genre=1), given, collect)
    assert [level.shape for level in made] == [(2, -(-6000 // hop)) for hop in HOPS]
    for level, known in zip(made, given, strict=True):
        mask = known.expand(2, -1) >= 0
        assert torch.equal(level[mask], known.expand(2, -1)[mask])
    for level, steps in seen.items():
        counts = [codes.shape[1] for codes in steps]
        assert counts == sorted(counts)
        assert counts[-1] == made[level].shape[1]
        assert all(torch.equal(codes, made[level][:, : codes.shape[1]]) for codes in steps)


def test_an_overlap_as_long_as_the_receptive_field_makes_a_segment_sequential() -> None:
    """One layer sees a window, which is the overlap: with the overlap given, the segment continues as the whole would."""
    torch.manual_seed(5)
    transformer = CONFIG.model_copy(update={"n_layers": 1})
    prior = Prior(PriorConfig(transformer=transformer, context_codes=2), spec(2)).eval()
    layout = lay_out_segments(188, 2, 12, 4)
    coarser = [torch.randint(0, 20, (2, -(-6000 // hop))) for hop in HOPS[:2]]
    seam = layout.starts[1] + layout.overlap
    beginning, given = torch.randint(0, 20, (2, seam)), empty(2, 188)
    given[:, :seam] = beginning
    known, setting = (prior, coarser, given), SamplingConfig()
    together = drawn(DecodeState(*known, request(6000, segments=2, genre=1)), setting).joined()
    assert torch.equal(together, drawn(DecodeState(*known, request(6000, genre=1)), setting).joined())
    assert torch.equal(together[:, :seam], beginning)
