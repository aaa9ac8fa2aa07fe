"""Text, chroma, gaps and guidance: each against the naive computation."""

import math

import numpy as np
import pytest
import torch
from test_prior import CONFIG, HOPS, spec
from torch import nn

from audiovq.data.conditions import SILENT, chroma_classes
from audiovq.prior.conditioners import CONDITIONERS, NO_GAP, Conditions
from audiovq.prior.prior import Prior, PriorConfig, PriorSpec, SamplingConfig
from audiovq.prior.transformer import Transformer, TransformerConfig
from audiovq.sampling.decode_state import coarser_at_rate_above
from audiovq.sampling.generate import generate
from audiovq.sampling.guidance import GuidedPrior, Request, gap_end_after, piece_conditions
from audiovq.sampling.next_code import gumbel_noise, next_code

KINDS = {kind: entry.Config for kind, entry in CONDITIONERS.items()}
ALL = (KINDS["label"](), KINDS["timing"](), KINDS["text"](max_bytes=7), KINDS["chroma"](), KINDS["infill"](n_codes=5))


def make(level: int, conditioners: tuple = ALL) -> Prior:
    """A prior whose weights are large enough for everything to have an effect."""
    torch.manual_seed(level)
    prior = Prior(PriorConfig(transformer=CONFIG, context_codes=2, conditioners=conditioners), spec(level)).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter *= 3
    return prior


def ask(text: str = "", **options: object) -> Request:
    chroma = torch.randint(1, 14, (30,), generator=torch.Generator().manual_seed(1))
    return Request(1500, [0, 1], 42, {"genre": 2}, text, chroma, **options)  # type: ignore[arg-type]


