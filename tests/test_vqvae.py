"""Encoder, decoder and the assembled VQ-VAE: lengths, prefixes, chunks, gradients."""

import itertools
import math

import pytest
import torch
import torchaudio

from audiovq.tokenizer.blocks import Stack, factor_strides, overlap_add
from audiovq.tokenizer.data_init import Bypass, initialise_codebooks, initialise_statistics
from audiovq.tokenizer.decoders import DECODERS, ConvDecoder, IstftDecoder, ToneDecoder
from audiovq.tokenizer.encoder import Encoder, EncoderConfig
from audiovq.tokenizer.fronts import FRONTS, ConvFront, MelFront, StftFront
from audiovq.tokenizer.quantizer import QUANTIZERS
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig, random_prefixes

SMALL = {
    "sample_rate": 8000, "dim": 16,
    "encoder": EncoderConfig(n_blocks=1),
    "decoder": IstftDecoder.Config(dim=16, n_blocks=1),
    "quantizer": {"kind": "ema", "codebook_size": 32, "codebook_dim": 4},
}  # fmt: skip


def make(**options: object) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(**{**SMALL, **options}))  # type: ignore[arg-type]


def trained_a_little(**options: object) -> VQVAE:
    """After one step, so that codebooks, statistics and spectrum are those of a signal."""
    network = make(**options).train()
    waveform = 0.3 * torch.randn(4, network.config.channels, 16 * network.config.hop_lengths[0])
    initialise_statistics(network, waveform)
    initialise_codebooks(network, waveform)
    network(waveform)
    return network.eval()


@pytest.mark.parametrize(("hop", "most", "expected"), [
    (256, 8, [8, 8, 4]), (256, 16, [16, 16]), (128, 2, [2] * 7), (441, 8, [7, 7, 3, 3]), (7, 4, [7]), (2, 8, [2]),
])  # fmt: skip
def test_strides_multiply_to_the_hop(hop: int, most: int, expected: list[int]) -> None:
    assert factor_strides(hop, most) == expected
    assert math.prod(expected) == hop


@pytest.mark.parametrize(
    "hops", [[60], [64, 32], [128, 64, 16], [96, 48, 24, 12], [64, 32, 16, 8, 4], [64, 32, 32, 32, 8]]
)
@pytest.mark.parametrize(
    ("topology", "shared", "channels"), list(itertools.product(["residual", "independent"], [True, False], [1, 2]))
)
def test_lengths_for_any_levels_topology_and_channels(
    hops: list[int], topology: str, shared: bool, channels: int
) -> None:
    if topology == "independent" and len(set(hops)) < len(hops):
        pytest.skip("independent levels have hops of their own")
    network = trained_a_little(hop_lengths=tuple(hops), topology=topology, shared_codebook=shared, channels=channels)
    for samples in (1, hops[0] - 1, hops[0], 5 * hops[0] + 1):
        codes = network.encode(0.3 * torch.randn(2, channels, samples))
        assert [c.shape[1] for c in codes] == [math.ceil(samples / hop) for hop in hops]
        for k in range(1, len(hops) + 1):
            assert network.decode(codes[:k], samples).shape == (2, channels, samples)


@pytest.mark.parametrize("kind", FRONTS)
def test_a_feature_depends_on_no_sample_beyond_the_radius(kind: str) -> None:
    encoder = Encoder(1, [32, 16], 8, EncoderConfig(front=FRONTS[kind].Config(), n_blocks=1), 8000, causal=False)
    radius, middle = encoder.radius_samples, 2048
    waveform = torch.randn(1, 1, 4096, requires_grad=True)
    encoder(waveform)[0][0, :, middle // 32].sum().backward()
    assert waveform.grad is not None
    touched = waveform.grad[0, 0].nonzero().flatten()
    assert middle - radius <= int(touched.min())
    assert int(touched.max()) < middle + 32 + radius


@pytest.mark.parametrize("kind", DECODERS)
def test_a_sample_depends_on_no_frame_beyond_the_radius(kind: str) -> None:
    options = {"n_blocks": 1} | ({"base_dim": 8} if kind == "conv" else {"dim": 8})
    decoder = DECODERS[kind](8, 1, 16, DECODERS[kind].Config(**options), 8000, causal=False)
    n_steps = len(decoder.pitches) if isinstance(decoder, ToneDecoder) else 0  # whose loudness comes with the features
    frames = torch.randn(1, 8 + n_steps, 200, requires_grad=True)
    decoder(frames)[0, 0, 1600].backward()
    assert frames.grad is not None
    touched = frames.grad[0].abs().sum(0).nonzero().flatten()
    assert 100 - decoder.radius <= int(touched.min())
    assert int(touched.max()) <= 100 + decoder.radius


@pytest.mark.parametrize("kind", ["convnext", "dilated"])
def test_stack_radius_is_exact(kind: str) -> None:
    stack = Stack(kind, 4, 3)  # type: ignore[arg-type]
    x = torch.randn(1, 4, 101, requires_grad=True)
    stack(x)[0, :, 50].sum().backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0).nonzero().flatten()
    assert int(touched.max()) - 50 == stack.radius == 50 - int(touched.min())


