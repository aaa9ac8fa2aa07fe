"""Codes of frequency bands, magnitudes by pitch, and oscillators."""

import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import scipy.signal
import torch
from conftest import TRACK
from torch import Tensor

from audiovq import api
from audiovq.config import build
from audiovq.data.audio import read_audio
from audiovq.data.codes import Codes
from audiovq.data.music import Scan, Track, table_of
from audiovq.evaluation.code_statistics import code_statistics
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.recipe import Recipe
from audiovq.tokenizer.bands import BandsConfig
from audiovq.tokenizer.data_init import initialise_codebooks, initialise_statistics
from audiovq.tokenizer.losses import ToneLoss
from audiovq.tokenizer.patches import PatchQuantizer
from audiovq.tokenizer.pitch import (
    FACTORS,
    NoteSpectrogram,
    PitchSpectrogram,
    decimate,
    frequency,
    low_pass,
    peak_weights,
    pitches,
)
from audiovq.tokenizer.quantizer import Quantized
from audiovq.tokenizer.streaming import StreamingDecoder, StreamingEncoder
from audiovq.tokenizer.tones import Oscillators
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig
from audiovq.training.decoder_task import DecoderTask
from audiovq.training.tokenizer_task import code_metrics

RATE = 16000
CONFIG = {
    "sample_rate": RATE, "topology": "bands", "hop_lengths": [256, 256], "dim": 16, "shared_codebook": False,
    "bands": {"low": 40, "semitones": 12, "per_semitone": 3, "frames": 4},
    "decoder": {"kind": "tones", "dim": 16, "n_blocks": 1, "low": 40, "high": 76, "per_semitone": 3},
    "quantizer": {"kind": "patches", "codes": 16, "bands": 2, "stages": 2, "dim": 144, "candidates": 4},
}  # fmt: skip
PATCH = 1024  # samples: 4 frames, and 4 codes of each of the two levels


def sine(hertz: float, seconds: float, rate: int = RATE, amplitude: float = 0.5) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def chord(seconds: float) -> Tensor:
    waves = [sine(float(frequency(torch.tensor(p))), seconds, amplitude=0.2) for p in (45.0, 52.0, 57.0, 61.0, 69.0)]
    wave = torch.stack(waves).sum(dim=0) * (0.6 + 0.4 * sine(1.5, seconds, amplitude=1.0))
    return (wave + 0.01 * torch.randn(len(wave), generator=torch.Generator().manual_seed(0)))[None, None]


def small_network(steps: int = 8, rate_weight: float = 0.0, frames: int = 4) -> VQVAE:
    """Codebooks that have seen music, and a network that was not trained."""
    torch.manual_seed(0)
    bands, quantizer = cast(dict, CONFIG["bands"]), cast(dict, CONFIG["quantizer"])
    config = CONFIG | {"bands": bands | {"frames": frames}}
    config["quantizer"] = quantizer | {"rate_weight": rate_weight, "dim": 36 * frames}
    network = VQVAE(build(VQVAEConfig, config, "model"))
    music = chord(4.096)[..., : PATCH * 64]
    initialise_statistics(network, music)
    initialise_codebooks(network, music)
    with torch.no_grad():
        for _ in range(steps):
            network.train()(music, only_tones=True)
    return network.eval()


# --- pitch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pitch", [33.0, 48.0, 59.8, 60.0, 76.6, 84.2, 100.0])
def test_a_sine_has_its_amplitude_at_its_pitch(pitch: float) -> None:
    steps = pitches(28, 112, 5, 44100)
    assert len(steps) == 84 * 5
    hertz = float(frequency(torch.tensor(pitch, dtype=torch.float64)))
    found = PitchSpectrogram(44100, 1024, steps)(sine(hertz, 1.0, 44100))[:, 20]
    assert abs(float(steps[found.argmax()]) - pitch) <= 0.201
    assert 0.4 < float(found.max()) < 0.52
    far = (steps - pitch).abs() > 7
    assert float(found[far].max()) < 0.01 * float(found.max())