# --- the prefix -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[1] * 50, [50], [7, 1, 1, 20, 1, 20], [30, 1, 1, 1, 17], [12, 12, 1, 25]])
def test_cache_and_ring_with_a_prefix_equal_the_whole_sequence(pieces: list[int]) -> None:
    """50 positions through a window of 12: the ring goes round four times, the prefix stays."""
    model = Transformer(CONFIG, n_prefix=5).eval()
    x, tokens = torch.randn(2, 50, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        prefix = model.read_prefix(tokens)
        whole = model(x, prefix=prefix)
        cache = model.new_cache(2)
        cache.write_prefix(prefix)
        parts = [model(part, cache) for part in x.split(pieces, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert cache.keys.shape[3] == 5 + 12  # memory is the prefix's and the window's, whatever the length


def test_a_prefix_equals_tokens_in_the_stream_under_one_mask() -> None:
    """Naively: prefix and codes are one sequence; the prefix sees itself, a code the prefix and its window."""
    model = Transformer(CONFIG.model_copy(update={"n_layers": 1, "n_kv_heads": None}), n_prefix=3).eval()
    x, tokens = torch.randn(1, 30, 32), torch.randn(1, 3, 32)
    attention = model.layers[0].attention
    seen = {}
    attention.out.register_forward_hook(lambda module, inputs, output: seen.update(y=inputs[0]))  # type: ignore[union-attr]
    with torch.no_grad():
        model(x, prefix=model.read_prefix(tokens))
        stream = model.layers[0].attention_norm(torch.cat([tokens, x], dim=1))  # type: ignore[operator]
        q, k, v = (part.reshape(33, 4, 8) for part in attention.qkv(stream)[0].split(32, dim=-1))  # type: ignore[operator]
        expected = torch.zeros(30, 4, 8)
        for t in range(30):
            for head in range(4):
                scores, values = [], []
                for s in range(33):
                    behind = t - (s - 3)
                    if s < 3:  # by the half that does not turn: pairs 2 and 3, dimensions 2, 3, 6 and 7
                        score = sum(float(q[t + 3, head, d] * k[s, head, d]) for d in (2, 3, 6, 7))
                    elif 0 <= behind < 12:
                        score = sum(_turned(q[t + 3, head], k[s, head], pair, behind) for pair in range(4))
                    else:
                        continue
                    scores.append(score / math.sqrt(8))
                    values.append(v[s, head])
                expected[t, head] = torch.tensor(scores).softmax(0) @ torch.stack(values)
    assert torch.allclose(seen["y"][0], expected.reshape(30, 32), atol=1e-5)


def _turned(q: torch.Tensor, k: torch.Tensor, pair: int, distance: int) -> float:
    """The part of a rotary score that a pair of dimensions gives: Re(q · conj(k) · e^{i·angle})."""
    angle = distance * 10000 ** (-pair / 4) if pair < 2 else 0.0
    a, b = complex(q[pair], q[pair + 4]), complex(k[pair], k[pair + 4])
    return (a * b.conjugate() * complex(math.cos(angle), math.sin(angle))).real


def test_a_prefix_has_the_same_effect_everywhere() -> None:
    """A window of one code: each position sees itself and the prefix, so equal inputs give equal outputs."""
    model = Transformer(TransformerConfig(dim=32, n_layers=2, n_heads=4, context=64, attention_window=1), 4).eval()
    x = torch.randn(1, 1, 32).expand(1, 60, 32)
    with torch.no_grad():
        y = model(x, prefix=model.read_prefix(torch.randn(1, 4, 32)))
        other = model(x, prefix=model.read_prefix(torch.randn(1, 4, 32)))
    assert torch.allclose(y, y[:, :1].expand_as(y), atol=1e-5)
    assert not torch.allclose(y, other, atol=1e-3)


def test_too_narrow_heads_are_refused_for_a_prefix() -> None:
    narrow = TransformerConfig(dim=8, n_heads=4)
    PriorConfig(transformer=narrow)
    with pytest.raises(ValueError, match="text and infill need at least 4 times n_heads"):
        PriorConfig(transformer=narrow, conditioners=(KINDS["text"](),))


# --- text -------------------------------------------------------------------------------------------------------------


def conditions_of(
    prior: Prior, batch: int, n_samples: int, labels: dict, text: str = "", chroma: torch.Tensor | None = None
) -> Conditions:
    return piece_conditions(prior, Request(n_samples, list(range(batch)), 0, labels, text, chroma), batch)


def logits_of(prior: Prior, text: str) -> torch.Tensor:
    conditions = conditions_of(prior, 1, 9000, {}, text)
    previous = torch.arange(40)[None] % 20
    with torch.no_grad():
        context = prior.context(torch.zeros(1, 0, 0).long(), conditions, 40)
        return prior(previous, context, prefix=prior.prefix(conditions))


def test_text_has_an_effect_everywhere_and_no_text_is_dropped_text() -> None:
    prior = make(0)
    calm, wild, none = (logits_of(prior, text) for text in ("calm", "wild", ""))
    assert (calm - wild).abs().amax(-1).min() > 1e-3  # also at position 39, far behind the window of 12
    assert torch.equal(logits_of(prior, "a calm piece of music"), logits_of(prior, "a calm "))  # cut to max_bytes
    dropped = make(0, tuple(c.model_copy(update={"dropout": 1.0}) if c.kind == "text" else c for c in ALL))
    for conditioner in dropped.conditioners:
        conditioner.train(isinstance(conditioner, CONDITIONERS["text"]))
    assert torch.equal(logits_of(dropped, "calm"), none)
    assert torch.equal(logits_of(dropped, "wild"), none)


# --- guidance ---------------------------------------------------------------------------------------------------------


def two_passes(models: list[Prior], settings: list[SamplingConfig], wanted: Request) -> list[torch.Tensor]:
    """No cache, no doubled batch: two forward passes over the whole sequence for every code."""
    levels: list[torch.Tensor] = []
    batch = len(wanted.items)
    for level, (prior, setting) in enumerate(zip(models, settings, strict=True)):
        n = -(-wanted.n_samples // HOPS[level])
        around = coarser_at_rate_above(prior, levels, batch, n)
        conditional = conditions_of(prior, batch, wanted.n_samples, wanted.labels, wanted.text, wanted.chroma)
        unconditional = conditions_of(prior, batch, wanted.n_samples, {})
        codes = torch.full((batch, 1), 20)
        noise = torch.stack([gumbel_noise(wanted.seed, item, level, 0, n, 20) for item in wanted.items])
        both = (conditional, unconditional)
        inputs = [(prior.context(around, c, n).expand(batch, -1, -1), prior.prefix(c)) for c in both]
        for t in range(n):
            a, b = (prior(codes, context[:, : t + 1], prefix=prefix)[:, -1] for context, prefix in inputs)
            logits = b + setting.guidance * (a - b)
            drawn = next_code(logits, noise[:, t], setting.temperature, setting.top_k, setting.top_p)
            codes = torch.cat([codes, drawn[:, None]], dim=1)
        levels.append(codes[:, 1:])
    return levels


@torch.no_grad()
def test_guided_generation_equals_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)
    models = [make(level) for level in range(3)]
    settings = [SamplingConfig(guidance=2.5, temperature=0.8), SamplingConfig(guidance=0.5), SamplingConfig()]
    for wanted in (ask("calm"), ask()):
        fast = generate(models, settings, wanted)
        for a, b in zip(fast, two_passes(models, settings, wanted), strict=True):
            assert torch.equal(a, b)
    free = generate(models, [SamplingConfig(temperature=0.8), *settings[1:]], wanted)
    assert not torch.equal(free[0], fast[0])


def test_guidance_of_one_and_guidance_without_conditions_double_nothing() -> None:
    prior = make(0)
    assert GuidedPrior(prior, conditions_of(prior, 2, 9000, {"genre": 1}), 1.0).n_rows == 2
    assert GuidedPrior(prior, conditions_of(prior, 2, 9000, {}), 3.0).n_rows == 2
    assert GuidedPrior(prior, conditions_of(prior, 2, 9000, {"genre": 1}), 3.0).n_rows == 4
    both = torch.randn(4, 9)
    none, strong = (
        GuidedPrior(prior, conditions_of(prior, 2, 9000, {"genre": 1}), g).combine(both) for g in (0.0, 3.0)
    )
    assert torch.equal(none, both[2:])
    assert torch.allclose(strong, 3 * both[:2] - 2 * both[2:], atol=1e-5)


def test_some_training_items_have_none_of_the_conditions() -> None:
    """With a joint rate of a half and nothing dropped by itself, half of the items are unlabelled, textless and chromaless."""
    sure = tuple(KINDS[kind](dropout=0.0) for kind in ("label", "text", "chroma"))
    config = PriorConfig(transformer=CONFIG, conditioners=sure, unconditional_rate=0.5)
    prior = Prior(config, spec(0))
    seen: list[Conditions] = []
    prior.context, real = (lambda c, given, n: seen.append(given) or real(c, given, n)), prior.context  # type: ignore[method-assign]
    n = 200
    batch = {
        "codes": torch.zeros(n, 4).long(), "previous": torch.zeros(n, 4).long(), "coarser": torch.zeros(n, 0, 0).long(),
        "position": torch.zeros(n).long(), "n_samples": torch.full((n,), 9000), "labels": torch.full((n, 1), 2),
        "text": torch.full((n, 128), 98), "chroma": torch.full((n, 5), 3),
    }  # fmt: skip
    prior.train().loss(batch)
    silent = seen[0].labels["genre"] == 0
    assert 70 < int(silent.sum()) < 130
    assert seen[0].text is not None
    assert seen[0].chroma is not None
    assert torch.equal(seen[0].text[:, 0] == 0, silent)
    assert torch.equal(seen[0].chroma[:, 0] == 0, silent)
    prior.eval().loss(batch)
    assert bool((seen[1].labels["genre"] == 2).all())


# --- chroma -----------------------------------------------------------------------------------------------------------


def sine(note: int, n: int, rate: int = 8000) -> np.ndarray:
    """MIDI note 60 is C."""
    return 0.3 * np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * np.arange(n) / rate)


@pytest.mark.parametrize("hop", [500, 2048])
def test_chroma_names_the_pitch_class_at_its_time(hop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes change at frames 20, 40, …: away from the window's blur there is exactly one answer, and the change is centred."""
    notes = [60, 64, 67, 57, 70]
    wave = torch.from_numpy(np.concatenate([sine(note, 20 * hop) for note in notes] + [np.zeros(20 * hop + 5)]))[None]
    found = chroma_classes(wave, 8000, hop)
    assert len(found) == 121
    blur = -(-2048 // hop)
    for i, note in enumerate(notes):
        inside = found[20 * i + (blur if i else 0) : 20 * (i + 1) - blur]
        assert (inside == note % 12 + 1).all()
    assert (found[101:] == SILENT).all()
    change = np.flatnonzero(found[: 40 - blur] != found[0])[0]
    assert (
        abs(change - 20) <= 1
    )  # to the frame, give or take one; a window that is not centred would be off by blur / 2
    monkeypatch.setattr("audiovq.data.conditions.FRAMES_AT_ONCE", 7)
    assert np.array_equal(chroma_classes(wave, 8000, hop), found)


@pytest.mark.parametrize("kind", ["chroma", "notes"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_each_code_depends_on_the_chroma_or_notes_of_its_own_time(level: int, kind: str) -> None:
    prior = make(level, (KINDS[kind](),))
    n = -(-5000 // HOPS[level])
    chroma = torch.arange(20) % 13 + 1

    def context(chroma: torch.Tensor | None, start: int = 0, end: int = n) -> torch.Tensor:
        coarser = [torch.zeros(1, 20).long(), torch.zeros(1, 40).long()]
        around = coarser_at_rate_above(prior, coarser, 1, n, start, end)
        request = Request(5000, [0], 0, {}, **{kind: chroma})  # type: ignore[arg-type]
        return GuidedPrior(prior, piece_conditions(prior, request, 1)).context(around, start, end)[0]

    with torch.no_grad():
        other = chroma.clone()
        other[7] = 1 + other[7] % 13
        touched = (context(chroma) != context(other)).any(-1).nonzero().flatten().tolist()
        assert touched == [t for t in range(n) if t * HOPS[level] // HOPS[0] == 7]
        for start, end in ((0, 8), (8, 20), (4, n)):  # blocks of a piece get what the whole gets
            assert torch.allclose(context(chroma, start, min(end, n)), context(chroma)[start:end], atol=1e-5)
        short = context(chroma[:7])
        unknown = context(None)
    known = 7 * HOPS[0] // HOPS[level]
    assert torch.allclose(short[:known], context(chroma)[:known], atol=1e-5)
    assert torch.allclose(short[known:], unknown[known:], atol=1e-5)  # past the recording's end


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_a_gap_is_the_same_with_and_without_cache_and_can_change_on_the_way() -> None:
    """Codes 0 to 29 see the gap that ends at 30, all later ones the gap that ends at 48."""
    prior = make(0)
    codes = torch.randint(0, 20, (2, 60))
    previous = torch.cat([torch.full((2, 1), 20), codes[:, :-1]], dim=1)
    known = conditions_of(prior, 2, 60 * 256, {"genre": 1})
    around = coarser_at_rate_above(prior, [], 2, 60)

    def whole(gap_end: int) -> torch.Tensor:
        guided = GuidedPrior(prior, known)
        guided.set_gap(codes, gap_end)
        prefix = prior.prefix(guided.conditions)
        return prior(previous, guided.context(around, 0, 60), prefix=prefix)

    guided = GuidedPrior(prior, known)
    with torch.no_grad():
        guided.set_gap(codes, 30)
        cache = prior.transformer.new_cache(guided.n_rows)
        guided.write_prefix(cache)
        context = guided.context(around, 0, 60)
        stepwise = [prior(previous[:, t : t + 1], context[:, t : t + 1], cache) for t in range(30)]
        assert torch.allclose(torch.cat(stepwise, dim=1), whole(30)[:, :30], atol=1e-4)
        assert not torch.allclose(whole(30)[:, 0], whole(48)[:, 0], atol=1e-2)
        guided.set_gap(codes, 48)
        guided.write_prefix(cache)
        fresh = GuidedPrior(prior, known)
        fresh.set_gap(codes, 48)
        expected = prior.prefix(fresh.conditions)
        assert expected is not None
        for layer, (keys, _) in enumerate(expected.layers):
            assert torch.allclose(cache.keys[layer, :, :, : prior.transformer.n_prefix], keys)
        guided.set_gap(codes, None)  # no gap any more: as if there never was one
        guided.write_prefix(cache)
        expected = prior.prefix(known)
        assert expected is not None
        assert torch.allclose(cache.keys[0, :, :, : prior.transformer.n_prefix], expected.layers[0][0])


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_generation_depends_on_what_follows_a_gap(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naively: for every code of the gap a pass over all before it, with what follows known from the first code on."""
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)
    prior, setting, wanted = make(0), SamplingConfig(guidance=guidance), Request(60 * 256, [0, 1], 7, {"genre": 1})
    given = torch.randint(0, 20, (2, 60))
    given[:, 20:40] = -1
    made = generate([prior], [setting], wanted, [given])[0]
    guided = GuidedPrior(prior, piece_conditions(prior, wanted, 2), guidance)
    guided.set_gap(given.clamp(min=0), 40)
    prefix, context = prior.prefix(guided.conditions), guided.context(coarser_at_rate_above(prior, [], 2, 60), 0, 60)
    noise = torch.stack([gumbel_noise(7, item, 0, 0, 60, 20) for item in (0, 1)])
    codes = torch.cat([torch.full((2, 1), 20), given], dim=1)
    for t in range(20, 40):
        logits = prior(guided.rows(codes[:, : t + 1]), context[:, : t + 1], prefix=prefix)[:, -1]
        codes[:, t + 1] = next_code(guided.combine(logits), noise[:, t], 1.0)
    assert torch.equal(made, codes[:, 1:])
    other = given.clone()
    other[:, 40:] = (other[:, 40:] + 1) % 20
    assert not torch.equal(generate([prior], [setting], wanted, [other])[0][:, 20:40], made[:, 20:40])


def test_where_the_next_gap_ends() -> None:
    given = torch.tensor([[1, 2, -1, -1, 3, 4, -1, 5, -1, -1], [1, 2, -1, 2, -1, 4, -1, 5, -1, -1]])
    ends = [gap_end_after(given, start) for start in range(10)]
    assert ends == [5, 5, 5, 5, 5, 7, 7, None, None, None]  # the last gap has nothing behind it
    assert gap_end_after(given[:, :2], 0) is None


def test_codes_behind_a_gap_are_not_counted() -> None:
    prior = make(0)
    codes = torch.randint(0, 20, (3, 16))
    batch = {
        "codes": codes, "previous": codes, "coarser": torch.zeros(3, 0, 0).long(), "position": torch.tensor([0, 10, 0]),
        "n_samples": torch.full((3,), 9000), "labels": torch.zeros(3, 1).long(), "right": torch.randint(0, 20, (3, 5)),
        "gap_end": torch.tensor([6, 40, NO_GAP]),
    }  # fmt: skip
    with torch.no_grad():
        _, n = prior.loss(batch)
    assert int(n) == 6 + 16 + 16


def mirrors(random: np.random.Generator, n: int) -> dict[str, torch.Tensor]:
    """Stretches of four random codes and then the same backwards: the first half of each is known only by its second."""
    first = random.integers(0, 8, (n, 4, 4))
    track = np.concatenate([first, first[:, :, ::-1]], axis=2).reshape(n, 32)
    gap_end = 8 * random.integers(0, 3, n) + 4  # at the middle of a stretch
    right = np.stack([row[end : end + 4] for row, end in zip(track, gap_end, strict=True)])
    codes = torch.from_numpy(track[:, :24])
    return {
        "codes": codes, "previous": nn.functional.pad(codes[:, :-1], (1, 0), value=8), "coarser": torch.zeros(n, 0, 0).long(),
        "position": torch.zeros(n).long(), "n_samples": torch.full((n,), 24 * 256), "labels": torch.zeros(n, 0).long(),
        "right": torch.from_numpy(right), "gap_end": torch.from_numpy(gap_end),
    }  # fmt: skip


@torch.no_grad()
def fill(prior: Prior, codes: torch.Tensor, gap: tuple[int, int], with_right: bool) -> torch.Tensor:
    """The likeliest codes of a gap [start, end), one after the other, after what is left of it."""
    n = codes.shape[1]
    guided = GuidedPrior(prior, conditions_of(prior, len(codes), n * 256, {}))
    if with_right:
        guided.set_gap(codes, gap[1])
    cache = prior.transformer.new_cache(guided.n_rows)
    guided.write_prefix(cache)
    context = guided.context(torch.zeros(len(codes), 0, 0).long(), 0, n)
    previous = nn.functional.pad(codes, (1, 0), value=8)
    previous[:, gap[0] + 1 :] = 8  # nothing of the gap and what follows is left in the sequence
    prior(previous[:, : gap[0]], context[:, : gap[0]], cache)
    for t in range(*gap):
        previous[:, t + 1] = prior(previous[:, t : t + 1], context[:, t : t + 1], cache)[:, 0].argmax(-1)
    return previous[:, gap[0] + 1 : gap[1] + 1]


def test_a_gap_is_filled_by_what_follows_it() -> None:
    transformer = TransformerConfig(dim=64, n_layers=2, n_heads=4, context=24)
    config = PriorConfig(transformer=transformer, conditioners=(KINDS["infill"](n_codes=4, reach=32),))
    prior = Prior(config, PriorSpec(0, [256], 8000, 8, "f", {})).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3, betas=(0.9, 0.98))
    random = np.random.default_rng(0)
    for _ in range(120):
        batch = mirrors(random, 32)
        batch["gap_end"][::2] = NO_GAP  # a rate of a half
        nll, n = prior.loss(batch)
        optimizer.zero_grad()
        (nll / n).backward()
        optimizer.step()
    prior.eval()
    codes = mirrors(random, 64)["codes"]
    with_right, without = (
        float((fill(prior, codes, (8, 12), t) == codes[:, 8:12]).float().mean()) for t in (True, False)
    )
    assert with_right > 0.9
    assert without < 0.3  # chance is an eighth
