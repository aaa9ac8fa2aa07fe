"""Streaming equals whole: windows, resampler, encoder and decoder, for any block sizes."""

import itertools

import numpy as np
import pytest
import soxr
import torch
from conftest import TRACK
from test_vqvae import trained_a_little
from torch import Tensor

from audiovq import Tokenizer, api
from audiovq.data.audio import read_audio
from audiovq.data.resampling import Resampler, resample
from audiovq.tokenizer.decoders import DECODERS
from audiovq.tokenizer.fronts import FRONTS
from audiovq.tokenizer.streaming import StreamingDecoder, StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.chunking import Windows, compute_in_batches, cut


def random_blocks(x: Tensor, seed: int, largest: int) -> list[Tensor]:
    """Cut the last dimension into pieces of 0 to `largest`, small ones often."""
    random, pieces, at = np.random.default_rng(seed), [], 0
    while at < x.shape[-1]:
        n = int(largest ** random.random()) if random.random() < 0.9 else 0
        pieces.append(x[..., at : at + n])
        at += n
    return pieces


def test_windows_depend_on_the_total_alone_and_cover_everything_once() -> None:
    x = torch.arange(1000)
    for step, context in ((10, 0), (64, 7), (300, 100), (1000, 10), (5000, 5)):
        whole = cut(Windows(step, context), [x])
        assert torch.cat([w.part(w.sequences[0], 1) for w in whole]).equal(x)
        for window in whole:
            assert window.low == max(0, window.start - context)
            assert window.sequences[0].equal(x[window.low : window.low + len(window.sequences[0])])
            assert len(window.sequences[0]) + window.low >= min(1000, window.end + context)
            assert len(window.sequences[0]) <= step + 2 * context
        for seed in range(3):
            streamed = Windows(step, context)
            found = [w for block in random_blocks(x, seed, 200) for w in streamed.push([block])]
            found += streamed.finish()
            assert [(w.low, w.start, w.end, w.sequences[0].tolist()) for w in found] == [
                (w.low, w.start, w.end, w.sequences[0].tolist()) for w in whole
            ]
    assert cut(Windows(4, 2), [x[:0]]) == []


def test_windows_of_several_items_share_batches_of_equal_shape() -> None:
    items = [cut(Windows(10, 2), [torch.arange(n)]) for n in (35, 35, 50, 3)]
    batches = []

    def compute(windows: list) -> list[Tensor]:
        batches.append(len(windows))
        return [window.part(2 * window.sequences[0], 1) for window in windows]

    results = compute_in_batches(items, 3, compute)  # type: ignore[arg-type]
    for n, parts in zip((35, 35, 50, 3), results, strict=True):
        assert torch.cat(parts).equal(2 * torch.arange(n))
    assert max(batches) == 3
    assert sum(batches) == sum(map(len, items))


RATES = [(44100, 16000), (48000, 44100), (8000, 44100), (16000, 16000), (44099, 44100), (96001, 8363), (768000, 1000)]


