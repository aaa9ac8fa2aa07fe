"""Codes of topology `bands` take turns: each has the part of the codebook that belongs to its place. So priors give the
others no probability, and pieces are cut at whole patches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_bands import PATCH, RATE, chord, small_network
from test_prior import CONFIG, HOPS
from tiny_generator import bands_generator

from audiovq import Generator, Tokenizer
from audiovq.data.codes import Codes
from audiovq.data.shards import Shards
from audiovq.data.tracks import DataConfig, scan
from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.spec import PriorSpec
from audiovq.sampling.guidance import Request
from audiovq.sampling.inpainting import begin_with, redraw, surround
from audiovq.sampling.likelihood import sequence_log_probability
from audiovq.training.encode_stage import encode_data_set

SLOTS, SIZE = 4, 64  # of the generator below: 16 codes a slot


@pytest.fixture(scope="module")
def generator() -> Generator:
    return bands_generator()


def small_prior() -> Prior:
    torch.manual_seed(0)
    prior = Prior(PriorConfig(transformer=CONFIG), PriorSpec(0, HOPS, 8000, 20, "f" * 64, {}, 4)).eval()
    return prior.requires_grad_(False)


def by_hand(prior: Prior, codes: list[int], first: int) -> float:
    """-log p of codes from the position `first` on, each among the five of its slot."""
    position = torch.tensor([first])
    context = prior.context(torch.zeros(1, 0, 0), Conditions({}, torch.tensor([9000]), position), len(codes))
    logits = prior(torch.tensor([[20, *codes[:-1]]]), context)[0]
    total = 0.0
    for t, code in enumerate(codes):
        low = (first + t) % 4 * 5
        total -= float(logits[t, low : low + 5].log_softmax(dim=0)[code - low])
    return total


def codes_from(first: int, n: int) -> list[int]:
    random = np.random.default_rng(first)
    return [int((first + t) % 4 * 5 + random.integers(5)) for t in range(n)]


@pytest.mark.parametrize("first", [0, 3, 8, 13])
def test_the_loss_is_that_of_the_codes_of_a_slot(first: int) -> None:
    prior, codes = small_prior(), codes_from(first, 30)
    batch = {
        "codes": torch.tensor([codes]),
        "previous": torch.tensor([[20, *codes[:-1]]]),
        "coarser": torch.zeros(1, 0, 0),
    }
    batch |= {"position": torch.tensor([first]), "n_samples": torch.tensor([9000]), "labels": torch.zeros(1, 0).long()}
    nll, n = prior.loss(batch)
    assert int(n) == 30
    assert float(nll) == pytest.approx(by_hand(prior, codes, first), rel=1e-5)


def test_the_likelihood_is_that_of_the_codes_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.likelihood.BLOCK", 7)  # not a multiple of the slots
    prior, codes = small_prior(), codes_from(0, 33)
    found = sequence_log_probability(prior, [torch.tensor([codes])], Request(9000, [0], 0, {}))
    assert float(found[0]) == pytest.approx(-by_hand(prior, codes, 0), rel=1e-5)


def are_in_their_slots(levels: list[torch.Tensor]) -> bool:
    return all(bool((level * SLOTS // SIZE == torch.arange(level.shape[-1]) % SLOTS).all()) for level in levels)


@pytest.mark.parametrize(
    "options", [{}, {"labels": {"genre": "rock"}, "guidance": 4.0}, {"temperature": 3.0, "top_p": 1.0, "top_k": 0}]
)
def test_drawn_codes_are_in_their_slots(generator: Generator, options: dict) -> None:
    for codes in generator.sample_codes(1.3, seed=1, n=2, **options):
        assert are_in_their_slots(codes.levels)
        assert len({int(c) for c in codes.levels[0]}) > 10  # not the same ones again and again


def test_music_without_end_has_codes_in_their_slots(generator: Generator) -> None:
    live = generator.live(seed=0, block_seconds=0.1, keep_seconds=1.0, temperature=2.0)
    heard = []
    for _ in range(12):
        live.read(0.43)
        live.set(genre="folk")
        everything = live.codes()
        assert are_in_their_slots(everything.levels)
        assert everything.seconds >= min(1.0, 0.43 * len(heard)) - 1e-9
        last = live.codes(last_seconds=0.2)
        assert 0.2 <= last.seconds < 0.2 + 2 * PATCH / RATE
        n = len(last.levels[0])
        assert all(torch.equal(a[-n:], b) for a, b in zip(everything.levels, last.levels, strict=True))
        heard.append(generator.tokenizer.decode(last))
    assert all(bool(waveform.isfinite().all()) for waveform in heard)


def piece(generator: Generator, patches: float) -> Codes:
    return generator.sample_codes(patches * PATCH / RATE, seed=2)[0]


@pytest.mark.parametrize("before", [0.0, 0.01, 0.1, 0.3])
def test_new_music_before_a_piece_has_whole_patches(generator: Generator, before: float) -> None:
    source = piece(generator, 9.6)
    mask = surround(source, before, 0.2)
    assert mask.source_start % PATCH == 0
    assert before <= mask.source_start / RATE < before + PATCH / RATE
    start = mask.source_start // 256
    assert all(torch.equal(a[start : start + 36], b[:36]) for a, b in zip(mask.levels, source.levels, strict=True))
    assert all(bool((level[start + 36 :] < 0).all()) for level in mask.levels)  # the incomplete patch is drawn anew
    result = generator.sample_codes(given=mask, seed=3)[0]
    assert are_in_their_slots(result.levels)
    generator.tokenizer.decode(result)


def test_a_redrawn_stretch_and_a_prompt_have_whole_patches(generator: Generator) -> None:
    source = piece(generator, 10)
    drawn = (redraw(source, 3.3 * PATCH / RATE, 4.1 * PATCH / RATE).levels[0] < 0).nonzero().flatten()
    assert drawn.tolist() == list(range(12, 20))
    assert (begin_with(source, 20 * PATCH).levels[1] >= 0).sum() == 40
    prompt = piece(generator, 5.7)
    assert (begin_with(prompt, 20 * PATCH).levels[0] >= 0).sum() == 20
    with pytest.raises(ValueError, match=r"prompt: expected at least 0\.064 s, found 0\.045 s"):
        begin_with(piece(generator, 0.7), 20 * PATCH)


def test_codes_in_other_slots_are_refused(generator: Generator, tmp_path: Path) -> None:
    codes = piece(generator, 4)
    cut = dataclasses.replace(codes, levels=[level[1:] for level in codes.levels], n_samples=codes.n_samples - 256)
    found = int(codes.levels[0][1])
    message = rf"code 0 of level 0: expected 0 to 15, found {found}; cut codes at multiples of 4"
    with pytest.raises(ValueError, match=message):
        generator.tokenizer.decode(cut)
    cut.save(tmp_path / "cut.codes")
    with pytest.raises(ValueError, match=rf"cut\.codes: {message}"):
        Codes.load(tmp_path / "cut.codes")
    with pytest.raises(ValueError, match="cut codes at multiples of 4"):
        generator.tokenizer.decode(dataclasses.replace(cut, slots=1))  # the tokenizer's slots count


def test_a_shift_is_a_part_of_a_patch_and_shards_know_the_slots(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    for i in range(2):
        soundfile.write(tmp_path / "music" / f"{i}.wav", chord(1.5 + i)[0, 0].numpy(), RATE, subtype="FLOAT")
    found = scan(tmp_path / "music", DataConfig(valid_fraction=0.5, min_seconds=0.1))
    tokenizer = Tokenizer(small_network())
    encode_data_set(tmp_path / "codes", found, tokenizer.network, 4, torch.device("cpu"))
    shards = Shards(tmp_path / "codes", tokenizer.hash)
    assert shards.index.slots == SLOTS
    trained = [track for track in shards.index.tracks if track.split == "train"]
    waveform = torch.from_numpy(soundfile.read(tmp_path / "music" / trained[0].path, dtype="float32")[0])[None]
    assert len(trained) == 4
    for shift, track in enumerate(trained):
        expected = tokenizer.encode(waveform[:, shift * PATCH // 4 :], RATE)
        assert all(np.array_equal(shards.codes(track, i), level.numpy()) for i, level in enumerate(expected.levels))
        assert are_in_their_slots(expected.levels)
