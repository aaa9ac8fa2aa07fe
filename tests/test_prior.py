"""Transformer, cache, conditioners and prior: every fast path against the naive one."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from audiovq.prior.conditioners import CONDITIONERS, Conditions
from audiovq.prior.kv_cache import window_mask
from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.spec import PriorSpec
from audiovq.prior.transformer import Transformer, TransformerConfig, rotate

CONFIG = TransformerConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, context=64, attention_window=12)
HOPS = [256, 128, 32]


def spec(level: int, size: int = 20, hops: list[int] | None = None) -> PriorSpec:
    return PriorSpec(level, hops or HOPS, 8000, size, "f" * 64, {"genre": ["folk", "rock"]})


def make(level: int, hops: list[int] | None = None, **options: Any) -> Prior:
    torch.manual_seed(level)
    conditioners = (CONDITIONERS["label"].Config(), CONDITIONERS["timing"].Config())
    return Prior(
        PriorConfig(transformer=CONFIG, context_codes=2, conditioners=conditioners, **options), spec(level, hops=hops)
    ).eval()  # type: ignore[arg-type]


def conditions(batch: int, position: int = 0) -> Conditions:
    full = lambda value: torch.full((batch,), value)  # noqa: E731
    return Conditions({"genre": torch.arange(batch) % 3}, full(9000), full(position))


def naive_attention_window(n: int, window: int) -> torch.Tensor:
    return torch.tensor([[q - window < k <= q for k in range(n)] for q in range(n)])


def test_window_mask_equals_its_definition() -> None:
    assert torch.equal(window_mask(20, 0, 6, torch.device("cpu")), naive_attention_window(20, 6))
    assert torch.equal(window_mask(5, 15, 6, torch.device("cpu")), naive_attention_window(20, 6)[15:])


def test_rotary_makes_attention_depend_on_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    angles = Transformer(TransformerConfig(dim=16, n_layers=1, n_heads=1)).angles

    def score(i: int, j: int) -> float:
        a = rotate(q, *angles(torch.tensor([i])))
        return float((a * rotate(k, *angles(torch.tensor([j])))).sum())

    assert score(7, 3) == pytest.approx(score(1007, 1003), abs=1e-3)
    assert abs(score(7, 3) - score(70, 3)) > 1e-2


@pytest.mark.parametrize("pieces", [[1] * 50, [50], [7, 1, 1, 20, 1, 20], [30, 1, 1, 1, 17], [12, 12, 1, 25], [13, 37]])
def test_cache_and_ring_equal_the_whole_sequence(pieces: list[int]) -> None:
    """50 positions through a window of 12: the ring goes round four times."""
    model = Transformer(CONFIG).eval()
    x = torch.randn(2, 50, 32)
    with torch.no_grad():
        whole = model(x)
        cache = model.new_cache(2)
        parts = [model(part, cache) for part in x.split(pieces, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert cache.keys.shape[3] == 12  # memory is the window's, whatever the length


def test_sliding_window_equals_a_masked_full_attention() -> None:
    """With one layer a position sees exactly the window: what lies before changes nothing."""
    model = Transformer(CONFIG.model_copy(update={"n_layers": 1})).eval()
    x = torch.randn(1, 40, 32)
    changed = x.clone()
    changed[:, :20] = torch.randn(1, 20, 32)
    with torch.no_grad():
        a, b = model(x), model(changed)
    assert torch.allclose(a[:, 31:], b[:, 31:], atol=1e-6)
    assert not torch.allclose(a[:, 30], b[:, 30], atol=1e-4)


def test_grouped_heads_equal_repeated_ones() -> None:
    grouped = Transformer(CONFIG).eval()
    full = Transformer(CONFIG.model_copy(update={"n_kv_heads": None})).eval()
    state = grouped.state_dict()
    for name in [n for n in state if n.endswith("qkv.weight")]:
        q, k, v = state[name].split([32, 16, 16])
        wide = [w.reshape(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32) for w in (k, v)]
        state[name] = torch.cat([q, *wide])
    full.load_state_dict(state)
    x = torch.randn(2, 30, 32)
    with torch.no_grad():
        assert torch.allclose(grouped(x), full(x), atol=1e-5)


def test_nothing_from_the_future_reaches_a_logit() -> None:
    prior = make(0)
    previous = torch.randint(0, 20, (1, 30))
    context = prior.context(torch.zeros(1, 0, 0).long(), conditions(1), 30)
    changed = previous.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 20
    with torch.no_grad():
        a, b = prior(previous, context), prior(changed, context)
    assert torch.equal(a[:, :15], b[:, :15])
    assert not torch.allclose(a[:, 15], b[:, 15])


@pytest.mark.parametrize(("level", "hops"), [(1, HOPS), (2, HOPS), (2, [256, 128, 128]), (3, [64, 64, 64, 64])])
def test_context_of_a_window_is_that_of_the_whole_track(level: int, hops: list[int]) -> None:
    prior = make(level, hops)
    ratio, context_codes, n = prior.spec.ratio, 2, 24
    coarse = torch.randint(0, 20, (1, level, n))
    padded = F.pad(coarse, (context_codes, context_codes), value=20)
    with torch.no_grad():
        whole = prior.context(padded, conditions(1), n * ratio)
        for first, last in ((0, 5), (5, 13), (13, 24)):
            part = prior.context(
                padded[:, :, first : last + 2 * context_codes], conditions(1, first * ratio), (last - first) * ratio
            )
            assert torch.allclose(part, whole[:, first * ratio : last * ratio], atol=1e-5)


def test_a_code_depends_on_the_coarser_code_of_its_own_time() -> None:
    prior = make(1)
    padded = F.pad(torch.randint(0, 20, (1, 1, 10)), (2, 2), value=20)
    changed = padded.clone()
    changed[0, 0, 2 + 4] = (changed[0, 0, 2 + 4] + 1) % 20
    with torch.no_grad():
        difference = (
            (prior.context(padded, conditions(1), 20) - prior.context(changed, conditions(1), 20)).abs().sum(-1)[0]
        )
    touched = difference.nonzero().flatten().tolist()
    assert touched == list(
        range(4, 14)
    )  # coarse code 4 covers codes 8 and 9, and has an effect on two coarse codes on either side
    assert int(difference.argmax()) in (8, 9)


def test_codes_at_the_same_rate_have_an_effect_one_by_one() -> None:
    """Ratio 1: a code of the coarser level has an effect on its own time and on two codes on either side."""
    prior = make(2, [256, 128, 128])
    padded = F.pad(torch.randint(0, 20, (1, 2, 10)), (2, 2), value=20)
    changed = padded.clone()
    changed[0, 1, 2 + 4] = (changed[0, 1, 2 + 4] + 1) % 20
    with torch.no_grad():
        a, b = (prior.context(x, conditions(1), 10) for x in (padded, changed))
    difference = (a - b).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert int(difference.argmax()) == 4


def test_loss_is_the_cross_entropy_of_the_codes_within_the_track() -> None:
    prior = make(0)
    codes = torch.randint(0, 20, (2, 16))
    codes[1, 10:] = 20
    previous = torch.cat([torch.full((2, 1), 20), codes[:, :-1]], dim=1)
    batch = {
        "codes": codes, "previous": previous, "coarser": torch.zeros(2, 0, 0).long(), "position": torch.zeros(2).long(),
        "n_samples": torch.full((2,), 9000), "labels": torch.tensor([[1], [2]]),
    }  # fmt: skip
    with torch.no_grad():
        nll, n = prior.loss(batch)
        given = Conditions({"genre": torch.tensor([1, 2])}, batch["n_samples"], batch["position"])
        log_p = prior(previous, prior.context(batch["coarser"], given, 16)).log_softmax(-1)
    by_hand = -sum(float(log_p[b, t, codes[b, t]]) for b, end in ((0, 16), (1, 10)) for t in range(end))
    assert int(n) == 26
    assert float(nll) == pytest.approx(by_hand, rel=1e-5)
    assert float(nll) / 26 == pytest.approx(math.log(20), rel=0.15)  # untrained: about uniform


@pytest.mark.parametrize("kind", CONDITIONERS)
def test_contract_of_every_conditioner(kind: str) -> None:
    config = CONDITIONERS[kind].Config
    always_dropped = {"dropout": 1 - 1e-9} if "dropout" in config.model_fields else {}
    conditioner = CONDITIONERS[kind](config(**always_dropped), 16, spec(1))
    given = Conditions(
        {"genre": torch.tensor([1, 2])}, torch.tensor([9000, 80000]), torch.tensor([0, 4]), text=torch.tensor([[98], [99]]),
        chroma=torch.tensor([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]]), right=torch.tensor([list(range(16)), list(range(1, 17))]),
        gap_end=torch.tensor([3, 10]),
    )  # fmt: skip

    def everything(given: Conditions) -> torch.Tensor:
        added = conditioner(given, 6)
        assert added.shape in {(2, 1, 16), (2, 6, 16), (1, 1, 1)}
        prefix = conditioner.prefix(given) if conditioner.n_prefix else torch.zeros(2, 0, 16)
        assert prefix.shape == (2, conditioner.n_prefix, 16)
        return torch.cat([added.expand(2, 6, 16), prefix], dim=1)

    conditioner.eval()
    known = everything(given)
    assert not torch.allclose(known[0], known[1])
    if always_dropped:
        dropped = conditioner.train() and everything(given)
        assert torch.allclose(dropped[0], dropped[1])
        conditioner.eval()
    nothing = Conditions({"genre": torch.tensor([0, 0])}, torch.tensor([9000, 9000]), torch.tensor([4, 4]))
    unknown = everything(nothing)
    assert torch.allclose(unknown[0], unknown[1])
    if kind in {"label", "text", "chroma", "notes"}:  # what guidance strengthens: dropped is the same as unknown
        assert torch.allclose(everything(given.only_where(torch.tensor([False, False]))), unknown)
        assert torch.allclose(dropped, unknown)


@pytest.mark.parametrize(
    ("kind", "options"), [("timing", {}), ("label", {"name": "genre"}), ("chroma", {}), ("notes", {}), ("text", {})]
)
def test_a_dropout_of_one_silences_a_conditioner_in_training_and_after(kind: str, options: dict) -> None:
    def some(known: bool) -> Conditions:
        return Conditions(
            {"genre": torch.tensor([int(known)])},
            torch.tensor([8000 * (1 + known)]),
            torch.tensor([0]),
            text=torch.tensor([[3 * known, 4 * known]]),
            chroma=torch.full((1, 20), 5 * known),
        )

    for dropout, silent in ((1, True), (0, False)):
        config = CONDITIONERS[kind].Config(dropout=dropout, **options)
        module = CONDITIONERS[kind](config, 16, spec(0))
        for mode in (module.train(), module.eval()):
            call = mode.prefix if kind == "text" else lambda conditions, mode=mode: mode(conditions, 20)
            assert torch.equal(call(some(True)), call(some(False))) == silent


def test_timing_goes_on_where_the_window_before_ended() -> None:
    timing = CONDITIONERS["timing"](CONDITIONERS["timing"].Config(), 16, spec(0)).eval()
    whole = timing(conditions(1), 20)
    assert torch.allclose(timing(conditions(1, 12), 8), whole[:, 12:], atol=1e-5)


def test_a_prior_learns_a_rule() -> None:
    """Each code is the one before plus two: two hundred steps make it nearly certain."""
    prior = make(0).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    loss = torch.tensor(0.0)
    for _ in range(200):
        codes = (torch.randint(0, 20, (8, 1)) + 2 * torch.arange(17)) % 20
        context = prior.context(torch.zeros(8, 0, 0).long(), conditions(8), 16)
        loss = F.cross_entropy(prior(codes[:, :-1], context).flatten(0, 1), codes[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.05
