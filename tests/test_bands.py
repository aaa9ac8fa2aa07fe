"""Codes of frequency bands, magnitudes by pitch, and oscillators."""

import math

import numpy as np
import pytest
import torch
from conftest import TRACK
from torch import Tensor

from audiovq.config import build
from audiovq.data.audio import read_audio
from audiovq.tokenizer.bands import BandsConfig
from audiovq.tokenizer.data_init import initialise_codebooks, initialise_statistics
from audiovq.tokenizer.decoders import ToneDecoder
from audiovq.tokenizer.losses import ToneLoss
from audiovq.tokenizer.pitch import NoteSpectrogram, PitchSpectrogram, decimate, frequency, pitches
from audiovq.tokenizer.streaming import StreamingDecoder, StreamingEncoder
from audiovq.tokenizer.tones import Oscillators
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig

RATE = 16000
CONFIG = {
    "sample_rate": RATE, "topology": "bands", "hop_lengths": [512] * 4, "dim": 16, "whiten_latents": True,
    "bands": {"low": 40, "semitones": 12, "per_semitone": 3, "margin": 4, "n_mels": 24, "decoder_dim": 8},
    "encoder": {"n_blocks": 1},
    "decoder": {"kind": "tones", "dim": 16, "n_blocks": 1, "low": 40, "high": 76, "per_semitone": 3},
    "quantizer": {"kind": "ema", "codebook_size": 16, "codebook_dim": 4},
}  # fmt: skip


def sine(hertz: float, seconds: float, rate: int = RATE, amplitude: float = 0.5) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def chord(seconds: float) -> Tensor:
    waves = [sine(float(frequency(torch.tensor(p))), seconds, amplitude=0.2) for p in (45.0, 52.0, 57.0, 61.0, 69.0)]
    wave = torch.stack(waves).sum(dim=0) * (0.6 + 0.4 * sine(1.5, seconds, amplitude=1.0))
    return (wave + 0.01 * torch.randn(len(wave), generator=torch.Generator().manual_seed(0)))[None, None]


def small_network() -> VQVAE:
    torch.manual_seed(0)
    network = VQVAE(build(VQVAEConfig, CONFIG, "model"))
    music = chord(4.096)[..., : 512 * 64 * 2]
    initialise_statistics(network, music)
    initialise_codebooks(network, music)
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


def test_a_chunk_at_the_period_is_the_whole() -> None:
    bank = Oscillators(pitches(40, 76, 3, RATE), 256, RATE)
    loudness = torch.rand(1, 1, 256, 108)
    whole, part = bank(loudness), bank(loudness[:, :, 128:])
    assert torch.allclose(whole[..., 132 * 256 :], part[..., 4 * 256 :], atol=1e-5)


# --- the network --------------------------------------------------------------------------------------------------


def test_codes_and_waveforms_have_the_lengths_of_the_contract() -> None:
    network = small_network()
    codes = network.encode(chord(1.0))
    assert [list(level.shape) for level in codes] == [[1, -(-RATE // 512)]] * 4
    for n_levels in (1, 3, 4):
        assert network.decode(codes[:n_levels], 16000).shape == (1, 1, 16000)


def test_a_band_has_its_own_pitches_as_inputs() -> None:
    """A tone changes the features of its band, and not of a band that is further away than the margin."""
    network = small_network()
    encoder = network.groups[0].encoder
    with torch.no_grad():
        encoder.enter_mels.weight.zero_()
        quiet, loud = (encoder(chord(2.048) + x) for x in (0.0, sine(float(frequency(torch.tensor(70.0))), 2.048)))
    changes = [float((a - b).abs().mean()) for a, b in zip(quiet, loud, strict=True)]
    assert changes[2] > 0.05
    assert changes[0] < 0.1 * changes[2]
    assert changes[3] == 0.0  # its only inputs are mel bands


def test_bands_share_their_weights() -> None:
    """The same features a band higher give the same latent features, a band higher."""
    encoder = small_network().groups[0].encoder
    with torch.no_grad():
        encoder.enter_mels.weight.zero_()
        features = torch.randn(1, 2 * 108 + 24, 40)
        low, high = features.clone(), features.clone()
        notes = torch.randn(1, 2, 36, 40)
        for x, start in ((low, 0), (high, 36)):
            x[:, :216] = 0
            x[:, :216].view(1, 2, 108, 40)[:, :, start : start + 36] = notes
        encoder.front.forward = lambda waveform: waveform  # type: ignore[method-assign] - features are given
        assert torch.allclose(encoder(low)[0], encoder(high)[1], atol=1e-5)


def test_streams_equal_the_whole() -> None:
    network, waveform = small_network(), chord(9.0)
    whole = network.encode(waveform)
    encoder = StreamingEncoder(network, 4096)
    blocks = [encoder.push(block[0]) for block in waveform.split(5000, dim=-1)]
    streamed = [torch.cat(level) for level in zip(*blocks, encoder.finish(), strict=True)]
    assert all(torch.equal(a[0], b) for a, b in zip(whole, streamed, strict=True))
    n_samples = waveform.shape[-1]
    decoder = StreamingDecoder(network, 4, 0)
    parts = [decoder.push([level[0, i : i + 37] for level in whole]) for i in range(0, whole[0].shape[1], 37)]
    found = torch.cat([*parts, decoder.finish(n_samples)], dim=-1)
    assert torch.allclose(found, network.decode(whole, n_samples)[0].clamp(-1, 1), atol=1e-5)


def test_the_decoder_begins_with_the_loudness_of_the_music() -> None:
    network = small_network()
    decoder = network.groups[0].decoder
    assert isinstance(decoder, ToneDecoder)
    expected = decoder.spectrogram(chord(4.096)[..., : 512 * 64 * 2]).clamp(min=1e-6).log().mean(dim=(0, 3)).flatten()
    assert torch.allclose(decoder.tone_head.bias, expected, atol=1e-4)


def test_the_tone_loss_is_zero_for_the_music_itself_and_counts_decibels() -> None:
    steps, music = pitches(40, 76, 3, RATE), chord(2.048)
    loss = ToneLoss(RATE, 256, steps)
    target = loss.spectrogram(music[:, 0])[1].clamp(min=1e-6).log()[:, None]
    assert float(loss(target, music)) == pytest.approx(0, abs=1e-6)
    # 20 dB too loud everywhere: 10^0.3 - 1 of the loud part, and half a decade.
    assert float(loss(target + math.log(10), music)) == pytest.approx(10**0.3 - 1 + 0.5, rel=1e-3)


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
    assert gradients["groups.0.encoder.enter.weight"].abs().max() > 0


def test_it_learns() -> None:
    network, music = small_network().train(), chord(4.096)[..., : 512 * 64 * 2]
    decoder = network.groups[0].decoder
    loss = ToneLoss(RATE, decoder.hop_length, decoder.pitches)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        output = network(music)
        assert output.tones is not None
        value = loss(output.tones, music)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize(("changed", "word"), [
    ({"channels": 2}, "expected 1 channel"),
    ({"hop_lengths": [513] * 4}, "divisible by 2"),
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
    x, low_pass = torch.randn(2, 1, 2000), torch.randn(16 * factor + 1)
    full = torch.nn.functional.conv1d(x, low_pass[None, None], padding=8 * factor)
    torch.testing.assert_close(decimate(x, low_pass, factor), full[..., ::factor], rtol=1e-4, atol=1e-4)


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
