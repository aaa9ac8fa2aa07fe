"""The music embedding. Tests that need the weights are skipped where they cannot be downloaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRACK
from einops import rearrange

from audiovq.data.audio import read_audio
from audiovq.evaluation import embedding
from audiovq.evaluation.embedding import MusicEmbedding, Musicnn, fetch_weights, load_weights


def test_weights_are_read_in_the_order_of_their_names() -> None:
    """The layout of TensorFlow's file, written from a network whose values are all different."""
    network = Musicnn()
    for i, parameter in enumerate(network.state_dict().values()):
        parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + 1000 * i)
    layers: list[Any] = [*network.fronts, *network.middle]
    convolutions = [layer[1] for layer in layers]
    norms: list[Any] = [network.norm_in, *(layer[-1] for layer in layers), network.norm_pooled, network.norm_out]
    variables = {f"conv2d{f'_{i}' * (i > 0)}/bias": c.bias for i, c in enumerate(convolutions)}
    variables |= {
        f"conv2d{f'_{i}' * (i > 0)}/kernel": rearrange(c.weight, "o i h w -> h w i o")
        for i, c in enumerate(convolutions)
    }
    for i, norm in enumerate(norms):
        values = {"beta": norm.bias, "gamma": norm.weight, "moving_mean": norm.running_mean}
        values["moving_variance"] = norm.running_var
        variables |= {f"batch_normalization{f'_{i}' * (i > 0)}/{name}": value for name, value in values.items()}
    variables |= {"dense/bias": network.dense.bias, "dense/kernel": network.dense.weight.T}
    variables |= {"beta1_power": torch.zeros(1), "beta2_power": torch.zeros(1)}
    for name in [name for name in variables if "moving" not in name and "power" not in name]:
        variables |= {f"{name}/Adam{k}": torch.full_like(variables[name], -1) for k in ("", "_1")}
    data = b"".join(variables[name].detach().numpy().astype("<f4").tobytes() for name in sorted(variables))
    found = Musicnn()
    load_weights(found, data)
    for name, value in found.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, network.state_dict()[name]), name


def test_without_network_one_line_says_how_to_get_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "URL", "http://127.0.0.1:9/nothing-listens-here.whl")
    with pytest.raises(ValueError, match=r"pip download --no-deps musicnn==0.1.0 -d .*") as error:
        fetch_weights(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def embed() -> MusicEmbedding:
    try:
        return MusicEmbedding()
    except ValueError as error:
        pytest.skip(str(error))


def test_real_music_has_the_values_of_another_implementation(embed: MusicEmbedding) -> None:
    """Its values agree with the TensorFlow original's: its tags to 2.4e-7."""
    waveform, rate = read_audio(TRACK, 16000, 1)
    vectors = embed(waveform[:, : 4 * 187 * 256], rate)
    assert vectors.shape == (4, 200)
    expected = [0.5917, -0.0329, -0.0923, -0.1861, 0.6454, -0.1700, -0.1058, 0.0711]
    assert vectors[3, :8] == pytest.approx(expected, abs=2e-3)
    assert embed(waveform[:, : 4 * 187 * 256], rate, batch_size=3) == pytest.approx(vectors, abs=1e-5)
    stereo = torch.cat([waveform, waveform])[:, : 2 * 187 * 256]
    assert embed(stereo, rate)[:1] == pytest.approx(vectors[:1], abs=1e-5)


def test_two_seconds_are_too_short(embed: MusicEmbedding) -> None:
    with pytest.raises(ValueError, match=r"at least 3.0 s of audio, found 2.0 s"):
        embed(torch.zeros(1, 2 * 44100), 44100)