def test_istft_head_inverts_the_spectrum_as_torch_does() -> None:
    """Frames made by analysis of a signal come back as that signal: window, overlap-add and envelope are right."""
    decoder = IstftDecoder(4, 1, 16, IstftDecoder.Config(dim=8, n_blocks=0), 8000, causal=False)
    signal = torch.randn(1, 1, 16 * 50)
    padded = torch.nn.functional.pad(signal, (24, 24))
    window = decoder.get_buffer("window")
    frames = padded.unfold(-1, 64, 16) * window
    spectrum = torch.fft.rfft(frames)
    back = torch.fft.irfft(spectrum, n=64)
    envelope = overlap_add(window.square().expand(1, 1, 50, -1), 16)
    assert torch.allclose(overlap_add(back * window, 16) / envelope, signal, atol=1e-5)


def test_constant_codes_hold_a_note_that_is_no_multiple_of_the_frame_rate() -> None:
    """Frames that do not change give one steady sine per bin, here the bin at 5/8 of the frame rate."""
    decoder = IstftDecoder(4, 1, 16, IstftDecoder.Config(dim=8, n_blocks=0, overlap=8), 8000, causal=False)
    with torch.no_grad():
        decoder.head.weight.zero_()
        bias = decoder.head.bias.view(2, -1)
        bias[0] = -20.0
        bias[0, 5] = 3.0
        wave = decoder(torch.randn(1, 4, 64))[0, 0]
    spectrum = torch.fft.rfft(wave[256:768] * torch.hann_window(512)).abs()
    assert int(spectrum.argmax()) == 5 * 512 // 128
    level = wave[256:768].unfold(0, 64, 64).std(dim=-1)
    assert float(level.max() / level.min()) < 1.2


@pytest.mark.parametrize("channels", [1, 2])
def test_features_of_the_music_are_standardised_at_the_start(channels: int) -> None:
    front = StftFront(channels, 16, 8, StftFront.Config(), 8000, causal=False)
    music = 0.2 * torch.randn(4, channels, 1600)
    front.initialise(music)
    features = (front.features(music) - front.mean) * front.scale  # [b, c · part · f, t]
    assert torch.allclose(front(music), front.mix(features), atol=1e-5)  # drawn into the weights, it is the same
    assert float(features.mean(dim=(0, 2)).abs().max()) < 1e-3
    assert float((features.std(dim=(0, 2)) - 1).abs().quantile(0.9)) < 0.2


