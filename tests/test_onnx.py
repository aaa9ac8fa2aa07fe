"""The tokenizer without complex numbers, as ONNX files, and run by onnxruntime alone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TRACK, assert_one_line_error, cli
from test_bands import small_network

from audiovq import Tokenizer
from audiovq.data.audio import read_audio
from audiovq.pretrained import checkpoint, onnx_files
from audiovq.pretrained.locate import shared_files
from audiovq.pretrained.onnx_files import (
    ConvMelFront,
    ConvPitchSpectrogram,
    ConvStftFront,
    DecodeGraph,
    EncodeGraph,
    inverse_stft,
    oscillate,
    waves,
)
from audiovq.tokenizer.decoders import IstftDecoder
from audiovq.tokenizer.fronts import MelFront, StftFront
from audiovq.tokenizer.pitch import PitchSpectrogram, pitches
from audiovq.tokenizer.tones import Oscillators
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig

KINDS = {
    "stereo": {"channels": 2, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1, "overlap": 8}},
    "conv": {"encoder": {"front": {"kind": "conv", "base_dim": 8}, "n_blocks": 1}, "decoder": {"kind": "conv", "base_dim": 8}},
    "independent": {"topology": "independent", "shared_codebook": False, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1}},
    "complex": {"whiten_latents": True, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1, "overlap": 8, "spectrum": "complex"}},
    "mel": {"encoder": {"front": {"kind": "mel"}, "n_blocks": 1}, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1}},
    "repeated": {"hop_lengths": (64, 32, 32), "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1}},
    "causal": {"causal": True, "encoder": {"front": {"kind": "mel"}, "n_blocks": 1}, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1}},
    "causal-stft": {"causal": True, "decoder": {"kind": "conv", "base_dim": 8}},
    "fsq": {"quantizer": {"kind": "fsq", "levels": (5, 4)}, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1}},
    "gumbel": {"quantizer": {"kind": "gumbel", "codebook_size": 16, "codebook_dim": 4}, "decoder": {"kind": "istft", "dim": 16, "n_blocks": 1}},
}  # fmt: skip


def network(kind: str) -> VQVAE:
    if kind == "bands":
        return small_network()
    settings = {
        "sample_rate": 8000, "hop_lengths": (64, 32), "dim": 16, "encoder": {"n_blocks": 1},
        "quantizer": {"kind": "ema", "codebook_size": 16, "codebook_dim": 4}, **KINDS[kind],
    }  # fmt: skip
    return VQVAE(VQVAEConfig.model_validate(settings)).eval()


@pytest.mark.parametrize("kind", [*KINDS, "bands"])
@torch.no_grad()
def test_graphs_give_what_the_network_gives(kind: str) -> None:
    net = network(kind)
    multiple = net.config.multiple
    waveform = 0.3 * torch.randn(2, net.config.channels, multiple * 5)
    codes = net.encode(waveform)
    for a, b in zip(codes, EncodeGraph(net)(waveform), strict=True):
        assert torch.equal(a, b)
    graph = DecodeGraph(net)
    assert torch.allclose(graph(*codes), net.decode(codes), atol=1e-5)
    n = multiple * 35 // 8
    cut = net.encode(waveform[..., :n])  # as many codes as these samples need
    full = [multiple // hop * 5 for hop in net.config.hop_lengths]
    padded = [torch.nn.functional.pad(c, (0, n - c.shape[1]), value=-1) for c, n in zip(cut, full, strict=True)]
    if net.config.topology != "independent":
        assert torch.allclose(graph(*padded)[..., :n], net.decode(cut, n), atol=1e-5)
        alone = [codes[0], *(torch.full_like(c, -1) for c in codes[1:])]
        assert torch.allclose(graph(*alone), net.decode(codes[:1]), atol=1e-5)


def test_waves_are_the_fourier_basis_of_numpy() -> None:
    cos, sin = waves(torch.arange(7), torch.arange(12), 12)
    assert np.allclose(cos - 1j * sin, np.fft.rfft(np.eye(12)).T, atol=1e-6)


@torch.no_grad()
def test_convolutions_are_the_transforms() -> None:
    stft = StftFront(2, 8, 16, StftFront.Config(overlap=4), 8000, causal=False).eval()
    mel = MelFront(2, 32, 16, MelFront.Config(overlaps=(2, 8)), 8000, causal=False).eval()
    waveform = torch.randn(3, 2, 80)
    quiet = waveform * torch.logspace(0, -6, 80)  # where the least power counts
    for x in (waveform, quiet, torch.zeros_like(waveform)):
        assert torch.allclose(ConvStftFront(stft)(x), stft(x), atol=1e-4)
        long = x.repeat(1, 1, 4)
        assert torch.allclose(ConvMelFront(mel)(long), mel(long), atol=1e-4)
    decoder = IstftDecoder(16, 2, 8, IstftDecoder.Config(dim=16, n_blocks=1), 8000, causal=False).eval()
    steps = pitches(28, 112, 5, 44100)  # at three sample rates
    spectrogram, music = PitchSpectrogram(44100, 1024, steps), read_audio(TRACK, 44100)[0][:1, : 1024 * 64]
    assert len(set(spectrogram.factors)) == 3
    for x in (music, music * torch.logspace(0, -8, 1024 * 64), torch.zeros_like(music)):
        found, expected = ConvPitchSpectrogram(spectrogram)(x), spectrogram(x)
        assert torch.allclose(found, expected, atol=1e-7 + 1e-6 * float(x.abs().max()), rtol=1e-4)
    loudness = torch.rand(2, 1, 70, len(steps))
    oscillators = Oscillators(steps, 1024, 44100)
    assert torch.allclose(oscillate(oscillators, loudness), oscillators(loudness), atol=1e-4)
    features = torch.randn(3, 16, 7)
    assert torch.allclose(inverse_stft(decoder, decoder.trunk(features)), decoder(features), atol=1e-5)


@torch.no_grad()
def test_a_graph_leaves_the_network_as_it_was() -> None:
    net = network("stereo")
    group: Any = net.groups[0]
    names, front = list(net.state_dict()), group.encoder.front
    assert EncodeGraph(net) is not DecodeGraph(net)
    assert list(net.state_dict()) == names
    assert group.encoder.front is front
    assert isinstance(group.decoder, IstftDecoder)


def test_without_the_extra_it_says_what_to_install(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_one_line_error(cli("export", tiny_run, tmp_path / "x", "--onnx"), "pip install 'audiovq[onnx]'")
    assert not (tmp_path / "x").exists()


needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason="needs the extra onnx",
)


def test_no_command_loads_onnx(tmp_path: Path) -> None:
    code = "import sys, audiovq.api; sys.exit(bool({'onnxscript', 'onnxruntime', 'scipy.signal'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("kind", ["stereo", "complex", "mel", "bands"])
def test_lengths_that_no_period_divides(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    assert 3 * 8000 // 32 % 8 != 0  # frames of the test signal, and overlap
    assert -(-3 * 16000 // 1024) * 4 % 64 != 0  # of bands: frames, and the period of the oscillators
    found = onnx_files.export_onnx(tmp_path, net)
    assert found["codes_equal"] > 0.995
    assert found["waveform_error"] < 1e-4


@pytest.mark.slow
@needs_onnx
@torch.no_grad()
def test_onnx_files_on_a_real_track(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("export", tiny_run, tmp_path / "shared", "--onnx")
    assert result.exit_code == 0, result.output
    assert "of the codes equal those of torch" in result.output
    assert "of the codes are equal" in (tmp_path / "shared" / "README.md").read_text()
    tokenizer = Tokenizer.from_pretrained(tiny_run, "cpu")
    check_on_a_track(tmp_path / "shared" / "onnx", tokenizer, 256, monkeypatch)
    (tmp_path / "shared" / "onnx" / "evil.py").write_text("")
    names = shared_files(tmp_path / "shared")
    assert {"onnx/encode.onnx", "onnx/decode.onnx"} <= set(names)
    assert "onnx/evil.py" not in names
    assert checkpoint.load_tokenizer(tmp_path / "shared" / "tokenizer").config == tokenizer.config


@pytest.mark.slow
@needs_onnx
@torch.no_grad()
def test_bands_on_a_real_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    onnx_files.export_onnx(tmp_path, network)
    check_on_a_track(tmp_path, Tokenizer(network), 1024, monkeypatch)


def check_on_a_track(folder: Path, tokenizer: Tokenizer, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from onnx_tokenizer import OnnxTokenizer  # pyright: ignore[reportMissingImports]

    found, rate = OnnxTokenizer(folder), tokenizer.config.sample_rate
    assert found.rules == json.loads(json.dumps(onnx_files.rules(tokenizer.network)))
    assert (found.rules["samples_multiple"], found.rules["tokenizer_hash"]) == (multiple, tokenizer.hash)
    n_samples = 15 * rate // 4 + 1
    waveform = read_audio(TRACK, rate, 1)[0][:, rate : rate + n_samples]
    codes, levels = tokenizer.encode(waveform, rate), found.encode(waveform.numpy())
    assert [len(level) for level in levels] == [len(level) for level in codes.levels]
    equal = np.mean(np.concatenate([a == b.numpy() for a, b in zip(levels, codes.levels, strict=True)]))
    assert equal > 0.995
    expected_codes = [level.numpy() for level in codes.levels]
    for k in range(1, len(levels) + 1):
        decoded = torch.from_numpy(found.decode(expected_codes[:k], n_samples)).clamp(-1, 1)
        assert torch.allclose(decoded, tokenizer.decode(codes, k), atol=1e-4)
    # A piece by the rules of the metadata gives what the whole gives.
    period, context = found.rules["decode_period"], found.rules["decode_context"]
    before = -(-context // period) * period
    start = before + -(-4000 // period) * period
    assert start < n_samples
    first = start - before
    piece = [level[first // hop :] for level, hop in zip(expected_codes, found.hops, strict=True)]
    whole, part = found.decode(expected_codes, n_samples), found.decode(piece, n_samples - first)
    assert np.abs(part[:, before:] - whole[:, start:]).max() < 1e-4
