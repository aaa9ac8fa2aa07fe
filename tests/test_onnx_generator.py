"""The generator in steps without state, as ONNX files, and what audiovq-player makes of them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_one_line_error, cli
from test_onnx import needs_onnx
from tiny_generator import (
    CASES,
    CONDITIONERS,
    FOLDER,
    HOPS,
    RATE,
    SECONDS,
    SIZE,
    bands_generator,
    codes_by_torch,
    export,
    tiny_generator,
    write,
)

from audiovq import Generator
from audiovq.pretrained.locate import shared_files
from audiovq.pretrained.onnx_files import DecodeGraph
from audiovq.pretrained.onnx_generator import example_inputs
from audiovq.prior.conditioners import Conditions
from audiovq.prior.onnx_graph import PrefixGraph, StepGraph
from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.spec import PriorSpec

sys.path.insert(0, str(ROOT / "player"))
from audiovq_player import Player
from audiovq_player.decoder import Decoder


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny_generator()


@pytest.mark.parametrize("level", range(3))
@torch.no_grad()
def test_steps_give_what_the_prior_gives(generator: Generator, level: int) -> None:
    prior = generator.priors[level]
    c, spec, n_prefix, n = prior.config.transformer, prior.spec, prior.transformer.n_prefix, 30
    assert n > 2 * c.window
    random = torch.Generator().manual_seed(level)
    draw = lambda high, *shape: torch.randint(high, shape, generator=random)  # noqa: E731
    previous, labels = draw(SIZE + 1, 2, n), draw(3, 2)
    n_coarser = -(-n // spec.ratio) + 2 * prior.config.context_codes
    coarser, chroma = draw(SIZE + 1, 2, level, n_coarser), draw(14 if level != 1 else 14 << 12, 2, n + 1)
    text, right = draw(257, 2, 6), draw(SIZE + 1, 2, prior.config.extra_inputs["infill_codes"])
    position, gap = torch.zeros(2, dtype=torch.int64), torch.full((2,), 25)
    length, end = torch.full((2,), 5 * RATE), torch.full((2,), 21)
    conditions = Conditions({"genre": labels}, length, position, text, chroma, right, end, gap)
    context, prefix = prior.context(coarser, conditions, n), prior.prefix(conditions)
    expected = prior(previous, context, prefix=prefix)  # all positions in one pass

    graph, prefix_graph = StepGraph(prior), PrefixGraph(prior)
    given = {"text": text, "right": right}
    cache = torch.zeros(c.n_layers, 2, 2, c.kv_heads, n_prefix + c.window, c.head_dim)
    cache[..., :n_prefix, :] = prefix_graph(*(given[name] for name in prefix_graph.names))
    mask = torch.full((n_prefix + c.window,), -1e9)
    mask[:n_prefix] = 0
    for t in range(n):
        slot, first = n_prefix + t % c.window, t // spec.ratio
        mask[slot] = -1e9
        inputs = {
            "previous": previous[:, t], "position": torch.tensor([t]), "mask": mask, "labels": labels[:, None],
            "n_samples": length[:1], "timing_end": end[:1], "gap_end": gap[:1], "chroma": chroma[:, t],
            "notes": chroma[:, t // spec.top_ratio],
            "coarser": coarser[:, :, first : first + 2 * prior.config.context_codes + 1],
        }  # fmt: skip
        for i in range(c.n_layers):
            inputs |= {f"keys_{i}": cache[i, 0], f"values_{i}": cache[i, 1]}
        logits, new = graph(*(inputs[name] for name in graph.names))
        cache[..., slot, :] = new.permute(1, 2, 0, 3, 4)
        mask[slot] = 0
        assert torch.allclose(logits, expected[:, t], atol=1e-4), t


@torch.no_grad()
def test_a_label_without_values_has_a_graph() -> None:
    spec = PriorSpec(0, list(HOPS), RATE, SIZE, "", {"genre": []})
    transformer = {"dim": 16, "n_layers": 1, "n_heads": 2}
    config = {"transformer": transformer, "conditioners": ({"kind": "label", "name": "genre"},)}
    prior = Prior(PriorConfig.model_validate(config), spec).eval()
    graph = StepGraph(prior)
    inputs = example_inputs(prior, graph)
    logits, new = graph(*(inputs[name] for name in graph.names))
    assert logits.shape == (2, SIZE)
    assert new.shape == (2, 1, 2, 2, 8)
    assert inputs["labels"].tolist() == [[0], [0]]


@torch.no_grad()
def test_spectra_are_those_of_the_decoder(generator: Generator) -> None:
    network, random = generator.tokenizer.network, np.random.default_rng(0)
    codes = [torch.from_numpy(random.integers(0, SIZE, (1, 12 * HOPS[0] // hop))) for hop in HOPS]
    for n_levels in (1, 2, 3):
        spectra = DecodeGraph(network, n_levels, spectra=True)(*codes[:n_levels])[0].numpy()
        decoder = Decoder.__new__(Decoder)
        decoder.facts = json.loads((FOLDER / "generator.json").read_text())["decoder"]
        decoder.window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(128) / 128)).astype(np.float32)
        waveform = network.decode(codes[:n_levels])[0].numpy()
        assert np.abs(waveform).max() > 0.01
        assert np.abs(decoder._waveform(spectra) - waveform).max() < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_the_player_are_up_to_date(generator: Generator, name: str) -> None:
    expected = np.load(FOLDER / "expected.npz")
    for i, level in enumerate(codes_by_torch(generator, CASES[name])):
        assert np.array_equal(level, expected[f"{name}-{i}"])


def test_the_facts_are_those_of_the_model(generator: Generator) -> None:
    facts = json.loads((FOLDER / "generator.json").read_text())
    assert facts["tokenizer_hash"] == generator.tokenizer.hash
    assert facts["hop_lengths"] == list(HOPS)
    assert [p["sampling"] for p in facts["priors"]] == [setting.model_dump() for setting in generator.sampling]
    for prior, conditioners in zip(facts["priors"], CONDITIONERS, strict=True):
        assert prior["window"] == 12
        assert ("labels" in prior["inputs"]) == any(c["kind"] == "label" for c in conditioners)
    assert "/" not in json.dumps(facts)  # no path of the computer that it was made on


@pytest.mark.slow
@needs_onnx
def test_the_player_draws_what_torch_draws(tmp_path: Path) -> None:
    generator, player = write(tmp_path), Player(tmp_path)
    for options in CASES.values():
        length = ("n_samples", round(SECONDS * RATE)) if "given" in options else ("seconds", SECONDS)
        piece = player.piece(**options, **dict[str, Any]([length]), keep_codes=True)
        for _ in piece.blocks():
            pass
        for found, expected in zip(piece.codes, codes_by_torch(generator, options), strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.slow
@needs_onnx
def test_a_model_of_bands_is_played(tmp_path: Path) -> None:
    """Codes as torch draws them, and the sound of spectra and tones in blocks as of the whole."""
    generator, seconds = bands_generator(), 6.3
    export(tmp_path, generator)
    facts = json.loads((tmp_path / "generator.json").read_text())["decoder"]
    assert (facts["period"], facts["multiple"]) == (64 * 256, 1024)
    codes = generator.sample_codes(seconds, seed=3, labels={"genre": "folk"}, precision="fp32")[0]
    piece = Player(tmp_path).piece(seconds, 3, labels={"genre": "folk"}, keep_codes=True, block_seconds=1.1)
    blocks = list(piece.blocks())
    assert len(blocks) > 2
    for found, expected in zip(piece.codes, codes.levels, strict=True):
        assert np.array_equal(found, expected)
    expected = generator.tokenizer.decode(codes).numpy()
    assert np.abs(expected).max() > 0.01
    assert np.abs(np.concatenate(blocks, axis=1) - expected).max() < 1e-4


@pytest.mark.slow
@needs_onnx
def test_a_run_is_exported_for_the_player(tiny_run: Path, tmp_path: Path) -> None:
    result = cli("export", tiny_run, tmp_path / "shared", "--onnx", "--fp16")
    assert result.exit_code == 0, result.output
    assert "logits of the priors within" in result.output
    names = shared_files(tmp_path / "shared")
    assert {"onnx/generator.json", "onnx/decoder.onnx", "onnx/prior-2.onnx"} <= set(names)
    generator = Generator.from_pretrained(tmp_path / "shared", "cpu")
    codes = generator.sample_codes(2.0, seed=3, labels={"genre": "folk"}, precision="fp32")[0]
    piece = Player(tmp_path / "shared").piece(2.0, 3, labels={"genre": "folk"}, keep_codes=True)
    waveform = np.concatenate(list(piece.blocks()), axis=1)
    for found, expected in zip(piece.codes, codes.levels, strict=True):
        assert np.array_equal(found, expected)
    assert np.abs(waveform - generator.tokenizer.decode(codes).numpy()).max() < 1e-4
    shutil.rmtree(tmp_path / "shared" / "onnx")
    with pytest.raises(ValueError, match="a model of audiovq without ONNX files"):
        Player(tmp_path / "shared")


@pytest.mark.slow
@needs_onnx
@torch.no_grad()
def test_8_bit_priors_are_near_those_of_torch(generator: Generator, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    export(tmp_path, generator, int8=True)
    for level, prior in enumerate(generator.priors):
        path, graph = tmp_path / f"prior-{level}.onnx", StepGraph(prior)
        weights = onnx.load(path).graph.initializer
        stored = {kind: sum(np.prod(w.dims) for w in weights if w.data_type == kind) for kind in (1, 3)}
        assert stored[onnx.TensorProto.INT8] > stored[onnx.TensorProto.FLOAT]
        examples = example_inputs(prior, graph)
        inputs = {name: examples[name] for name in graph.names}
        expected = graph(*inputs.values())[0].numpy()
        session = runtime.InferenceSession(str(path))
        found = session.run(None, {each.name: inputs[each.name].numpy() for each in session.get_inputs()})[0]
        assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    piece = Player(tmp_path).piece(SECONDS, 1)
    assert sum(block.shape[1] for block in piece.blocks()) == round(SECONDS * RATE)


def test_8_bits_need_onnx(tiny_run: Path, tmp_path: Path) -> None:
    result = cli("export", tiny_run, tmp_path / "shared", "--int8")
    assert_one_line_error(result, "--int8: expected with --onnx or --web")
    assert not (tmp_path / "shared").exists()
