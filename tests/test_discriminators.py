"""Discriminators and their losses, against plain NumPy; what each one can and cannot distinguish."""

import numpy as np
import pytest
import torch

from audiovq import config as conf
from audiovq.tokenizer.discriminators import (
    DISCRIMINATORS,
    AdversarialConfig,
    DiscriminatorOutput,
    Discriminators,
    MelDiscriminator,
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    frozen,
)

SMALL = {
    "multi_period": MultiPeriodDiscriminator.Config(periods=(2, 3), dims=(4, 6)),
    "mel": MelDiscriminator.Config(windows=(256, 128), n_mels=16, dims=(4, 6)),
    "multi_resolution": MultiResolutionDiscriminator.Config(windows=(128, 64), dim=4, bands=(0.25, 0.5)),
}


def outputs(*shapes: tuple[int, ...]) -> list[DiscriminatorOutput]:
    return [DiscriminatorOutput(torch.randn(shape), [torch.randn(shape), torch.randn(2, *shape)]) for shape in shapes]


def test_losses_equal_numpy() -> None:
    real, fake = outputs((2, 1, 5, 3), (2, 1, 4, 4)), outputs((2, 1, 5, 3), (2, 1, 4, 4))
    r, f = ([j.scores.numpy() for j in side] for side in (real, fake))
    expected = np.mean([((1 - a) ** 2).mean() + (b**2).mean() for a, b in zip(r, f, strict=True)])
    assert float(discriminator_loss(real, fake, "least_squares")) == pytest.approx(expected, rel=1e-5)
    hinge = np.mean([np.maximum(0, 1 - a).mean() + np.maximum(0, 1 + b).mean() for a, b in zip(r, f, strict=True)])
    assert float(discriminator_loss(real, fake, "hinge")) == pytest.approx(hinge, rel=1e-5)
    fooled = np.mean([((1 - b) ** 2).mean() for b in f])
    assert float(adversarial_loss(fake, "least_squares")) == pytest.approx(fooled, rel=1e-5)
    assert float(adversarial_loss(fake, "hinge")) == pytest.approx(-np.mean([b.mean() for b in f]), rel=1e-5)
    pairs = [
        (a.numpy(), b.numpy())
        for x, y in zip(real, fake, strict=True)
        for a, b in zip(x.features, y.features, strict=True)
    ]
    matching = np.mean([np.abs(a - b).mean() / np.abs(a).mean() for a, b in pairs])
    assert float(feature_matching_loss(real, fake)) == pytest.approx(matching, rel=1e-5)
    assert float(feature_matching_loss(real, real)) == 0


def test_perfect_discriminators_lose_nothing() -> None:
    real, fake = [DiscriminatorOutput(torch.ones(1, 1, 2, 2), [])], [DiscriminatorOutput(torch.zeros(1, 1, 2, 2), [])]
    assert float(discriminator_loss(real, fake, "least_squares")) == 0
    assert float(adversarial_loss(fake, "least_squares")) == 1
    assert float(discriminator_loss(real, [DiscriminatorOutput(-torch.ones(1, 1, 2, 2), [])], "hinge")) == 0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_every_kind_treats_items_apart_and_learns_with_all_weights(kind: str, channels: int) -> None:
    network = DISCRIMINATORS[kind](channels, SMALL[kind], 8000)
    waveform = torch.randn(3, channels, 601)
    together = network(waveform)
    assert len(together) == 2
    for alone, output in zip(network(waveform[1:2]), together, strict=True):
        assert output.scores.shape[:2] == (3, 1)
        assert torch.allclose(alone.scores, output.scores[1:2], atol=1e-6)
        for a, b in zip(alone.features, output.features, strict=True):
            assert torch.allclose(a, b[1:2], atol=1e-6)
    discriminator_loss(network(waveform), network(0.1 * waveform), "least_squares").backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_period_compares_only_samples_that_are_multiples_of_it_apart() -> None:
    network = MultiPeriodDiscriminator(1, MultiPeriodDiscriminator.Config(periods=(3, 5), dims=(4,)), 8000)
    waveform = torch.randn(1, 1, 90, requires_grad=True)
    for output, period in zip(network(waveform), (3, 5), strict=True):
        assert output.scores.shape[-1] == period
        (gradient,) = torch.autograd.grad(output.scores[..., 1].sum(), waveform, retain_graph=True)
        seen = gradient.flatten().nonzero().flatten()
        assert set((seen % period).tolist()) == {1}
        assert len(seen) == 90 // period