def test_mel_features_are_those_of_the_losses_in_decibels() -> None:
    """They equal `MelSpectrogram` of the same frames up to a scale; a gain is the same offset in every feature."""
    front = MelFront(1, 64, 8, MelFront.Config(overlaps=(2, 8), n_mels=32), 8000, causal=False)
    assert front.n_mels == [10, 32]
    assert front.n_ffts == [128, 512]
    music = 0.2 * torch.randn(1, 1, 4096)
    features = front.features(music)
    assert features.shape == (1, 42, 64)
    for n, at in ((128, slice(0, 10)), (512, slice(10, 42))):
        filters = torchaudio.functional.melscale_fbanks(
            n // 2 + 1, 0, 4000, at.stop - at.start, 8000, mel_scale="slaney"
        )
        frame = music[0, 0, 64 * 30 + 32 - n // 2 : 64 * 30 + 32 + n // 2]  # around the middle of hop 30
        magnitude = torch.fft.rfft(frame * torch.hann_window(n)).abs() / n**0.5
        assert torch.allclose(features[0, at, 30], (magnitude @ filters).log10() / 2 + 1, atol=1e-3)
    assert torch.allclose(front.features(10 * music) - features, torch.tensor(0.5), atol=1e-3)
    front.initialise(music)
    standard = (features - front.mean) * front.scale
    assert float(standard.mean(dim=(0, 2)).abs().max()) < 1e-3
    fast = MelFront(1, 64, 8, MelFront.Config(), 384000, causal=False)
    assert float(fast.get_buffer("filters_1").sum(dim=0).min()) == 0  # bands between two bins
    assert bool(fast.features(music).isfinite().all())
    with pytest.raises(ValueError, match="overlaps"):
        MelFront(1, 64, 8, MelFront.Config(overlaps=(0, 8)), 8000, causal=False)


def test_the_decoder_begins_with_the_spectrum_of_the_music() -> None:
    t = torch.arange(16000) / 8000
    music = 0.5 * torch.sin(2 * torch.pi * 1000 * t)[None, None]
    decoder = IstftDecoder(4, 1, 32, IstftDecoder.Config(dim=8, n_blocks=0), 8000, causal=False)
    decoder.initialise(music)
    spectrum = decoder.head.bias[: decoder.n_fft // 2 + 1]
    assert int(spectrum.argmax()) == 16  # 1000 Hz of 128 bins to 8000 Hz


def test_codes_of_one_hop_share_its_features_and_add_up() -> None:
    network = trained_a_little(hop_lengths=(64, 32, 32, 32, 16), shared_codebook=False)
    group, waveform = network.groups[0], 0.3 * torch.randn(1, 1, 640)
    with torch.no_grad():
        features = group.encoder(waveform)  # type: ignore[operator]
        assert features[1] is features[2] is features[3]
        results, steps = group.quantize(features, network.quantizers())  # type: ignore[operator]
        total = group.ups[0](steps[0])  # type: ignore[operator,index]
        for i in (1, 2, 3):  # each quantizes what those before it left of the same features
            left = group.norms[i]((features[i] - total).transpose(1, 2))  # type: ignore[operator,index]
            latents = group.standardise[i](group.projections_in[i](left))  # type: ignore[operator,index]
            assert torch.equal(results[i].codes, network.quantizers()[i](latents).codes)
            total = total + steps[i]
        by_hand = group.decoder(group.ups[3](total) + steps[4])  # type: ignore[operator,index]
        assert torch.allclose(network.decode([r.codes for r in results], 640), by_hand, atol=1e-5)
    assert len(group.encoder.stacks) == 3  # one a hop  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("topology", ["residual", "independent"])
def test_every_quantizer_works_in_every_topology(kind: str, topology: str) -> None:
    size = {"levels": (4, 4)} if kind == "fsq" else {"codebook_size": 16, "codebook_dim": 4}
    network = make(hop_lengths=(64, 32), topology=topology, quantizer={"kind": kind, **size}).train()
    for passing in (True, False):
        quantizers = [Bypass(quantizer) for quantizer in network.quantizers()] if passing else network.quantizers()
        out = network(0.3 * torch.randn(2, 1, 1024), quantizers)
        (sum(r.square().sum() for r in out.reconstructions) + sum(out.losses.values())).backward()  # type: ignore[union-attr]
        assert all((int(level.codes.max()) == 0) == passing for level in out.levels)
        without = [name for name, p in network.named_parameters() if p.grad is None]
        assert not without
    network.eval()
    waveform = 0.3 * torch.randn(2, 1, 640)
    with torch.no_grad():
        out, codes = network(waveform), network.encode(waveform)
        assert all(torch.equal(a.codes, b) for a, b in zip(out.levels, codes, strict=True))
        assert torch.allclose(out.reconstructions[-1], network.decode(codes), atol=1e-5)


def test_a_shared_gumbel_temperature_counts_each_step_once() -> None:
    quantizer = {"kind": "gumbel", "codebook_size": 16, "codebook_dim": 4}
    network = make(hop_lengths=(64, 32, 16), quantizer=quantizer).train()
    for _ in range(3):
        network(0.3 * torch.randn(2, 1, 1024))
    assert int(network.codebooks[0].n_steps) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", ["residual", "independent"])
def test_every_parameter_gets_a_gradient(topology: str) -> None:
    network = make(hop_lengths=(64, 32), topology=topology, level_dropout=0.0).train()
    out = network(0.3 * torch.randn(2, 1, 1024))
    (sum(r.square().sum() for r in out.reconstructions) + out.losses["commitment"]).backward()  # type: ignore[union-attr]
    without = [name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0]
    assert not without


def test_training_forward_reconstructs_what_encode_and_decode_give() -> None:
    network = trained_a_little(hop_lengths=(64, 32))
    waveform = 0.3 * torch.randn(2, 1, 640)
    with torch.no_grad():
        out = network(waveform)
        codes = network.encode(waveform)
        assert all(torch.equal(a.codes, b) for a, b in zip(out.levels, codes, strict=True))
        assert torch.allclose(out.reconstructions[0], network.decode(codes), atol=1e-5)


def test_dropped_levels_train_as_the_prefix_decodes() -> None:
    network = trained_a_little(hop_lengths=(64, 32, 16), level_dropout=1.0)
    waveform = 0.3 * torch.randn(1, 1, 640)
    with torch.no_grad():
        group = network.groups[0]
        _, residuals = group.quantize(group.encoder(waveform), network.quantizers())
        codes = network.encode(waveform)
        dropped = group.decoder(group.total(*random_prefixes(residuals, 1.0)))
        prefixes = [network.decode(codes[:k]) for k in (1, 2)]
        assert any(torch.allclose(dropped, prefix, atol=1e-5) for prefix in prefixes)


def test_a_bypassed_quantizer_lets_latents_pass_and_no_code_moves() -> None:
    network = make().train()
    codebook = network.codebooks[0].embedding.clone()  # type: ignore[union-attr]
    out = network(0.3 * torch.randn(2, 1, 2048), [Bypass(quantizer) for quantizer in network.quantizers()])
    assert float(out.losses["commitment"]) == 0
    assert torch.equal(network.codebooks[0].embedding, codebook)  # type: ignore[arg-type]
    assert float(network(0.3 * torch.randn(2, 1, 2048)).losses["commitment"].detach()) > 0
    assert not torch.equal(network.codebooks[0].embedding, codebook)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shared", "expected"), [(True, [3]), (False, [1, 1, 1])])
def test_codebooks_start_from_the_latents_of_all_their_levels(
    monkeypatch: pytest.MonkeyPatch, shared: bool, expected: list[int]
) -> None:
    network, calls = make(shared_codebook=shared).train(), []
    for codebook in network.codebooks:
        monkeypatch.setattr(codebook, "initialise", lambda latents: calls.append(len(latents)))
    initialise_codebooks(network, 0.3 * torch.randn(2, 1, 4096))
    assert calls == expected


def test_one_shared_codebook_is_one_module_and_saved_once() -> None:
    shared, apart = make(shared_codebook=True), make(shared_codebook=False)
    assert len({id(q) for q in shared.quantizers()}) == 1
    assert len({id(q) for q in apart.quantizers()}) == 3
    assert sum(name.endswith("embedding") for name in shared.state_dict()) == 1
    assert sum(name.endswith("sums") for name in shared.state_dict()) == 1


def test_a_shared_codebook_is_updated_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make().train()
    calls = []
    monkeypatch.setattr(network.codebooks[0], "update", lambda latents, codes: calls.append(len(latents)))
    network(0.3 * torch.randn(2, 1, 4096))
    assert calls == [3]


def test_wrong_input_is_explained() -> None:
    network = make(hop_lengths=(64, 32))
    with pytest.raises(ValueError, match=r"expected \[batch, 1 channels, samples > 0\], found \[1, 2, 64\]"):
        network.encode(torch.zeros(1, 2, 64))
    with pytest.raises(ValueError, match="samples > 0"):
        network.encode(torch.zeros(1, 1, 0))
    good = network.encode(torch.randn(1, 1, 640))
    with pytest.raises(ValueError, match="expected 1 to 2 levels, found 0"):
        network.decode([], 640)
    with pytest.raises(ValueError, match=r"level 1: expected \[batch, 20\] for 640 samples, found \[1, 10\]"):
        network.decode([good[0], good[0]], 640)
    with pytest.raises(ValueError, match="level 0: expected 0 to 31, found 32 to 32"):
        network.decode([torch.full_like(good[0], 32)], 640)


def test_independent_levels_have_hops_of_their_own() -> None:
    with pytest.raises(
        ValueError, match=r"expected each once with topology independent, found .* use topology residual"
    ):
        make(hop_lengths=(64, 32, 32), topology="independent")


def test_kinds_are_in_the_tables() -> None:
    assert {"istft": IstftDecoder, "tones": ToneDecoder, "conv": ConvDecoder} == DECODERS
    assert {"stft": StftFront, "mel": MelFront, "conv": ConvFront} == FRONTS
