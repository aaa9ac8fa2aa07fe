"""How well does the same small transformer learn the codes of each tokenizer?

    python benchmarks/predictability.py --work WORK --data MUSIC [--minutes 6] [--optimizer muon] [--only NAME ...]

WORK is the folder of `tokenizer_peers.py train`. Every tokenizer encodes the same hour of MUSIC, which should be of
one kind, because a transformer learns little in minutes. The label `split` can name the held-out tracks. The codes
of all levels become one stream (by time, coarser first), and a transformer of fixed size trains on it for some
CPU-minutes. Printed are the bits per second of audio on held-out tracks, their share of the unigram entropy of each
level, and the Fréchet distance of generated music from these tracks, with yardsticks.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import safetensors.torch
import torch
from candidates import CANDIDATES, SAMPLE_RATE, Candidate
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from audiovq.data.audio import read_audio
from audiovq.data.tracks import DataConfig, scan
from audiovq.evaluation.embedding import MusicEmbedding
from audiovq.evaluation.frechet import frechet_distance
from audiovq.prior.prior import Prior, PriorConfig, PriorSpec
from audiovq.prior.transformer import TransformerConfig
from audiovq.recipe import PriorTrainingConfig
from audiovq.sampling.engine import new_engine
from audiovq.training.optimizer import make_optimizer
from audiovq.utils.progress import track as progress

TRAIN_SECONDS, VALID_SECONDS, MOST_OF_A_TRACK = 3600, 720, 60.0
PIECES, PIECE_SECONDS, COMPONENTS = 16, 12.0, 16
BATCH = 4
LEARNING_RATES = {"adamw": 2e-3, "muon": 5e-3}  # adamw with 5e-3 learns less
TRANSFORMER = TransformerConfig(dim=192, n_layers=4, n_heads=4, context=1024)


def choose_music(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The middle minute of tracks in a fixed random order: up to an hour for training, and held-out tracks."""
    found = scan(folder, DataConfig(folder=str(folder), valid_fraction=0.2))
    chosen = []
    for split, most in (("train", TRAIN_SECONDS), ("valid", VALID_SECONDS)):
        tracks, parts, seconds = found.tracks.of(split), [], 0.0
        for i in np.random.default_rng(0).permutation(len(tracks)):
            track = tracks[int(i)]
            n = min(track.samples, int(MOST_OF_A_TRACK * track.sample_rate))
            waveform, _ = read_audio(folder / track.path, SAMPLE_RATE, 1, (track.samples - n) // 2, n)
            parts.append(np.round(waveform[0].clamp(-1, 1).numpy() * 32767).astype(np.int16))
            seconds += n / track.sample_rate
            if seconds >= most:
                break
        chosen.append(parts)
    return chosen[0], chosen[1]


@dataclass
class Music:
    """The same for all tokenizers: the music, embeddings of its held-out tracks, and two yardsticks."""

    train: list[np.ndarray]
    held_out: list[np.ndarray]
    real: list[np.ndarray]
    real_distance: float
    noise_distance: float

    @staticmethod
    def load(work: Path, folder: Path) -> Music:
        """Read and embed the music; the result is saved in WORK."""
        path = work / f"predictability-{folder.name}.pickle"
        if path.exists():
            return pickle.loads(path.read_bytes())
        train, held_out = choose_music(folder)
        embed = MusicEmbedding()
        real = [embed(_float(track), SAMPLE_RATE) for track in held_out if len(track) >= 4 * SAMPLE_RATE]
        pieces, generator = [_float(track) for track in excerpts(train)], torch.Generator().manual_seed(0)
        noise = [0.1 * torch.randn(piece.shape, generator=generator) for piece in pieces]
        distances = [
            frechet_distance([embed(waveform, SAMPLE_RATE) for waveform in waveforms], real, COMPONENTS)
            for waveforms in (pieces, noise)
        ]
        music = Music(train, held_out, real, *distances)
        path.write_bytes(pickle.dumps(music))
        return music


@dataclass
class Streams:
    """Codes of all levels as one sequence: for the time of each code of level 0 the codes of all levels.

    Code c of level k is the symbol k · codebook_size + c.
    """

    candidate: Candidate

    def __post_init__(self) -> None:
        hops = self.candidate.hop_lengths
        self.counts = [hops[0] // hop for hop in hops]  # codes per code of level 0
        self.n_symbols = len(hops) * self.candidate.codebook_size
        self.rate = sum(SAMPLE_RATE / hop for hop in hops)
        self.level_of = torch.tensor([k for k, n in enumerate(self.counts) for _ in range(n)])  # a place in the frame

    def join(self, levels: list[Tensor]) -> Tensor:  # int64 [b, t] a level -> [b, frames * sum(counts)]
        size = self.candidate.codebook_size
        n_frames = min(level.shape[1] // n for level, n in zip(levels, self.counts, strict=True))
        frames = [
            rearrange(level[:, : n_frames * n] + k * size, "b (f n) -> b f n", n=n)
            for k, (level, n) in enumerate(zip(levels, self.counts, strict=True))
        ]
        return torch.cat(frames, dim=2).flatten(1)

    def split(self, stream: Tensor) -> list[Tensor]:
        frames = rearrange(stream, "b (f n) -> b f n", n=sum(self.counts))
        return [
            (part - k * self.candidate.codebook_size).flatten(1)
            for k, part in enumerate(frames.split(self.counts, dim=2))
        ]

    def allowed(self, place: int) -> slice:
        """The symbols that are possible at a place of the stream."""
        level, size = int(self.level_of[place % len(self.level_of)]), self.candidate.codebook_size
        return slice(level * size, (level + 1) * size)

    @torch.inference_mode()
    def encode(self, tracks: list[np.ndarray], title: str) -> list[Tensor]:
        streams = []
        for track in progress(tracks, title, len(tracks)):
            waveform = torch.from_numpy(track.astype(np.float32) / 32768)[None, None]
            waveform = F.pad(waveform, (0, -waveform.shape[-1] % self.candidate.multiple))
            streams.append(self.join(self.candidate.encode(waveform))[0])
        return streams


def new_prior(streams: Streams) -> Prior:
    torch.manual_seed(0)
    return Prior(PriorConfig(transformer=TRANSFORMER), PriorSpec(0, [1], SAMPLE_RATE, streams.n_symbols, "", {}))


def bits(prior: Prior, windows: Tensor, begins: Tensor) -> Tensor:
    """Summed negative log2-likelihood of windows [b, t]; `begins` [b] is True where a track begins."""
    before = torch.where(begins, prior.spec.codebook_size, windows[:, 0])
    previous = torch.cat([before[:, None], windows[:, :-1]], dim=1)
    logits = prior(previous, torch.zeros(1, windows.shape[1], TRANSFORMER.dim))
    nll = F.cross_entropy(logits.flatten(0, 1), windows.flatten(), reduction="none").view_as(windows)
    nll = torch.where(
        torch.arange(windows.shape[1]) == 0, nll * begins[:, None], nll
    )  # else the first code is only context
    return nll.sum() / math.log(2)


def train_prior(prior: Prior, streams: list[Tensor], seconds: float, kind: str) -> int:
    """Train for some CPU-seconds; returns the number of steps."""
    length = TRANSFORMER.context + 1
    long_enough = [stream for stream in streams if len(stream) >= length]
    weights = np.array([len(stream) for stream in long_enough], dtype=float)
    rate = LEARNING_RATES[kind]
    optimizer = make_optimizer(prior, PriorTrainingConfig(optimizer=kind, learning_rate=rate, weight_decay=0.1))
    began, step = time.process_time(), 0
    prior.train()
    while (passed := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, passed / 0.05) * 0.5 * (1 + math.cos(math.pi * passed))
        random = np.random.default_rng([1, step])
        chosen = [long_enough[i] for i in random.choice(len(weights), BATCH, p=weights / weights.sum())]
        starts = [int(random.integers(0, len(stream) - length + 1)) for stream in chosen]
        windows = torch.stack([stream[s : s + length] for stream, s in zip(chosen, starts, strict=True)])
        loss = bits(prior, windows, torch.tensor([s == 0 for s in starts])) / windows.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    prior.eval()
    return step


@torch.inference_mode()
def held_out_bits(prior: Prior, streams: list[Tensor]) -> float:
    """Bits of all held-out streams, window by window; every code counts once."""
    total = 0.0
    for stream in streams:
        for start in range(0, len(stream) - 1, TRANSFORMER.context):
            window = stream[None, start : start + TRANSFORMER.context + 1]
            total += float(bits(prior, window, torch.tensor([start == 0])))
    return total


def unigram_bits(train: list[Tensor], held_out: list[Tensor], streams: Streams) -> float:
    """Bits of the held-out streams under the code frequencies of each level in the training tracks."""
    size = streams.candidate.codebook_size
    counts = torch.bincount(torch.cat(train), minlength=streams.n_symbols).double().view(-1, size) + 1
    cost = -(counts / counts.sum(dim=1, keepdim=True)).log2().flatten()
    return float(cost[torch.cat(held_out)].sum())


@torch.inference_mode()
def generate(prior: Prior, streams: Streams) -> list[Tensor]:
    """New music, float [1, samples] a piece."""
    candidate = streams.candidate  # may decode only certain numbers of frames
    step = len(streams.level_of) * max(1, candidate.multiple // candidate.hop_lengths[0])
    n = math.ceil(PIECE_SECONDS * streams.rate / step) * step
    generator = torch.Generator().manual_seed(0)
    engine, nothing = new_engine(prior, PIECES, "auto"), torch.zeros(PIECES, TRANSFORMER.dim)
    codes = torch.full((PIECES, n + 1), prior.spec.codebook_size)
    for t in range(n):
        logits = engine.step(codes[:, t], nothing)
        allowed = streams.allowed(t)
        noise = -torch.empty(PIECES, allowed.stop - allowed.start).exponential_(generator=generator).log()
        codes[:, t + 1] = (logits[:, allowed] + noise).argmax(dim=1) + allowed.start
    decoded = [candidate.decode(streams.split(row[None]))[0] for row in codes[:, 1:]]
    return [waveform[:, : int(PIECE_SECONDS * SAMPLE_RATE)] for waveform in decoded]


@torch.inference_mode()
def reconstruct(streams: Streams, tracks: list[np.ndarray]) -> list[Tensor]:
    waveforms = []
    for track in tracks:
        waveform = torch.from_numpy(track.astype(np.float32) / 32768)[None, None]
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % streams.candidate.multiple))
        waveforms.append(streams.candidate.decode(streams.candidate.encode(waveform))[0, :, : len(track)])
    return waveforms


def excerpts(tracks: list[np.ndarray]) -> list[np.ndarray]:
    """Excerpts of different tracks, as many and as long as the generated pieces."""
    n = int(PIECE_SECONDS * SAMPLE_RATE)
    return [track[(len(track) - n) // 2 :][:n] for track in tracks if len(track) >= n][:PIECES]


def one(name: str, work: Path, data: Path, minutes: float, kind: str) -> dict:
    """All results of one tokenizer."""
    music = Music.load(work, data)
    candidate = CANDIDATES[name]().eval()
    folder = work / name.replace("/", "-")
    safetensors.torch.load_model(candidate, str(folder / "model.safetensors"))
    streams = Streams(candidate)
    training, held_out = (
        streams.encode(music.train, f"{name}: encode"),
        streams.encode(music.held_out, f"{name}: held out"),
    )
    prior = new_prior(streams)
    steps = train_prior(prior, training, 60 * minutes, kind)
    seconds = sum(len(stream) for stream in held_out) / streams.rate
    embed = MusicEmbedding()

    def distance(waveforms: list[Tensor]) -> float:
        return frechet_distance([embed(waveform, SAMPLE_RATE) for waveform in waveforms], music.real, COMPONENTS)

    facts = {
        "name": name, "codes_per_second": streams.rate, "raw": candidate.bits_per_second, "steps": steps,
        "bits": held_out_bits(prior, held_out) / seconds, "unigram": unigram_bits(training, held_out, streams) / seconds,
        "parameters": sum(p.numel() for p in prior.transformer.parameters()), "minutes": minutes,
        "generated": distance(generate(prior, streams)),
        "reconstructed": distance(reconstruct(streams, excerpts(music.train))),
        "real": music.real_distance, "noise": music.noise_distance,
        "data": data.name, "optimizer": kind, "hours": sum(map(len, music.train)) / SAMPLE_RATE / 3600, "held_out_minutes": seconds / 60,
    }  # fmt: skip
    (folder / "predictability.json").write_text(json.dumps(facts, indent=1))
    return facts


def _float(track: np.ndarray) -> Tensor:
    return torch.from_numpy(track.astype(np.float32) / 32768)[None]


def markdown(rows: list[dict]) -> str:
    """One line per tokenizer, fewest bits per second first."""
    first = rows[0]
    lines = [
        f"Transformer of {first['parameters'] / 1e6:.1f} M, {first['optimizer']}, {first['minutes']:g} CPU-minutes on {first['hours']:.1f} h; "
        f"{first['held_out_minutes']:.0f} held-out minutes. Fréchet distance (musicnn, {COMPONENTS} components) from these: "
        f"real {first['real']:.1f}, white noise {first['noise']:.0f}\n",
        "| tokenizer | codes/s | raw bits/s | unigram bits/s | **bits/s** ↓ | of unigram | Fréchet, generated ↓ | reconstructed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["bits"]):
        lines.append(
            f"| {row['name']} | {row['codes_per_second']:.0f} | {row['raw']:.0f} | {row['unigram']:.0f} "
            f"| {row['bits']:.0f} | {row['bits'] / row['unigram']:.0%} | {row['generated']:.1f} | {row['reconstructed']:.1f} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--work", type=Path, required=True, help="Folder with the tokenizers of tokenizer_peers.py.")
@click.option("--data", type=Path, required=True, help="Music to learn.")
@click.option("--minutes", default=6.0, show_default=True, help="CPU-minutes per transformer.")
@click.option("--optimizer", type=click.Choice(list(LEARNING_RATES)), default="adamw", show_default=True)
@click.option("--only", multiple=True, help="Names of tokenizers; default all in WORK.")
def main(work: Path, data: Path, minutes: float, optimizer: str, only: tuple[str, ...]) -> None:
    """Bits per second of a fixed transformer on the codes of each tokenizer. Finished results are reused."""
    torch.set_num_threads(1)
    os.nice(10)
    there = [name for name in CANDIDATES if (work / name.replace("/", "-") / "facts.json").exists()]
    rows = []
    for name in only or there:
        done = work / name.replace("/", "-") / "predictability.json"
        facts = json.loads(done.read_text()) if done.exists() else {}
        arguments = {"minutes": minutes, "data": data.name, "optimizer": optimizer}
        same = all(facts.get(key) == value for key, value in arguments.items())
        rows.append(facts if same else one(name, work, data, minutes, optimizer))
    print(markdown(rows))


if __name__ == "__main__":
    main()
