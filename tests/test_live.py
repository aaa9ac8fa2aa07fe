"""Music without end: equal to a piece's codes, constant memory, changes on the way, and a state to continue from."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_control import KINDS, make as wild
from test_sampling import HOPS, priors, request
from tiny_generator import tiny_generator

from audiovq.api import Generator, Live
from audiovq.data.notes import SILENCE, frame_of
from audiovq.live.controls import Controls
from audiovq.prior.conditioners import Conditions, LabelConditioner
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.endless import EndlessCodes
from audiovq.sampling.generate import generate
from audiovq.sampling.guidance import Request

SETTINGS = [SamplingConfig(temperature=0.8), SamplingConfig(top_k=5), SamplingConfig(top_p=0.9)]


def drawn(codes: EndlessCodes, n: int) -> list[torch.Tensor]:
    """The next n codes of level 0, and the finer ones."""
    frames = []
    while len(frames) < n:
        if codes.draw():
            frames.append(codes.read())
    return [torch.cat(level)[None] for level in zip(*frames, strict=True)]


@torch.inference_mode()
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("hops", [HOPS, [128, 64, 64], [128, 128, 128]])
def test_endless_codes_are_those_of_a_piece(hops: list[int], block: int) -> None:
    """400 codes of level 0: the windows of 12 go round 33 times, the buffers of about 200 move on several times."""
    n = 400 * hops[0]
    wanted = request(2 * n, (0,), genre=2)  # timing stands still after the first half
    piece = generate(priors(hops), SETTINGS, wanted)
    endless = EndlessCodes(priors(hops), SETTINGS, wanted, block)
    for level, (a, b) in enumerate(zip(piece, drawn(endless, 400), strict=True)):
        assert torch.equal(a[:, : n // hops[level]], b)
    assert endless.states[0].start > 200
    assert endless.states[0].codes.shape == (1, endless.n_codes + 1)


@torch.inference_mode()
def test_guidance_and_text_are_those_of_a_piece() -> None:
    kinds = (KINDS["label"](), KINDS["text"](max_bytes=7), KINDS["infill"](n_codes=5))
    models = [wild(level, kinds) for level in range(3)]
    settings = [SamplingConfig(guidance=2.5), SamplingConfig(guidance=1.0), SamplingConfig(guidance=0.5)]
    wanted = Request(230 * 256, [0], 42, {"genre": 2}, "Ave", precision="fp32")
    piece = generate(models, settings, wanted)
    found = drawn(EndlessCodes(models, settings, wanted, block=4), 220)
    for a, b in zip(piece, found, strict=True):
        assert torch.equal(a[:, : b.shape[1]], b)


@torch.inference_mode()
def test_notes_of_a_piece_without_end_begin_again() -> None:
    """Naively, a piece whose frames are the cycle, repeated to its end. 300 codes: the buffers move on."""
    models = [wild(level, (KINDS["notes"](),)) for level in range(3)]
    settings = [SamplingConfig(guidance=2.0), SamplingConfig(), SamplingConfig()]
    cycle = torch.tensor([frame_of([60, 64, 67]), frame_of([57]), 0, SILENCE, frame_of([50, 53])])
    wanted = Request(310 * 256, [0], 42, {}, precision="fp32", notes=cycle)
    found = drawn(EndlessCodes(models, settings, wanted, block=7), 300)
    piece = generate(models, settings, dataclasses.replace(wanted, notes=cycle.repeat(62)))
    assert all(torch.equal(a[:, : b.shape[1]], b) for a, b in zip(piece, found, strict=True))
    other = drawn(EndlessCodes(models, settings, dataclasses.replace(wanted, notes=cycle.flip(0))), 20)
    assert not torch.equal(other[0], found[0][:, :20])


def test_notes_and_chords_act_from_the_next_code_on() -> None:
    """A generator whose priors know notes; keys take the place of chords, and the other way round."""
    generator = tiny_generator()
    plain, played, state = (generator.live(seed=3, precision="fp32") for _ in range(3))
    for live in (plain, played):
        live.read(1)
    n = plain.drawn.n_out
    played.set(notes=[60, 64, 67], guidance=[1, 3, 1])
    assert (played.controls["notes"], played.controls["chords"]) == ([60, 64, 67], "")
    for live in (plain, played):
        live.read(2)
    a, b = plain.codes(), played.codes()
    for level, per_top in enumerate(plain.drawn.per_top):
        assert torch.equal(a.levels[level][: n * per_top], b.levels[level][: n * per_top])
    assert torch.equal(a.levels[0][n:][:100], b.levels[0][n:][:100])  # level 1 alone has notes
    assert not torch.equal(a.levels[1][2 * n :][:100], b.levels[1][2 * n :][:100])
    played.set(chords="Am:0.5 F:0.3")
    assert (played.controls["notes"], played.controls["chords"]) == (None, "Am:0.5 F:0.3")
    request = played.wanted and played.wanted[1].notes
    assert request is not None
    assert len(request) % 100 == 0  # whole cycles of 0.8 s, at 8 ms a code
    assert torch.equal(request[:100], request[-100:])
    state = generator.live(state=played.state())
    assert state.controls == played.controls
    assert torch.equal(state.read(1), played.read(1))
    before = played.controls
    for wrong, words in (({"notes": "song.mid"}, "expected MIDI pitches"), ({"notes": [128]}, "keys from 0 to 127"),
                         ({"chords": "H"}, "chords: H"), ({"notes": [60], "chords": "C"}, "found both")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            played.set(**wrong)
    assert played.controls == before
    played.set(chords=None)
    assert played.wanted is not None
    assert played.wanted[1].notes is None


def test_keys_that_are_held_are_notes() -> None:
    live, lines = tiny_generator().live(seed=3, precision="fp32"), list[str]()
    controls = Controls(live, lambda: None, lines.append)
    seen = []
    for kind, note, velocity in (("on", 60, 90), ("on", 52, 90), ("on", 36, 9), ("off", 60, 0), ("on", 52, 0)):
        controls.midi(SimpleNamespace(type=f"note_{kind}", note=note, velocity=velocity))
        seen.append(live.controls["notes"])
    assert seen == [[60], [52, 60], [52, 60], [52], None]
    assert live.restarts
    controls.message("notes", [59.9999, 64.0])  # frequencies as pitches
    assert live.controls["notes"] == [60, 64]
    controls.message("chords", ["C G"])
    for event in (("note_on", 60, 90), ("note_on", 64, 90), ("control_change", 0, 0)):
        kind, note, velocity = event
        controls.midi(SimpleNamespace(type=kind, note=note, velocity=velocity, control=123, value=0))
        assert (live.controls["chords"] == "") == (kind == "note_on")
    assert (live.controls["chords"], live.controls["notes"]) == ("C G", None)  # the keys are gone, the chords are back
    controls.message("chords", ["Am F"])
    assert live.controls["chords"] == "Am F"
    assert not lines
    controls.message("chords", [5])
    assert lines == [f"not changed: chords: 5: {lines[0].split(': ', 3)[3]}"]


def test_timing_stands_still_in_the_middle() -> None:
    prior = wild(1, (KINDS["timing"](),))

    def context(position: int, end: int | None) -> torch.Tensor:
        timing_end = None if end is None else torch.tensor([end])
        given = Conditions({"genre": torch.zeros(1).long()}, torch.tensor([9000]), torch.tensor([position]))
        given.timing_end = timing_end
        return prior.conditioners[0](given, 8)

    with torch.no_grad():
        assert torch.equal(context(10, 30), context(10, None))
        still = context(40, 30)
        assert torch.equal(still, still[:, :1].expand_as(still))
        assert torch.equal(still[:, 0], context(30, None)[:, 0])
        assert torch.equal(context(26, 30)[:, :5], context(26, None)[:, :5])


def fp32(run: Path, **options: object) -> Live:
    return Generator.from_pretrained(run, "cpu").live(seed=5, precision="fp32", **options)


def test_music_in_blocks_of_any_size_is_its_codes_decoded(tiny_run: Path) -> None:
    live = fp32(tiny_run, piece_seconds=12, genre="folk")
    found = torch.cat([live.read(seconds) for seconds in (0.01, 1.3, 0.2, 3.0)], dim=-1)
    assert found.shape == (1, 8000 * 4.51)
    assert found.dtype == torch.float32
    codes = live.codes()
    decoder = live.tokenizer.decoder_stream(3, *live.blocks)
    again = torch.cat([decoder.push(codes.levels), decoder.finish(codes.n_samples)], dim=-1)
    assert torch.equal(again[:, : found.shape[1]], found)
    assert torch.allclose(live.tokenizer.decode(codes)[:, : found.shape[1]], found, atol=1e-5)
    piece = live.generator.sample_codes(12, seed=5, labels={"genre": "folk"}, precision="fp32")[0]
    for a, b in zip(piece.levels, codes.levels, strict=True):
        assert torch.equal(a[: len(b)], b)
    last = live.codes(1.0)
    assert last.n_samples == 32 * 256
    assert torch.equal(last.levels[2], codes.levels[2][-len(last.levels[2]) :])
    blocks = torch.cat(list(itertools.islice(fp32(tiny_run, piece_seconds=12, genre="folk"), 20)), dim=-1)
    n = min(blocks.shape[-1], found.shape[-1])
    assert torch.equal(blocks[:, :n], found[:, :n])


def test_memory_is_constant(tiny_run: Path) -> None:
    live = fp32(tiny_run, keep_seconds=2)

    def sizes() -> list[int]:
        states = live.drawn.states
        tensors = [x for state in states for x in (state.codes, state.cache.both, state.given)]
        return [x.numel() for x in tensors] + [sum(p.numel() for p in parts) for parts in live.decoder.windows.parts]

    live.read(5)
    before = sizes()
    for _ in range(6):
        live.read(3)
        assert sizes() == before
    assert live.drawn.states[0].start > 400
    assert live.codes().n_samples == -(-16000 // 256) * 256
    assert len(live.state()) < 250_000


def test_a_change_acts_from_the_next_code_on_and_before_it_nothing_differs(tiny_run: Path) -> None:
    plain, changed = fp32(tiny_run, genre="folk"), fp32(tiny_run, genre="folk")
    plain.read(1)
    changed.read(1)
    n = plain.drawn.n_out
    assert plain.drawn.states[0].n_done > n  # codes that were drawn ahead are drawn again
    changed.set(genre="rock", temperature=[1.5, 1, 1], guidance=3, seed=9)
    assert changed.controls["labels"] == {"genre": "rock"}
    plain.read(2)
    changed.read(2)
    a, b = plain.codes(), changed.codes()
    for level_a, level_b, per_top in zip(a.levels, b.levels, plain.drawn.per_top, strict=True):
        assert torch.equal(level_a[: n * per_top], level_b[: n * per_top])
        assert not torch.equal(level_a[n * per_top :][:8], level_b[n * per_top :][:8])
    assert changed.drawn.settings[0].guidance == 3
    assert changed.drawn.settings[1].temperature == 1
    changed.set(guidance=None, genre=None)  # one row again
    changed.read(1)
    assert changed.drawn.states[0].guided.n_rows == 1
    changed.set(seed=5, temperature=None, genre="folk")
    changed.restart()
    changed.read(1)
    assert torch.equal(changed.codes().levels[1], plain.codes().levels[1][: len(changed.codes().levels[1])])


@pytest.mark.parametrize("seconds", [0.1, 9.0])
def test_codes_that_are_drawn_again_without_a_change_are_the_same(tiny_run: Path, seconds: float) -> None:
    """Taking codes back leaves no trace, also where the windows and buffers have gone round."""
    plain, changed = fp32(tiny_run, genre="folk"), fp32(tiny_run, genre="folk")
    plain.read(seconds)
    changed.read(seconds)
    for seed in (9, 5):  # and back, before anything is drawn
        changed.set(seed=seed)
    assert torch.equal(plain.read(1), changed.read(1))
    changed.set(temperature=None)
    assert torch.equal(plain.read(1), changed.read(1))
    assert all(torch.equal(x, y) for x, y in zip(plain.codes().levels, changed.codes().levels, strict=True))
    for state, other in zip(plain.drawn.states, changed.drawn.states, strict=True):
        assert torch.equal(state.cache.both, other.cache.both)


def test_a_slow_machine_goes_on_with_fewer_levels_and_longer_blocks(tiny_run: Path) -> None:
    full, live = fp32(tiny_run, ahead_seconds=None), fp32(tiny_run, ahead_seconds=None)
    full.read(1)
    live.read(1)
    assert live.lighten()
    before = live.latency_seconds
    sound = live.read(2)
    codes = live.codes()
    assert len(codes.levels) == live.n_levels == 2
    full.read(4)
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(codes.levels, full.codes().levels, strict=False))
    expected = live.tokenizer.decode(codes)[:, 8000:24000]
    n = round(before * 8000)  # around the seam it may be the sound of three levels
    assert torch.allclose(sound[:, n:], expected[:, n:], atol=1e-5)
    live.set(temperature=[0.9, 1, 1], genre="rock")
    again = Generator.from_pretrained(tiny_run, "cpu").live(state=live.state())
    assert torch.equal(live.read(1), again.read(1))
    live.restart()
    assert live.read(0.5).shape == (1, 4000)
    assert len(live.codes().levels) == 2
    while live.lighten():
        pass
    assert (live.n_levels, live.lighten()) == (1, False)
    assert 0.4 <= live.decoder.windows.step / 8000 <= 0.8
    assert live.read(1).shape == (1, 8000)


def test_how_far_the_decoder_looks_ahead(tiny_run: Path) -> None:
    exact, quick = fp32(tiny_run, ahead_seconds=None), fp32(tiny_run, block_seconds=0, ahead_seconds=0.07)
    a, b = exact.read(2), quick.read(2)
    assert torch.allclose(exact.tokenizer.decode(exact.codes())[:, :16000], a, atol=1e-5)
    assert quick.latency_seconds == pytest.approx(3 * 256 / 8000)  # two codes of level 0 ahead, and one
    assert exact.latency_seconds > quick.latency_seconds
    assert 0 < (a - b).norm() < 0.2 * a.norm()
    assert torch.equal(exact.codes().levels[2][:200], quick.codes().levels[2][:200])


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        ({"tempo": 3}, "tempo: no such control; expected one of: temperature"),
        ({"genre": "jazz"}, "label genre=jazz: expected one of: folk, rock"),
        ({"labels": {"mood": "sad"}}, "this model knows the labels: genre"),
        ({"genre": {"jazz": 0.5}}, "label genre=jazz: expected one of: folk, rock"),
        ({"genre": {"folk": "much"}}, "label genre: expected a share of folk from 0 to 1, found 'much'"),
        ({"genre": {"folk": 0.7, "rock": 0.6}}, "expected shares of at most 1 together, found 1.3"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": [1, 1]}, "top_p: expected one value or 3"),
        ({"seed": 1.5}, "seed"),
        ({"text": "Ave"}, "trained without texts"),
        ({"text": 5}, "trained without texts"),
        ({"notes": [60]}, "notes: this model was trained without"),
        ({"chords": "C"}, "chords: this model was trained without"),
    ],
)
def test_a_wrong_control_is_one_line_and_changes_nothing(tiny_run: Path, controls: dict, words: str) -> None:
    live = fp32(tiny_run)
    live.read(0.1)
    before = live.controls
    with pytest.raises(ValueError, match=words) as error:
        live.set(**{"temperature": 0.5, **controls})
    assert "\n" not in str(error.value) or "temperature" in str(error.value)
    assert live.controls == before


def test_labels_can_be_mixed(tiny_run: Path) -> None:
    prior, n = fp32(tiny_run).generator.priors[0], 5
    label = next(each for each in prior.conditioners if isinstance(each, LabelConditioner))
    at = torch.zeros(3, dtype=torch.int64)
    shares = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.4]])
    conditions = Conditions({"genre": shares}, at, at)
    unknown, folk, rock = label.embedding.weight
    expected = torch.stack([folk, 0.25 * folk + 0.75 * rock, 0.6 * unknown + 0.4 * rock])
    assert torch.allclose(label(conditions, n)[:, 0], expected, atol=1e-6)
    dropped = label(conditions.only_where(torch.tensor([True, False, True])), n)[:, 0]
    assert torch.allclose(dropped, torch.stack([folk, unknown, expected[2]]), atol=1e-6)

    lives = [fp32(tiny_run, genre=genre, guidance=2) for genre in ("folk", {"folk": 1.0}, {"folk": 0.5, "rock": 0.5})]
    plain, all_folk, half = (torch.cat(list(map(live.read, (1, 1))), dim=1) for live in lives)
    assert torch.equal(plain, all_folk)
    assert not torch.equal(plain, half)
    again = lives[0].generator.live(state=lives[2].state())
    assert torch.equal(again.read(1), lives[2].read(1))


@pytest.mark.parametrize("seconds", [0.0, 0.7, 9.0])
def test_a_state_continues_to_the_bit(tiny_run: Path, seconds: float) -> None:
    live = fp32(tiny_run, genre="folk", block_seconds=0.1)
    if seconds:
        live.read(seconds)
    live.set(guidance=2, temperature=0.9)
    live.read(0.33)
    live.set(genre="rock")  # nothing is drawn after it yet
    state = live.state()
    other = Generator.from_pretrained(tiny_run, "cpu").live(state=state)
    assert other.controls == live.controls
    assert torch.equal(live.read(4), other.read(4))
    assert all(torch.equal(a, b) for a, b in zip(live.codes().levels, other.codes().levels, strict=True))
    assert live.state() == other.state()


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_seconds_that_are_none_are_one_line(tiny_run: Path, seconds: float) -> None:
    for name in ("block_seconds", "ahead_seconds"):
        with pytest.raises(ValueError, match="of 0 s or more"):
            fp32(tiny_run, **{name: seconds})


@pytest.mark.parametrize("later", [{"guidance": 1}, {"genre": None}])
def test_a_state_has_what_was_drawn_before_a_change(tiny_run: Path, later: dict) -> None:
    """Without guidance the network has one row in place of two; also when the change comes with the state."""
    live = fp32(tiny_run, genre="folk", guidance=2)
    live.read(0.7)
    guided = live.state()
    live.set(**later)
    other = live.generator.live(state=live.state())
    changed = live.generator.live(state=guided, **later)
    assert other.controls == live.controls == changed.controls
    expected = live.read(2)
    assert torch.equal(other.read(2), expected)
    assert torch.equal(changed.read(2), expected)


def test_states_after_a_level_less_and_before_a_restart(tiny_run: Path) -> None:
    live = fp32(tiny_run, block_seconds=0.5)
    for _ in range(3):
        live.lighten()
    for _ in range(6):  # all over the buffer
        live.read(0.9)
        other = live.generator.live(state=live.state())
        assert torch.equal(other.read(1), live.read(1))
    live.restart()
    assert torch.equal(live.generator.live(state=live.state()).read(1), live.read(1))


def test_a_restart_gives_the_beginning_at_once(tiny_run: Path) -> None:
    live = fp32(tiny_run)
    beginning = live.read(1)
    live.read(0.55)
    live.restart()
    assert torch.equal(live.read(1), beginning)
    blocks = iter(live)
    live.restart()
    assert torch.equal(next(blocks), beginning[:, : next(iter(fp32(tiny_run))).shape[1]])


def test_a_change_during_a_restart_is_not_lost(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, original = fp32(tiny_run, genre="folk"), Live._begin
    live.read(0.5)

    def begin(self: Live, *arguments: Any, **sizes: int) -> None:
        original(self, *arguments, **sizes)
        self.set(genre="rock")

    with monkeypatch.context() as patch:
        patch.setattr(Live, "_begin", begin)
        live.restart()
        first = next(iter(live))
    rest = live.read(1)
    expected = fp32(tiny_run, genre="folk")
    assert torch.equal(next(iter(expected)), first)
    expected.set(genre="rock")
    assert torch.equal(expected.read(1), rest)


def test_numbers_of_numpy_and_torch_are_part_of_a_state(tiny_run: Path) -> None:
    live = fp32(tiny_run)
    live.set(
        temperature=np.array([1.1, 0.9, 0.8]),
        top_k=np.int64(7),
        guidance=torch.tensor(1.5),
        genre={"folk": np.float32(1)},
    )
    other = live.generator.live(state=live.state())
    assert (other.controls["temperature"], other.controls["top_k"]) == ([1.1, 0.9, 0.8], 7)
    assert torch.equal(other.read(1), live.read(1))


def test_states_that_are_none(tiny_run: Path) -> None:
    generator = Generator.from_pretrained(tiny_run, "cpu")
    good = fp32(tiny_run).state()
    for bad in (b"", b"hello, is this a state?", good[:200], good[:-5]):
        with pytest.raises(ValueError, match="state: expected what"):
            generator.live(state=bad)
    with pytest.raises(ValueError, match="found one of another"):
        generator.live(state=good.replace(generator.tokenizer.hash.encode(), b"0" * 64))
    with pytest.raises(ValueError, match="none yet"):
        generator.live().codes()


def test_one_thread_reads_while_another_sets(tiny_run: Path) -> None:
    live, heard = fp32(tiny_run), []
    reader = threading.Thread(target=lambda: heard.extend(live.read(0.25) for _ in range(20)))
    reader.start()
    for i in range(100):
        live.set(genre=("folk", "rock")[i % 2], temperature=1 + i / 100)
    reader.join()
    assert [block.shape for block in heard] == [(1, 2000)] * 20
    assert all(bool(block.isfinite().all()) for block in heard)
    assert live.controls["temperature"] == 1.99


def test_settings_of_all_levels_reach_their_priors() -> None:
    models: list[Prior] = priors()
    codes = EndlessCodes(models, SETTINGS, request(1000, (0,)))
    codes.change([SamplingConfig(temperature=0)] * 3, request(1000, (0,), genre=1))
    assert [state.request.labels for state in codes.states] == [{"genre": 1}] * 3
