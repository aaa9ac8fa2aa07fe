"""Given codes stay, all others are drawn as step by step; and the likelihood of codes."""

import math

import pytest
import torch
from test_prior import make
from test_sampling import HOPS, naive, priors, request
from torch.nn import functional as F

from audiovq.api.splice import splice
from audiovq.data.codes import Codes
from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.decode_state import coarser_at_rate_above
from audiovq.sampling.engine import PackedEngine
from audiovq.sampling.generate import generate
from audiovq.sampling.inpainting import CodeMask, begin_with, redraw, surround
from audiovq.sampling.likelihood import bits_per_second, sequence_log_probability
from audiovq.sampling.next_code import gumbel_noise

SETTINGS = [SamplingConfig(), SamplingConfig(top_k=5), SamplingConfig(top_p=0.9)]


def piece(n_samples: int = 8000, n_levels: int = 3) -> Codes:
    random = torch.Generator().manual_seed(1)
    levels = [torch.randint(0, 20, (-(-n_samples // hop),), generator=random) for hop in HOPS[:n_levels]]
    return Codes(levels, n_samples, 8000, HOPS, 20, 1, "f" * 64)


def holes(n_samples: int, batch: int) -> list[torch.Tensor]:
    """Random stretches given, some of them to one item only, at block boundaries and across them."""
    random = torch.Generator().manual_seed(2)
    given = []
    for hop in HOPS:
        n = -(-n_samples // hop)
        level = torch.randint(0, 20, (batch, n), generator=random)
        for row in range(batch):
            for _ in range(3):
                start = int(torch.randint(0, n, (), generator=random))
                level[row, start : start + n // 5] = -1
        level[:, n // 2 : n // 2 + 5] = -1
        given.append(level)
    return given


def naive_with_given(models: list, wanted, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The whole sequence anew for every code, and a given code wherever there is one."""
    levels: list[torch.Tensor] = []
    batch = len(wanted.items)
    for level, prior in enumerate(models):
        n = given[level].shape[1]
        conditions = Conditions({"genre": torch.zeros(batch, dtype=torch.int64)}, torch.full((batch,), wanted.n_samples), torch.zeros(batch, dtype=torch.int64))  # fmt: skip
        context = prior.context(coarser_at_rate_above(prior, levels, batch, n), conditions, n).expand(batch, -1, -1)
        codes = torch.full((batch, 1), 20)
        noise = torch.stack([gumbel_noise(wanted.seed, item, level, 0, n, 20) for item in wanted.items])
        for t in range(n):
            logits = prior(codes, context[:, : t + 1])[:, -1]
            drawn = (logits + noise[:, t]).argmax(dim=-1)
            codes = torch.cat([codes, torch.where(given[level][:, t] < 0, drawn, given[level][:, t])[:, None]], dim=1)
        levels.append(codes[:, 1:])
    return levels


@torch.no_grad()
def test_any_mask_gives_what_step_by_step_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)
    wanted, given = request(3000), holes(3000, 2)
    fast = generate(priors(), [SamplingConfig()] * 3, wanted, given)
    for a, b in zip(fast, naive_with_given(priors(), wanted, given), strict=True):
        assert torch.equal(a, b)


def test_given_stretches_go_through_in_one_pass_and_what_follows_the_last_draw_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[tuple[str, int]] = []
    prefill, step = PackedEngine.prefill, PackedEngine.step
    monkeypatch.setattr(PackedEngine, "prefill", lambda *a: passes.append(("prefill", a[1].shape[1])) or prefill(*a))
    monkeypatch.setattr(PackedEngine, "step", lambda *a: passes.append(("step", 1)) or step(*a))
    given = torch.arange(100)[None] % 20
    given[0, [30, 31, 60]] = -1
    generate([make(0)], [SamplingConfig()], request(25600, items=(0,)), [given])
    assert passes == [("prefill", 30), ("step", 1), ("step", 1), ("prefill", 28), ("step", 1)]
    passes.clear()
    generate([make(0)], [SamplingConfig()], request(25600, items=(0,)), [given.clamp(min=0)])
    assert passes == []


def test_no_pass_is_longer_than_a_block_however_long_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    forward = Prior.forward
    monkeypatch.setattr(Prior, "forward", lambda *a: lengths.append(a[1].shape[1]) or forward(*a))
    given = torch.arange(10000)[None] % 20
    given[0, -1] = -1
    codes = generate([make(0)], [SamplingConfig()], request(2560000, items=(0,)), [given])[0]
    assert (max(lengths), sum(lengths)) == (256, 9999)
    lengths.clear()
    sequence_log_probability(make(0), [codes], request(2560000, items=(0,)))
    assert (max(lengths), sum(lengths)) == (256, 10000)


def test_redrawing_keeps_all_outside_and_rounds_outward() -> None:
    codes = piece()
    given = redraw(codes, 0.3, 0.5)  # samples 2400 to 4000: top codes 9 to 15
    for level, mask, hop in zip(codes.levels, given.levels, HOPS, strict=True):
        start, end = 9 * 256 // hop, 16 * 256 // hop
        assert torch.equal(mask[:start], level[:start])
        assert (mask[start:end] == -1).all()
        assert torch.equal(mask[end:], level[end:])
    assert given.n_samples == 8000
    assert given.given_stretches(HOPS) == [(0, 9 * 256), (16 * 256, 8000)]
    finer = redraw(codes, 0.3, 0.5, keep_levels=1)
    assert torch.equal(finer.levels[0], codes.levels[0])
    assert all(torch.equal(a, b) for a, b in zip(finer.levels[1:], given.levels[1:], strict=True))
    whole = redraw(codes, 0, 1.0)
    assert all((level == -1).all() for level in whole.levels)
    assert whole.given_stretches(HOPS) == []


def test_surrounding_varying_and_continuing() -> None:
    codes = piece(8000)  # 31.25 top codes
    given = surround(codes, 0.1, 0.25)  # 800 samples before are rounded up to 4 top codes
    assert given.n_samples == 1024 + 8000 + 2000
    assert given.source_start == 1024
    assert given.given_stretches(HOPS) == [(1024, 1024 + 31 * 256)]
    assert torch.equal(given.levels[2][32 : 32 + 31 * 8], codes.levels[2][: 31 * 8])
    only_before = surround(codes, 0.1, 0)
    assert only_before.given_stretches(HOPS) == [(1024, 9024)]
    assert [len(level) for level in only_before.levels] == [-(-9024 // hop) for hop in HOPS]
    varied = redraw(codes, 0, 1, keep_levels=2)
    assert torch.equal(varied.levels[1], codes.levels[1])
    assert (varied.levels[2] == -1).all()
    coarse = redraw(piece(8000, n_levels=1), 0, 1, keep_levels=1)  # a file of the top level alone
    assert torch.equal(coarse.levels[0], codes.levels[0])
    assert (coarse.levels[1] == -1).all()
    assert varied.given_stretches(HOPS) == []
    varied.levels.pop()  # as of a model whose finest prior is still missing
    assert varied.given_stretches(HOPS) == [(0, 8000)]
    begun = begin_with(codes, 20000)
    assert begun.given_stretches(HOPS) == [(0, 31 * 256)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: redraw(c, 0.5, 0.5), r"begin before it ends, within the piece of 1 s; found 0\.5 to 0\.5 s"),
        (lambda c: redraw(c, -1, 0.5), "the stretch must begin"), (lambda c: redraw(c, 0, 1.1), "the stretch must begin"),
        (lambda c: redraw(c, 0, float("nan")), "the stretch must begin"),
        (lambda c: redraw(c, 0, 1, 4), "keep-levels: expected 0 to 3, found 4"), (lambda c: redraw(c, 0, 1, -1), "keep-levels"),
        (lambda c: surround(c, -1, 2), "before, after"), (lambda c: surround(c, 0, float("inf")), "before, after"),
        (lambda c: surround(c, 0, 1e300), "up to 86400, found 0 and 1e"),
        (lambda c: surround(piece(100), 0, 1), r"at least 0\.032 s"),
        (lambda c: redraw(c, 0, 1, 3).check(HOPS, 1), "nothing is left to draw"),
        (lambda c: CodeMask(8000, [level[1:] for level in c.levels]).check(HOPS, 1), r"expected \[32\] or \[1, 32\], found \[31\]"),
        (lambda c: CodeMask(8000, [level.expand(3, -1) for level in c.levels]).check(HOPS, 2), r"found \[3, 32\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(piece())


@torch.no_grad()
def test_log_probability_is_that_of_the_stepwise_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.likelihood.BLOCK", 16)
    models, wanted = priors(), request(3000, genre=2)
    levels = naive(models, SETTINGS, wanted)
    costs = torch.zeros(2, dtype=torch.float64)
    for level, prior in enumerate(models):
        cache = prior.transformer.new_cache(2)
        around, n = coarser_at_rate_above(prior, levels, 2, levels[level].shape[1]), levels[level].shape[1]
        conditions = Conditions(
            {"genre": torch.full((2,), 2)}, torch.full((2,), 3000), torch.zeros(2, dtype=torch.int64)
        )
        context = prior.context(around, conditions, n).expand(2, -1, -1)
        before = F.pad(levels[level], (1, 0), value=20)
        total = torch.zeros(2, dtype=torch.float64)
        for t in range(n):
            logits = prior(before[:, t : t + 1], context[:, t : t + 1], cache)[:, 0].double()
            total += logits.log_softmax(-1)[[0, 1], levels[level][:, t]]
        found = sequence_log_probability(prior, levels, wanted)
        assert torch.allclose(found, total, rtol=1e-5)
        costs -= total / math.log(2) / (3000 / 8000)
    assert torch.allclose(bits_per_second(models, levels, wanted), costs, rtol=1e-5)


def test_splicing_keeps_the_source_and_fades_at_the_edges() -> None:
    source, decoded = torch.full((1, 600), 0.5), torch.full((1, 1000), -0.25)
    whole = decoded.clone()
    splice(whole, source, 200, [(200, 800)], 100)
    mixed = whole[0]
    assert torch.equal(mixed[:200], decoded[0, :200])
    assert torch.equal(mixed[300:700], source[0, :400])
    assert torch.equal(mixed[800:], decoded[0, 800:])
    for t in (0, 30, 99):
        angle = (t + 0.5) / 100 * math.pi / 2
        assert float(mixed[200 + t]) == pytest.approx(math.sin(angle) * 0.5 - math.cos(angle) * 0.25, abs=1e-6)
        assert float(mixed[799 - t]) == pytest.approx(float(mixed[200 + t]), abs=1e-6)
    splice(whole, torch.ones(1, 1000), 0, [(0, 1000)], 100)
    assert torch.equal(whole, torch.ones(1, 1000))