@pytest.mark.parametrize(("old", "new"), RATES)
def test_resampling_in_blocks_equals_the_whole(old: int, new: int) -> None:
    for n in (1, 500, 30011, old * 3 // 2):
        waveform = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
        whole = resample(waveform, old, new)
        expected = soxr.resample(waveform.T.numpy(), old, new).T if old != new else waveform.numpy()
        assert whole.shape == (2, -(-n * new // old))
        assert np.array_equal(whole[:, : expected.shape[1]].numpy(), expected[:, : whole.shape[1]])
        for seed in range(2):
            resampler = Resampler(old, new)
            parts = [resampler.push(block) for block in random_blocks(waveform, seed, 9000)]
            streamed = torch.cat([*parts, *resampler.finish()], dim=-1)
            assert torch.equal(streamed, whole)
    assert torch.equal(resample(waveform[0], old, new), whole[0])
    assert torch.equal(resample(waveform[None], old, new), whole[None])


@pytest.mark.parametrize(("old", "new"), [(48000, 16000), (44100, 48000), (768000, 8000), (1000, 44100)])
def test_resampling_a_few_samples_at_a_time_comes_within_the_latency(old: int, new: int) -> None:
    waveform, resampler, n_new = torch.randn(1, old), Resampler(old, new), 0
    step = max(1, old // 20_000)
    for i in range(0, old, step):
        n_new += resampler.push(waveform[:, i : i + step]).shape[-1]
        assert n_new * old >= (i + step - resampler.latency_samples - 2 * step) * new
    assert resampler.latency_samples < 0.2 * old + 2000


def test_long_resampling_has_the_exact_length() -> None:
    n = 20_000_001
    assert resample(torch.zeros(1, n), 16000, 15000).shape[-1] == -(-n * 15 // 16) == 18_750_001


@pytest.mark.parametrize("rate", [0, -44100, 1, 999, 768001, 44100.5, float("nan")])
def test_rates_that_audio_does_not_have_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sample rate: expected a whole number from 1000 to 768000 Hz, found"):
        Resampler(rate, 44100)  # type: ignore[arg-type] - people have floats


def encode_blocks(network: VQVAE, blocks: list[Tensor], chunk: int) -> list[Tensor]:
    encoder = StreamingEncoder(network, chunk)
    parts = [encoder.push(block[0]) for block in blocks]
    return [torch.cat(level)[None] for level in zip(*parts, encoder.finish(), strict=True)]


def decode_blocks(network: VQVAE, codes: list[Tensor], n_samples: int, chunk: int, seed: int) -> Tensor:
    """Each level in blocks of its own sizes."""
    decoder = StreamingDecoder(network, len(codes), chunk)
    blocks = [random_blocks(level[0], seed + i, 100) for i, level in enumerate(codes)]
    parts = [
        decoder.push([codes[0][0, :0] if block is None else block for block in step])
        for step in itertools.zip_longest(*blocks)
    ]
    return torch.cat([*parts, decoder.finish(n_samples)], dim=-1)[None]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("decoder", [kind for kind in DECODERS if kind != "tones"])
@pytest.mark.parametrize("topology", ["residual", "independent"])
@torch.inference_mode()
def test_streaming_equals_whole(front: str, decoder: str, topology: str) -> None:
    network = trained_a_little(
        hop_lengths=(64, 32, 16), topology=topology, encoder={"front": {"kind": front}, "n_blocks": 1},
        decoder={"kind": decoder, "n_blocks": 1} | ({"base_dim": 8} if decoder == "conv" else {"dim": 16}),
    )  # fmt: skip
    waveform = 0.3 * torch.randn(1, 1, 4001)
    whole = network.encode(waveform)
    for seed, (chunk, largest) in enumerate([(0, 2000), (700, 300), (9000, 4001)]):
        codes = encode_blocks(network, random_blocks(waveform, seed, largest), chunk)
        assert all(torch.equal(a, b) for a, b in zip(codes, whole, strict=True))
        for k in (1, 2, 3):
            decoded = decode_blocks(network, whole[:k], 4001, chunk, seed)
            assert decoded.shape == (1, 1, 4001)
            assert torch.allclose(decoded, network.decode(whole[:k], 4001).clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("decoder", ["istft", "conv"])
@pytest.mark.parametrize("hops", [(64, 32, 16), (32, 32)])
def test_causal_networks_look_ahead_as_little_as_they_say(front: str, decoder: str, hops: tuple[int, ...]) -> None:
    parts = {"base_dim": 8} if decoder == "conv" else {"dim": 16, "overlap": 2}
    network = trained_a_little(
        hop_lengths=hops, causal=True, encoder={"front": {"kind": front}, "n_blocks": 1},
        decoder={"kind": decoder, "n_blocks": 1} | parts,
    )  # fmt: skip
    assert network.encoder_ahead == (0 if front == "conv" else hops[-1] // 2)
    assert network.decoder_ahead == (0 if decoder == "conv" else hops[-1])
    # 1. Later sound changes no earlier code, and later codes change no earlier sound.
    wave, at = 0.3 * torch.randn(1, 1, 40 * 64), 20 * 64
    other = torch.cat([wave[..., : at + network.encoder_ahead], torch.randn(1, 1, 20 * 64 - network.encoder_ahead)], -1)
    codes, others = network.encode(wave), network.encode(other)
    n_same = [at // hop for hop in hops]
    assert all(torch.equal(a[:, :n], b[:, :n]) for a, b, n in zip(codes, others, n_same, strict=True))
    assert any(not torch.equal(a[:, n:], b[:, n:]) for a, b, n in zip(codes, others, n_same, strict=True))
    mixed = [torch.cat([a[:, :n], b[:, n:].flip(1)], dim=1) for a, b, n in zip(codes, codes, n_same, strict=True)]
    known = at - network.decoder_ahead
    a, b = network.decode(codes), network.decode(mixed)
    torch.testing.assert_close(a[..., :known], b[..., :known], rtol=0, atol=1e-6)
    assert not torch.allclose(a[..., at:], b[..., at:])
    # 2. Streams give what the whole gives, and sooner than other networks.
    for seed, chunk in enumerate([0, 700]):
        streamed = encode_blocks(network, random_blocks(wave, seed, 300), chunk)
        assert all(torch.equal(a, b) for a, b in zip(streamed, codes, strict=True))
        decoded = decode_blocks(network, codes, 40 * 64, chunk, seed)
        assert torch.allclose(decoded, network.decode(codes).clamp(-1, 1), atol=1e-5)
    encoder, live = StreamingEncoder(network, 0), StreamingDecoder(network, len(hops), 0)
    rate = network.config.sample_rate
    assert encoder.latency_seconds * rate == hops[0] + network.encoder_ahead
    assert live.latency_seconds * rate <= 2 * hops[0]


@torch.inference_mode()
def test_a_sample_at_a_time_comes_within_the_latency() -> None:
    network = trained_a_little(hop_lengths=(64, 32))
    waveform = 0.3 * torch.randn(1, 1, 3000)
    encoder, n_codes, parts = StreamingEncoder(network, 0), 0, []
    latency_samples = round(encoder.latency_seconds * network.config.sample_rate)
    for i in range(3000):
        parts.append(encoder.push(waveform[0, :, i : i + 1]))
        n_codes += parts[-1][0].shape[-1]
        assert n_codes * 64 >= i + 1 - latency_samples
    assert latency_samples <= network.encoder_radius + 2 * 64
    levels = [torch.cat(level)[None] for level in zip(*parts, encoder.finish(), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(levels, network.encode(waveform), strict=True))


def test_a_stretch_of_nothing_and_wrong_lengths() -> None:
    network = trained_a_little(hop_lengths=(64, 32))
    encoder = StreamingEncoder(network, 0)
    assert [level.shape for level in encoder.push(torch.zeros(1, 0))] == [(0,), (0,)]
    assert [level.shape for level in encoder.finish()] == [(0,), (0,)]
    decoder = StreamingDecoder(network, 2, 0)
    decoder.push([torch.zeros(4, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"expected \[4, 8\] per level for 250 samples, found \[4, 7\]"):
        decoder.finish(250)
    assert decoder.finish().shape == (1, 7 * 32)
    with pytest.raises(ValueError, match="expected 2 levels, found 1"):
        decoder.push([torch.zeros(4, dtype=torch.int64)])


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return Tokenizer.from_pretrained(api.bundled_model(), "cpu")


def test_live_streams_equal_whole_on_real_music(bundled: Tokenizer) -> None:
    waveform, rate = read_audio(TRACK, n_samples=48000 * 5 + 7)
    codes = bundled.encode(waveform, rate)
    stream = bundled.stream(rate, chunk_seconds=0.5)
    model, (top, *_) = bundled.network, bundled.config.hop_lengths
    radius = model.encoder_radius / bundled.sample_rate
    assert radius < stream.latency_seconds < radius + 0.5 + 3 * top / bundled.sample_rate + 0.6
    parts = []
    buffer = torch.zeros(2, 4096)  # one piece of memory for all blocks, as an audio callback has
    for start in range(0, waveform.shape[1], 4096):
        block = waveform[:, start : start + 4096]
        buffer[:, : block.shape[1]] = block
        parts.append(stream.push(buffer[:, : block.shape[1]]))
    levels = [torch.cat(level) for level in zip(*parts, stream.finish(), strict=True)]
    assert stream.n_samples == codes.n_samples
    assert all(torch.equal(a, b) for a, b in zip(levels, codes.levels, strict=True))
    decoder = bundled.decoder_stream(chunk_seconds=0.5)
    counts = [5 * top // hop for hop in bundled.config.hop_lengths]  # of each level, with 5 of the top
    pieces = [
        decoder.push([level[i * n : (i + 1) * n] for level, n in zip(levels, counts, strict=True)])
        for i in range(-(-len(levels[0]) // 5))
    ]
    pieces.append(decoder.finish(codes.n_samples))
    assert torch.allclose(torch.cat(pieces, dim=-1), bundled.decode(codes), atol=1e-5)
    assert decoder.latency_seconds < 0.5 + (model.decoder_radius + 2 * model.period) / bundled.sample_rate


def test_a_batch_of_unequal_lengths_gives_each_what_it_gives_alone(
    bundled: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiovq.api.tokenizer.CHUNK_SECONDS", 2.0)
    waveform, rate = read_audio(TRACK, bundled.sample_rate, 1)
    lengths = [100, 30000, 30100, rate * 9, rate * 8 + 3, 15 * bundled.config.hop_lengths[0]]
    pieces = [waveform[:, i * 5000 : i * 5000 + n] for i, n in enumerate(lengths)]
    alone = [bundled.encode(piece, rate) for piece in pieces]
    for at_once in (1, 4):
        monkeypatch.setattr(bundled, "_at_once", lambda at_once=at_once: at_once)
        together = bundled.encode_batch(pieces, rate)
        for a, b in zip(alone, together, strict=True):
            assert a.n_samples == b.n_samples
            assert all(torch.equal(x, y) for x, y in zip(a.levels, b.levels, strict=True))
        decoded = bundled.decode_batch(together)
        for a, wave in zip(alone, decoded, strict=True):
            one = bundled.decode(a)
            assert torch.equal(one, wave) if at_once == 1 else torch.allclose(one, wave, atol=1e-5)


@pytest.mark.parametrize("hops", [(64, 32, 32, 16), (32, 32)])
def test_streams_equal_whole_with_repeated_hops(hops: tuple[int, ...]) -> None:
    network = trained_a_little(hop_lengths=hops)
    waveform = 0.3 * torch.randn(1, 1, 3000)
    with torch.no_grad():
        whole = network.encode(waveform)
        encoder = StreamingEncoder(network, 640)
        parts = [encoder.push(block[0]) for block in random_blocks(waveform, 0, 500)] + [encoder.finish()]
        levels = [torch.cat(level)[None] for level in zip(*parts, strict=True)]
        assert all(level.equal(w) for level, w in zip(levels, whole, strict=True))
        for k in range(1, len(hops) + 1):
            decoder = StreamingDecoder(network, k, 640)
            pieces = [decoder.push([level[0] for level in whole[:k]]), decoder.finish(3000)]
            expected = network.decode(whole[:k], 3000)[0].clamp(-1, 1)
            assert torch.allclose(torch.cat(pieces, dim=-1), expected, atol=1e-5)
