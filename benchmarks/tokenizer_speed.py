"""How fast tokenizers encode and decode on one core, at the size that users run them.

    python benchmarks/tokenizer_speed.py [--seconds 10] [--rounds 5]

Ours are the recipes `music` and `codec` and the bundled model; beside them EnCodec 24 kHz (at 6 kbps) and DAC 44.1 kHz at their published
sizes, from transformers' configs. Weights are random but for the bundled model: speed does not depend on them. All in one
process on one thread, in turns; the clock is the process's CPU time, and the best round of each counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import click
import torch
from torch import Tensor
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from audiovq import Tokenizer
from audiovq.api import bundled_model
from audiovq.data.audio import read_audio
from audiovq.recipe import load_recipe
from audiovq.tokenizer.vqvae import VQVAE

TRACK = Path(__file__).parent.parent / "samples" / "recordings" / "highland-mist-a.opus"
ENCODEC_KBPS = 6.0


@dataclass
class Coder:
    name: str
    sample_rate: int
    parameters: int
    encode: Callable[[Tensor], Any]  # float [1, 1, samples]
    decode: Callable[[Any], Any]


def ours(name: str, network: VQVAE) -> Coder:
    def encode(waveform: Tensor) -> list[Tensor]:
        n = waveform.shape[-1] // network.config.hop_lengths[0] * network.config.hop_lengths[0]
        return network.encode(waveform[..., :n])

    return Coder(name, network.config.sample_rate, size(network), encode, network.decode)


def encodec() -> Coder:
    model = EncodecModel(EncodecConfig()).eval()
    return Coder(
        f"EnCodec 24 kHz, {ENCODEC_KBPS:g} kbps", model.config.sampling_rate, size(model),
        lambda waveform: model.encode(waveform, bandwidth=ENCODEC_KBPS),
        lambda coded: model.decode(coded.audio_codes, coded.audio_scales),
    )  # fmt: skip


def dac() -> Coder:
    model = DacModel(DacConfig(sampling_rate=44100, n_codebooks=9)).eval()
    return Coder(
        "DAC 44.1 kHz, 7.8 kbps", model.config.sampling_rate, size(model),
        model.encode, lambda coded: model.decode(audio_codes=coded.audio_codes),
    )  # fmt: skip


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def turn(coder: Coder, waveform: Tensor) -> tuple[float, float]:
    """CPU-seconds to encode and to decode."""
    began = time.process_time()
    coded = coder.encode(waveform)
    encoded = time.process_time()
    coder.decode(coded)
    return encoded - began, time.process_time() - encoded


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Music that is encoded and decoded at a time.")
@click.option("--rounds", default=5, show_default=True)
@torch.inference_mode()
def main(seconds: float, rounds: int) -> None:
    """Audio-seconds a CPU-second of one core."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    coders = [ours(f"audiovq, {name}", VQVAE(load_recipe(name).tokenizer.model).eval()) for name in ("music", "codec")]
    coders += [ours("audiovq, bundled", Tokenizer.from_pretrained(bundled_model()).network), encodec(), dac()]
    best = {coder.name: [float("inf")] * 2 for coder in coders}
    for _ in range(rounds):
        for coder in coders:
            waveform, _ = read_audio(TRACK, coder.sample_rate, 1, 0, None)
            took = turn(coder, waveform[None, :, : round(seconds * coder.sample_rate)])
            best[coder.name] = [min(pair) for pair in zip(best[coder.name], took, strict=True)]
    print(f"{seconds:g} s of {TRACK.name}, one thread, best of {rounds} rounds in turns\n")
    print("| tokenizer | parameters, M | encode, × real time | decode |\n|---|---|---|---|")
    for coder in coders:
        encode, decode = (seconds / took for took in best[coder.name])
        print(f"| {coder.name}, {coder.sample_rate} Hz | {coder.parameters / 1e6:.1f} | {encode:.3g} | {decode:.3g} |")


if __name__ == "__main__":
    main()