def test_a_frame_is_a_transform_of_the_samples_around_it() -> None:
    steps = pitches(60, 72, 2, RATE)
    spectrogram = PitchSpectrogram(RATE, 256, steps, ((128, 0.064),))
    waveform = torch.randn(4096)
    n, t, i = 1024, 7, 9
    frame = waveform[t * 256 + 128 - n // 2 : t * 256 + 128 + n // 2].numpy() * np.hanning(n + 1)[:n]
    power = np.abs(np.fft.rfft(frame)) ** 2
    centre, width = float(frequency(steps[i])), RATE / n
    weights = np.maximum(
        0, 1 - np.abs(np.arange(n // 2 + 1) * RATE / n - centre) / max(width, centre * (2 ** (1 / 24) - 1))
    )
    sine_power = np.abs(np.fft.rfft(np.sin(2 * np.pi * centre * np.arange(n) / RATE) * np.hanning(n + 1)[:n])) ** 2
    expected = np.sqrt((power * weights).sum() / (sine_power * weights).sum())
    assert float(spectrogram(waveform)[i, t]) == pytest.approx(expected, rel=1e-4)


def test_onsets_are_sharper_than_long_windows_have_them() -> None:
    """Of a note that begins at 1 s, less than 3% of its loudness comes more than 0.1 s too early; else 20% does."""
    wave = torch.cat([torch.zeros(RATE), sine(220.0, 1.0)])
    steps = pitches(40, 76, 3, RATE)
    long, notes = NoteSpectrogram(RATE, 256, steps)(wave[None])
    at = int((steps - 57).abs().argmin())
    early = int(0.9 * RATE / 256)
    assert float(long[0, at, early] / long[0, at].max()) > 0.1
    assert float(notes[0, at, early] / notes[0, at].max()) < 0.01


def test_pitches_above_the_sample_rate_are_left_out() -> None:
    assert float(frequency(pitches(28, 127, 5, 8000)).max()) < 3600


# --- oscillators --------------------------------------------------------------------------------------------------


def test_oscillators_are_a_sum_of_steady_sines() -> None:
    steps = pitches(40, 76, 3, RATE)
    bank = Oscillators(steps, 256, RATE)
    loudness = torch.full((1, 1, 100, len(steps)), 1e-9)
    loudness[..., 30], loudness[..., 71] = 0.5, 0.25
    wave = bank(loudness)[0, 0, 1024:-1024]
    grid = RATE / (256 * 64)
    t = (torch.arange(100 * 256) - 128)[1024:-1024].double() / RATE  # frames are centred on their hop
    expected = torch.zeros(len(wave), dtype=torch.float64)
    for i, amplitude in ((30, 0.5), (71, 0.25)):
        hertz = float((frequency(steps[i]) / grid).round() * grid)
        expected += amplitude * torch.cos(2 * math.pi * (hertz * t + i * (math.sqrt(5) - 1) / 2))
    assert torch.allclose(wave.double(), expected, atol=2e-4)


def test_a_blurred_note_is_one_sine() -> None:
    steps = pitches(40, 76, 3, RATE)
    bank = Oscillators(steps, 256, RATE)
    blurred = 0.5 * torch.exp(-((torch.arange(len(steps)) - 40) ** 2) / 8).expand(1, 1, 50, -1)
    alone = torch.zeros_like(blurred)
    alone[..., 40] = blurred[..., 40]
    assert torch.equal(bank(blurred), bank(alone))


@pytest.mark.parametrize("start", [128, 37])
def test_a_chunk_is_what_it_is_in_the_whole(start: int) -> None:
    bank = Oscillators(pitches(40, 76, 3, RATE), 256, RATE)
    loudness = torch.rand(1, 1, 256, 108)
    whole, part = bank(loudness), bank(loudness[:, :, start:], start % bank.period)
    assert torch.allclose(whole[..., (start + 4) * 256 :], part[..., 4 * 256 :], atol=1e-5)


@torch.inference_mode()
def test_codes_may_be_decoded_from_any_code_of_level_0_on() -> None:
    shorter = small_network(frames=8)  # a frame of the decoder is half a code
    for network in (small_network(), shorter, api.Tokenizer.from_pretrained("default").network):
        hops, grid = network.config.hop_lengths, network.grid
        codes = [torch.randint(network.config.codebook_size, (1, 60 * grid // hop)) for hop in hops]
        whole, start = network.decode(codes, 60 * grid), 7 * grid
        assert start % network.period  # where chunks of one batch do not begin
        rest = [level[:, start // hop :] for level, hop in zip(codes, hops, strict=True)]
        part, reach = network.decode(rest, 53 * grid, start % network.period), network.decoder_radius
        assert torch.allclose(whole[..., start + reach :], part[..., reach:], atol=1e-5)
        wrong = network.decode(rest, 53 * grid)
        assert (whole[..., start + reach :] - wrong[..., reach:]).abs().max() > 0.01


# --- the network --------------------------------------------------------------------------------------------------


def test_codes_and_waveforms_have_the_lengths_of_the_contract() -> None:
    network = small_network()
    for n_samples in (RATE, RATE + 700, 5):
        codes = network.encode(chord(2.0)[..., :n_samples])
        assert [list(level.shape) for level in codes] == [[1, -(-n_samples // 256)]] * 2
        for n_levels in (1, 2):
            assert network.decode(codes[:n_levels], n_samples).shape == (1, 1, n_samples)


def test_the_rate_of_codes_is_that_of_what_they_choose_from(tmp_path: Path) -> None:
    tokenizer = api.Tokenizer(small_network())
    codes, c = tokenizer.encode(chord(2.0)[0], RATE), tokenizer.config
    assert c.slots > 1
    assert codes.bits_per_second == pytest.approx(sum(c.code_rates) * math.log2(c.codebook_size / c.slots), rel=0.05)
    for compress in (False, True):
        codes.save(tmp_path / "x.codes", compress)
        loaded = Codes.load(tmp_path / "x.codes")
        assert loaded.bits_per_second == codes.bits_per_second
        assert all(torch.equal(a, b) for a, b in zip(loaded.levels, codes.levels, strict=True))


def test_a_band_has_its_own_pitches_and_peaks_weigh_most() -> None:
    encoder = small_network().groups[0].encoder
    low, high = (sine(float(frequency(torch.tensor(pitch))), 2.048)[None, None] for pitch in (46.0, 70.0))
    for wave, level, first in ((low, 0, 0), (high, 1, 0)):  # bands 0 and 2: the first ones of their levels
        found = torch.stack(encoder(wave)).unflatten(2, (2, 36, 4))[:, 0, :, :, :, 8]  # [level, band, step, frame]
        loudest = found[level, first].amax(dim=1).argmax()
        assert int(loudest) == 18  # 6 semitones above the band's lowest
        others = found.clone()
        others[level, first] = 0
        others[1, 1] = 0  # mel bands
        assert float(others.max()) < 0.3 * float(found[level, first].max())
    # Weights, by the definition.
    magnitudes = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.1, 0.3])[None, :, None]
    expected = torch.tensor([0.85, 1.0, 0.85, 0.5, 0.85, 1.0])
    assert torch.allclose(peak_weights(magnitudes)[0, :, 0], expected)


def test_codes_are_of_their_slots_and_the_nearest_by_a_search_of_all() -> None:
    """With as many candidates as there are sums, the search finds the nearest sum of all; greedily it is further."""
    torch.manual_seed(0)
    latents = torch.randn(2, 5, 2 * 6)
    config = {"kind": "patches", "codes": 8, "bands": 2, "stages": 2, "dim": 6}
    quantizer, greedy = (PatchQuantizer(PatchQuantizer.Config(**config, candidates=n)) for n in (64, 1))
    for q in (quantizer, greedy):
        q.embedding.copy_(torch.randn(2, 2, 8, 6, generator=torch.Generator().manual_seed(1)))
    codes = quantizer.encode(latents)
    slots = codes.view(2, 5, 4) // 8
    assert torch.equal(slots, torch.arange(4).expand(2, 5, 4))
    for band in range(2):
        books = quantizer.embedding[:, band]
        sums = (books[0][:, None] + books[1]).flatten(0, 1)  # [64, 6]
        x = latents[..., band * 6 : band * 6 + 6]
        best = torch.cdist(x, sums.expand(2, 64, 6)).argmin(dim=-1)
        assert torch.equal(codes.view(2, 5, 2, 2)[..., band] - torch.tensor([band * 8, 16 + band * 8]),
                           torch.stack([best // 8, best % 8], dim=-1))  # fmt: skip
        assert torch.allclose(quantizer.embed(codes)[..., band * 6 : band * 6 + 6], sums[best])
    near, far = ((q.embed(q.encode(latents)) - latents).norm() for q in (quantizer, greedy))
    assert float(near) < float(far)


def test_bits_have_a_price_in_squared_distance() -> None:
    """The search of all minimises squared distance + weight · -log2 p, but not in training."""
    torch.manual_seed(0)
    weight, x = 0.7, torch.randn(1, 40, 6)
    settings = {"kind": "patches", "codes": 8, "bands": 1, "stages": 2, "dim": 6, "candidates": 64}
    quantizer, plain = (PatchQuantizer(PatchQuantizer.Config(**settings, rate_weight=w)) for w in (weight, 0))
    books, counts = torch.randn(2, 1, 8, 6), torch.rand(2, 1, 8)
    for q in (quantizer, plain):
        q.embedding.copy_(books)
        q.counts.copy_(counts)
    counts = counts[:, 0].double()
    bits = -(counts / counts.sum(dim=1, keepdim=True)).log2()
    sums, prices = (books[0, 0][:, None] + books[1, 0]).flatten(0, 1), (bits[0][:, None] + bits[1]).flatten()  # of 64
    costs = (x[0][:, None] - sums).double().square().sum(dim=-1) + weight * prices
    best = costs.argmin(dim=1)
    codes = quantizer.eval().encode(x).view(40, 2) - torch.tensor([0, 8])
    assert torch.equal(codes, torch.stack([best // 8, best % 8], dim=1))
    nearest = plain.eval().encode(x)
    assert not torch.equal(nearest, quantizer.encode(x))
    assert torch.equal(nearest, quantizer.train().encode(x))
    quantizer.eval().counts.zero_()  # as before the first update: all codes have the same price
    assert torch.equal(nearest, quantizer.encode(x))


def test_shares_of_use_are_part_of_a_tokenizer_that_prices_bits() -> None:
    plain, priced = small_network(), small_network(rate_weight=0.1)
    before = tokenizer_hash(plain), tokenizer_hash(priced)
    assert before[0] != before[1]
    for network in (plain, priced):
        network.codebooks[0].get_buffer("counts")[0, 0, 0] += 3
    assert tokenizer_hash(plain) == before[0]  # else training statistics
    assert tokenizer_hash(priced) != before[1]


def test_a_patch_without_its_last_codes_has_the_first_ones() -> None:
    network, codes = small_network(), small_network().encode(chord(1.024))
    quantizer = network.quantizers()[0]
    assert isinstance(quantizer, PatchQuantizer)
    whole, part = quantizer.embed(codes[0][:, :8]), quantizer.embed(codes[0][:, :6])  # without the second stage
    assert torch.equal(part[:, 0], whole[:, 0])
    first = quantizer.embedding[0].flatten(0, 1)[codes[0][0, 4:6]]
    assert torch.equal(part[0, 1], first.flatten())


def test_codebooks_follow_what_they_code() -> None:
    """Moving averages of sums and counts, by the definition, for the first stage of one band."""
    torch.manual_seed(0)
    config = PatchQuantizer.Config(codes=4, bands=1, stages=1, dim=3, decay=0.9, revival_fraction=0)
    quantizer = PatchQuantizer(config).train()
    quantizer.embedding.copy_(torch.randn(1, 1, 4, 3))
    counts, sums = torch.ones(4), quantizer.embedding[0, 0].clone()
    for _ in range(3):
        x = torch.randn(2, 5, 3)
        codes = quantizer.encode(x)
        quantizer.update([x], [codes])
        for k in range(4):
            mine = x[codes == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(dim=0)
        assert torch.allclose(quantizer.embedding[0, 0], sums / counts[:, None], atol=1e-5)


def test_codes_alone_already_have_the_notes() -> None:
    """Without any training of the network, the loudest steps of the chord are the loudest of its reconstruction."""
    network, music = small_network(100), chord(4.096)[..., : PATCH * 64]
    loss = ToneLoss(RATE, 256, network.groups[0].decoder.pitches)
    output = network(music, only_tones=True)
    assert output.tones is not None
    assert loss(output.tones, music).item() < 0.25
    assert float(loss(torch.full_like(output.tones, -30.0), music)) == pytest.approx(1, abs=1e-3)


def test_streams_equal_the_whole() -> None:
    network, waveform = small_network(), chord(9.0)
    whole = network.encode(waveform)
    encoder = StreamingEncoder(network, 4096)
    blocks = [encoder.push(block[0]) for block in waveform.split(5000, dim=-1)]
    streamed = [torch.cat(level) for level in zip(*blocks, encoder.finish(), strict=True)]
    assert all(torch.equal(a[0], b) for a, b in zip(whole, streamed, strict=True))
    n_samples = waveform.shape[-1]
    decoder = StreamingDecoder(network, 2, 0)
    parts = [decoder.push([level[0, i : i + 37] for level in whole]) for i in range(0, whole[0].shape[1], 37)]
    found = torch.cat([*parts, decoder.finish(n_samples)], dim=-1)
    assert torch.allclose(found, network.decode(whole, n_samples)[0].clamp(-1, 1), atol=1e-5)


def test_the_tone_loss_is_zero_for_the_music_itself_and_counts_decibels() -> None:
    steps, music = pitches(40, 76, 3, RATE), chord(2.048)
    loss = ToneLoss(RATE, 256, steps)
    target = loss.spectrogram(music[:, 0])[1].clamp(min=1e-9).log()[:, None]
    assert float(loss(target, music)) == pytest.approx(0, abs=1e-4)
    # 20 dB too loud everywhere, to the power 0.4
    assert float(loss(target + math.log(10), music)) == pytest.approx(10**0.4 - 1, rel=1e-3)


def test_tones_alone_are_those_of_the_sound_and_reach_all_weights() -> None:
    network, music = small_network(), chord(2.048)
    whole, tones = network(music), network(music, only_tones=True)
    assert torch.equal(whole.tones, tones.tones)
    assert tones.reconstructions == []
    assert len(whole.reconstructions) == 1
    network.train()(music, only_tones=True).tones.sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(network.parameters()))  # DDP waits for each
    assert gradients["groups.0.decoder.head.weight"].abs().max() == 0
    assert gradients["groups.0.decoder.tone_head.weight"].abs().max() > 0


def test_it_learns() -> None:
    network, music = small_network().train(), chord(4.096)[..., : PATCH * 64]
    decoder = network.groups[0].decoder
    loss = ToneLoss(RATE, decoder.hop_length, decoder.pitches)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        output = network(music, drop_levels=False)
        assert output.tones is not None
        value = loss(output.tones, music)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.7 * values[0]


def test_a_code_has_the_bits_of_its_own_slot() -> None:
    network = small_network()
    config = network.config
    assert (config.codebook_size, config.slots, config.bits_per_code) == (64, 4, 4.0)
    assert [config.highest_pitch(level) for level in range(2)] == [64, 88]
    assert VQVAEConfig().highest_pitch(0) is None
    # All 16 codes of each slot equally often: 4 bits a code, not the 6 of all slots together.
    codes = (torch.arange(64).view(4, 16).T.flatten())[None]
    levels = [Quantized(torch.zeros(1, 64, 1), codes, torch.zeros(1, 64, 1), {})] * 2
    metrics = code_metrics(levels, config)
    rate = RATE / 256
    assert float(metrics["unigram_bits_per_second_0"]) == pytest.approx(4 * rate, rel=1e-5)
    assert float(metrics["kl_bits_per_second"]) == pytest.approx(2 * 4 * rate, rel=1e-5)
    found = code_statistics(np.bincount(codes[0], minlength=64), rate, config.slots)
    assert found["unigram_bits_per_second"] == pytest.approx(4 * rate)
    assert found["perplexity"] == pytest.approx(16)


def test_tuning_the_decoder_keeps_its_tones_in_tune(tmp_path: Path) -> None:
    tokenizer = {"model": CONFIG, "losses": {"tones": 10.0}, "crop_seconds": 1.024}
    tuning = {"adversarial": {"discriminators": [{"kind": "mel", "windows": [512], "n_mels": 32, "dims": [4, 8]}]}}
    recipe = build(Recipe, {"name": "bands", "tokenizer": tokenizer, "decoder_tuning": tuning}, "recipe")
    network = small_network()
    track = Track("a.wav", "", RATE, 1, 4 * RATE)
    task = DecoderTask(recipe, Scan(tmp_path, table_of([track]), []), network).train()
    music = chord(1.024)
    loss, metrics = task(music)
    expected = ToneLoss(RATE, 256, network.groups[0].decoder.pitches)
    assert float(metrics["tones"]) == pytest.approx(float(expected(network(music).tones, music).detach()), rel=1e-5)
    loss.backward()
    assert network.groups[0].decoder.tone_head.weight.grad.abs().max() > 0
    without = build(
        Recipe, {"name": "bands", "tokenizer": tokenizer | {"losses": {}}, "decoder_tuning": tuning}, "recipe"
    )
    task = DecoderTask(without, Scan(tmp_path, table_of([track]), []), network).train()
    assert "tones" not in task(music)[1]


@pytest.mark.parametrize(("changed", "word"), [
    ({"channels": 2}, "expected all three, 1 channel, and equal hop_lengths; found topology bands, patches, tones, 2"),
    ({"hop_lengths": [512, 256]}, "equal hop_lengths; found .* \\[512, 256\\]"),
    ({"decoder": {"kind": "istft"}}, "expected all three"),
    ({"topology": "residual"}, "expected all three"),
    ({"quantizer": CONFIG["quantizer"] | {"dim": 36}}, "quantizer.dim: expected 144, as in bands, found 36"),
    ({"decoder": CONFIG["decoder"] | {"high": 88}}, "decoder.high: expected 76, as in bands, found 88"),
    ({"hop_lengths": [257, 257], "bands": CONFIG["bands"] | {"frames": 8},
      "quantizer": CONFIG["quantizer"] | {"dim": 288}}, "expected a divisor of a patch of 1028 samples, found 8"),
])  # fmt: skip
def test_what_bands_cannot_have_is_named(changed: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build(VQVAEConfig, CONFIG | changed, "model")


def test_bands_above_the_sample_rate_are_named() -> None:
    with pytest.raises(ValueError, match="expected pitches below"):
        VQVAE(build(VQVAEConfig, CONFIG | {"sample_rate": 1000}, "model"))
    assert BandsConfig().semitones == 12


@pytest.mark.parametrize("factor", [8, 32])
def test_decimation_is_a_filter_and_every_nth_sample(factor: int) -> None:
    x, taps = torch.randn(2, 1, 2000), torch.randn(16 * factor + 1)
    full = torch.nn.functional.conv1d(x, taps[None, None], padding=8 * factor)
    torch.testing.assert_close(decimate(x, taps, factor), full[..., ::factor], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", FACTORS)
def test_low_pass_is_that_of_scipy(factor: int) -> None:
    expected = scipy.signal.firwin(16 * factor + 1, 0.5, window="blackman", fs=factor)
    assert torch.equal(low_pass(factor).float(), torch.from_numpy(expected).float())
    assert low_pass(1).tolist() == [1.0]


def test_low_notes_at_a_lower_sample_rate_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pitches(28, 112, 5, 44100)
    fast = PitchSpectrogram(44100, 1024, steps)
    assert fast.factors == [32, 8, 1]
    monkeypatch.setattr("audiovq.tokenizer.pitch.FACTORS", ())
    slow = PitchSpectrogram(44100, 1024, steps)
    assert slow.factors == [1, 1, 1]
    waveform = read_audio(TRACK)[0][:1, : 64 * 1024]
    a, b = (20 * spectrogram(waveform).clamp(min=1e-4).log10()[..., 8:-8] for spectrogram in (fast, slow))
    assert float((a - b).abs().max()) < 0.1  # dB