def test_spectrum_equals_numpy_and_bands_cover_it() -> None:
    network = MultiResolutionDiscriminator(
        1, MultiResolutionDiscriminator.Config(windows=(64,), dim=4, bands=(0.3,)), 8000
    )
    waveform = torch.randn(2, 1, 160)
    padded = np.pad(waveform[:, 0].numpy(), ((0, 0), (32, 32)))
    window = np.hanning(65)[:-1]
    frames = np.stack([padded[:, i : i + 64] for i in range(0, 161, 16)], axis=1)
    expected = np.fft.rfft(frames * window) / 8  # [2, frames, bins]
    found = network.spectrum(waveform, 64).numpy()
    assert found.shape == (2, 2, 11, 33)
    np.testing.assert_allclose(found[:, 0] + 1j * found[:, 1], expected, atol=1e-5)
    assert network.config.edges(64) == [0, 10, 33]
    output = network(waveform)[0]
    low = [features.shape[-1] for features in output.features[:5]]
    high = [features.shape[-1] for features in output.features[5:]]
    assert low == [10, 5, 3, 2, 2]
    assert high == [23, 12, 6, 3, 3]
    assert output.scores.shape == (2, 1, 11, 5)


def test_bands_see_their_own_frequencies_alone() -> None:
    config = MultiResolutionDiscriminator.Config(windows=(64,), dim=4, bands=(0.5,))
    network = MultiResolutionDiscriminator(1, config, 8000)
    waveform = torch.randn(1, 1, 512)
    treble = torch.hann_window(512) * torch.sin(2 * torch.pi * 28 / 64 * torch.arange(512))  # bin 28 of 32
    with torch.no_grad():
        before, after = network(waveform)[0].features, network(waveform + treble)[0].features
    change = [float((a - b).norm() / a.norm()) for a, b in zip(before, after, strict=True)]
    assert max(change[:5]) < 1e-3
    assert min(change[5:]) > 1e-2


def test_magnitude_does_not_see_phase_and_complex_does() -> None:
    waveform = torch.randn(1, 1, 512)
    for spectrum, same in (("magnitude", True), ("complex", False)):
        config = SMALL["multi_resolution"].model_copy(update={"spectrum": spectrum})
        network = MultiResolutionDiscriminator(1, config, 8000)  # type: ignore[arg-type]
        for a, b in zip(network(waveform), network(-waveform), strict=True):
            assert torch.allclose(a.scores, b.scores, atol=1e-6) == same


def test_mel_has_no_phase_and_a_gain_is_an_offset() -> None:
    network = MelDiscriminator(1, SMALL["mel"], 8000)  # type: ignore[arg-type]
    waveform = torch.randn(1, 1, 2048)
    for a, b in zip(network(waveform), network(-waveform), strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-5)
    seen: list[torch.Tensor] = []
    network.stacks[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[index]
    for gain in (1, 10):
        network(gain * waveform)
    assert seen[0].shape == (1, 1, 33, 16)  # [b, channels, frames, mels]
    assert torch.allclose(seen[1] - seen[0], torch.tensor(0.5), atol=5e-3)


def test_gradients_pass_through_frozen_discriminators_and_stop_at_their_weights() -> None:
    network = Discriminators(1, AdversarialConfig(discriminators=tuple(SMALL.values())), 8000)
    waveform = torch.randn(1, 1, 400, requires_grad=True)
    with frozen(network):
        fake = network(waveform)
    assert all(p.requires_grad for p in network.parameters())
    adversarial_loss(fake, "hinge").backward()
    assert waveform.grad is not None
    assert waveform.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("config", "message"), [
    ({"discriminators": []}, "discriminators: expected at least one of multi_period, multi_resolution, mel, found none"),
    ({"adversarial": 0, "feature_matching": 0}, "expected a weight above 0"),
    ({"loss": "log"}, "expected 'hinge' or 'least_squares', found 'log'"),
    ({"discriminators": [{"kind": "multi_period", "periods": [2, 0]}]}, "periods.1: expected greater than or equal to 1, found 0"),
    ({"discriminators": [{"kind": "multi_period", "periods": []}]}, "periods: expected at least 1 item, found ()"),
    ({"discriminators": [{"kind": "multi_period", "dims": []}]}, "dims: expected at least 1 item, found ()"),
    ({"discriminators": [{"kind": "multi_resolution", "windows": [7]}]}, "windows.0: expected greater than or equal to 8, found 7"),
    ({"discriminators": [{"kind": "multi_resolution", "bands": [0.5, 0.2]}]}, "bands: expected rising numbers between 0 and 1, found [0.5, 0.2]"),
    ({"discriminators": [{"kind": "multi_resolution", "windows": [8], "bands": [0.1]}]}, "expected a frequency in each, found bands of [0, 5] frequencies"),
    ({"discriminators": [{"kind": "multi_perod"}]}, "multi_perod"),
])  # fmt: skip
def test_senseless_configs_are_refused_in_one_line(config: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        conf.build(AdversarialConfig, config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
