"""A small generator with all conditioners, and what it makes; `python tests/tiny_generator.py` exports both for the tests
of the player, which have no torch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_bands import small_network

from audiovq import Generator, Tokenizer
from audiovq.api.options import PieceOptions, level_settings, make_request
from audiovq.pretrained.onnx_files import DecodeGraph
from audiovq.pretrained.onnx_generator import export_generator
from audiovq.prior.prior import Prior, PriorConfig, SamplingConfig
from audiovq.prior.spec import PriorSpec
from audiovq.sampling.generate import generate
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig

FOLDER = Path(__file__).parent.parent / "player" / "tests" / "tiny"
HOPS, RATE, SIZE, SECONDS = (64, 32, 32), 8000, 16, 1.25
CONDITIONERS = [
    [{"kind": "label", "name": "genre"}, {"kind": "timing"}, {"kind": "text", "max_bytes": 6}, {"kind": "chroma"}],
    [{"kind": "label", "name": "genre"}, {"kind": "infill", "n_codes": 3, "reach": 16}, {"kind": "notes"}],
    [{"kind": "infill", "n_codes": 2, "reach": 8}],
]
N_CODES = [-(-round(SECONDS * RATE) // hop) for hop in HOPS]


def tiny_generator(
    conditioners: list[list[Any]] = CONDITIONERS,
    hops: tuple[int, ...] = HOPS,
    genres: tuple[str, ...] = ("folk", "rock"),
    network: VQVAE | None = None,
) -> Generator:
    torch.manual_seed(0)
    decoder, quantizer = (
        {"kind": "istft", "dim": 16, "n_blocks": 1},
        {"kind": "ema", "codebook_size": SIZE, "codebook_dim": 4},
    )
    model = {"sample_rate": RATE, "hop_lengths": hops, "dim": 16, "encoder": {"n_blocks": 1}}
    if network is None:
        network = VQVAE(VQVAEConfig.model_validate(model | {"decoder": decoder, "quantizer": quantizer})).eval()
    tokenizer, priors, rate, size = Tokenizer(network), [], network.config.sample_rate, network.config.codebook_size
    for level, kinds in enumerate(conditioners):
        labels, slots = {"genre": list(genres)}, network.config.slots
        spec = PriorSpec(level, list(hops), rate, size, tokenizer.hash, labels, slots)
        transformer = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "context": 24, "attention_window": 12}
        config = {"transformer": transformer, "context_codes": 2, "conditioners": tuple(kinds)}
        prior = Prior(PriorConfig.model_validate(config), spec).eval().requires_grad_(False)
        for parameter in prior.parameters():  # larger than at the start of a training, so that all of it matters
            parameter.mul_(3 if parameter.ndim > 1 else 1)
            parameter.copy_(parameter.half())
        priors.append(prior)
    sampling = [SamplingConfig(top_p=0.95, guidance=2.0), SamplingConfig(top_k=5), SamplingConfig(temperature=0.8)]
    return Generator(tokenizer, priors, sampling[: len(priors)], "cpu")


def bands_generator() -> Generator:
    """Of topology `bands`, with two levels."""
    return tiny_generator(CONDITIONERS[:2], (256, 256), network=small_network())


def export(folder: Path, generator: Generator, int8: bool = False) -> None:
    network, models = generator.tokenizer.network, list(zip(generator.priors, generator.sampling, strict=True))
    export_generator(folder, network, DecodeGraph(network, len(models), spectra=True), models, "tiny", int8)


def given_codes() -> list[np.ndarray]:
    """Two gaps in level 0, one in level 1, and all of level 2 to be drawn."""
    random = np.random.default_rng(0)
    levels = [random.integers(0, SIZE, n) for n in N_CODES]
    levels[0][20:50] = levels[0][80:100] = -1
    levels[1][40:100] = -1
    levels[2][:] = -1
    return levels


def chroma_classes() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 14, N_CODES[0] - 20)


def notes() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 14 << 12, N_CODES[0] - 30)


# What to make, as arguments of the player's `piece`.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "label": {"seed": 2, "labels": {"genre": "rock"}, "temperature": [1.2, 1.0, 0.9]},
    "likeliest": {"seed": 2, "labels": {"genre": "folk"}, "temperature": 0, "guidance": 1.5},
    "text": {"seed": (1 << 63) - 1, "item": 3, "text": "año", "top_k": 4, "top_p": 0.7},
    "chroma": {"seed": 4, "chroma": chroma_classes()},
    "notes": {"seed": 6, "notes": notes(), "guidance": [1.0, 1.5, 1.0]},
    "given": {"seed": 5, "labels": {"genre": "folk"}, "given": given_codes()},
}


def codes_by_torch(generator: Generator, options: dict[str, Any]) -> list[np.ndarray]:
    """The codes of a case."""
    options = {"item": 0, "given": None, "chroma": None, **options}
    item, given, chroma, seed = (options.pop(name) for name in ("item", "given", "chroma", "seed"))
    chosen = PieceOptions(precision="fp32", **options)
    request = make_request(generator.priors, round(SECONDS * RATE), seed, chosen)
    request.items, request.chroma = [item], None if chroma is None else torch.from_numpy(chroma)
    mask = None if given is None else [torch.from_numpy(level)[None] for level in given]
    levels = generate(generator.priors, level_settings(generator.sampling, chosen), request, mask)
    return [level[0].numpy() for level in levels]


def write(folder: Path) -> Generator:
    """The exported generator, and `expected.npz`: the codes of each case, and the waveform of the first."""
    generator = tiny_generator()
    export(folder, generator)
    expected: dict[str, np.ndarray] = {}
    for name, options in CASES.items():
        levels = codes_by_torch(generator, options)
        expected |= {f"{name}-{i}": level.astype(np.int16) for i, level in enumerate(levels)}
    plain = [torch.from_numpy(expected[f"plain-{i}"]).long() for i in range(3)]
    codes = generator.tokenizer.make_codes(plain, round(SECONDS * RATE))
    expected["plain-waveform"] = generator.tokenizer.decode(codes).numpy()
    np.savez_compressed(folder / "expected.npz", allow_pickle=False, **expected)
    return generator


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    write(FOLDER)
