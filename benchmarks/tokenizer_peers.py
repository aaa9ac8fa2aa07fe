"""Train tokenizers for comparison: the same music, losses and CPU-seconds, and nearly the same bit rate.

    python benchmarks/tokenizer_peers.py train --data MUSIC --test TEST_MUSIC --work WORK [--minutes 30] [--only NAME ...]
    python benchmarks/tokenizer_peers.py table --work WORK

Each candidate trains in a process of its own on one thread, two at a time, and is timed by the CPU time of its process,
which other work on the machine does not change. The learning rate is the best of a few after half a CPU-minute each,
which does not count. The test music, decoded from each prefix of levels, is saved in WORK, and `table` evaluates it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import safetensors.torch
import torch
from candidates import CANDIDATES, SAMPLE_RATE, Candidate
from torch import Tensor, nn

from audiovq.data.audio import audio_info, read_audio
from audiovq.evaluation.metrics import compare
from audiovq.tokenizer.losses import ReconstructionLoss
from audiovq.utils.progress import track as progress

BATCH, CROP_SAMPLES = 4, 24576
EXCERPT_SECONDS, MAX_EXCERPTS = 10.0, 20
AUDIO = {".opus", ".ogg", ".flac", ".mp3", ".wav"}


def prepare(data: Path, test: Path, work: Path) -> None:
    """Training music as one int16 array, test music as excerpts of 10 s, one from the middle of each track."""
    if (work / "test.npy").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    parts, names, paths = [], [], music_files(data)
    for path in progress(paths, "read music", len(paths)):
        waveform, _ = read_audio(path, SAMPLE_RATE, 1)
        parts.append(_int16(waveform[0]))
        names.append(str(path.relative_to(data)))
    excerpts, tested = [], []
    paths = [path for path in music_files(test) if audio_info(path).seconds >= 30]
    paths = paths[:: -(-len(paths) // MAX_EXCERPTS)]
    n = int(EXCERPT_SECONDS * SAMPLE_RATE)
    for path in progress(paths, "read test", len(paths)):
        facts = audio_info(path)
        start = facts.samples // 2
        waveform, _ = read_audio(path, SAMPLE_RATE, 1, start, int((EXCERPT_SECONDS + 1) * facts.sample_rate))
        if waveform[..., :n].shape[-1] == n and waveform.abs().max() > 0.02:
            excerpts.append(_int16(waveform[0, :n]))
            tested.append(str(path.relative_to(test)))
    lengths = [len(part) for part in parts]
    np.save(work / "train.npy", np.concatenate(parts))
    (work / "music.json").write_text(json.dumps({"train": names, "lengths": lengths, "test": tested}, indent=1))
    np.save(work / "test.npy", np.stack(excerpts))


def music_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)


def _float(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples.astype(np.float32) / 32768)


def _int16(waveform: Tensor) -> np.ndarray:
    return (waveform.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()


def crops(music: np.ndarray, step: int, samples: int, seed: int) -> Tensor:
    """The batch of a step, float [BATCH, 1, samples]; the same crops for every candidate."""
    starts = np.random.default_rng([seed, step]).integers(0, len(music) - samples, BATCH)
    return _float(np.stack([music[s : s + samples] for s in starts]))[:, None]


def fit(candidate: Candidate, music: np.ndarray, seconds: float, rate: float, note: Path | None = None) -> dict:
    """Train for some CPU-seconds with a cosine learning rate. Returns the steps, time, loss and learning rate."""
    losses = ReconstructionLoss(candidate.losses, SAMPLE_RATE)
    optimizer = torch.optim.AdamW(candidate.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    samples = CROP_SAMPLES // candidate.multiple * candidate.multiple
    began, step, smooth = time.process_time(), 0, math.nan
    candidate.train()
    while (used := time.process_time() - began) < seconds:
        passed = used / seconds
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, passed / 0.02) * 0.5 * (1 + math.cos(math.pi * passed))
        waveform = crops(music, step, samples, candidate.seed)
        reconstructions, auxiliary = candidate(waveform)
        loss = sum(losses.weighted(losses(y, waveform), step) for y in reconstructions) + auxiliary
        assert torch.isfinite(loss), f"loss {loss} at step {step}"
        loss.backward()
        nn.utils.clip_grad_norm_(candidate.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = float(loss.detach())
        smooth = now if math.isnan(smooth) else 0.97 * smooth + 0.03 * now
        step += 1
        if note and step % 100 == 0:
            note.write_text(f"step {step}, {used:.0f} of {seconds:.0f} CPU-seconds, loss {smooth:.3f}\n")
    return {"steps": step, "cpu_seconds": used, "loss": smooth, "learning_rate": rate}


@torch.inference_mode()
def render(candidate: Candidate, excerpts: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Test music decoded from each prefix of levels, int16 [levels, excerpts, samples], and its codes."""
    candidate.eval()
    rendered, codes = [], []
    for excerpt in excerpts:
        waveform = _float(excerpt)[None, None]
        waveform = nn.functional.pad(waveform, (0, -waveform.shape[-1] % candidate.multiple))
        levels = candidate.encode(waveform)
        prefixes = [candidate.decode(levels[: k + 1])[0, 0, : len(excerpt)] for k in range(len(levels))]
        rendered.append(np.stack([_int16(prefix) for prefix in prefixes]))
        codes.append([level[0].numpy().astype(np.int32) for level in levels])
    return np.stack(rendered, axis=1), [np.stack(level) for level in zip(*codes, strict=True)]


def train_one(name: str, make: Callable[[], Candidate], work: Path, minutes: float) -> None:
    """Train one candidate in this process: try learning rates, train, render the test music, save everything."""
    torch.set_num_threads(1)
    os.nice(10)
    folder = work / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    music = np.load(work / "train.npy", mmap_mode="r")
    example = make()
    seed, rates = example.seed, example.learning_rates

    def fresh() -> Candidate:
        torch.manual_seed(seed)
        return make()

    probes = {rate: fit(fresh(), music, min(30.0, 6 * minutes), rate)["loss"] for rate in rates}
    candidate = fresh()
    facts = fit(candidate, music, 60 * minutes, min(probes, key=lambda rate: probes[rate]), folder / "progress.txt")
    safetensors.torch.save_model(candidate, str(folder / "model.safetensors"))
    rendered, codes = render(candidate, np.load(work / "test.npy"))
    np.save(folder / "rendered.npy", rendered)
    np.savez(folder / "codes.npz", *codes)
    facts |= {
        "name": name, "probes": probes, "bits_per_second": candidate.bits_per_second,
        "hop_lengths": candidate.hop_lengths, "codebook_size": candidate.codebook_size,
        "parameters": sum(p.numel() for p in candidate.parameters()),
    }  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def train_all(names: list[str], script: str, work: Path, minutes: float, jobs: int) -> None:
    """Train each candidate in a process of its own, except finished ones."""

    def one(name: str) -> None:
        if not (work / name.replace("/", "-") / "facts.json").exists():
            began = time.monotonic()
            command = [sys.executable, script, "one", name, "--work", str(work), "--minutes", str(minutes)]
            subprocess.run(command, check=True)
            print(f"{name}: done in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        done = [pool.submit(one, name) for name in names]
    for each in done:  # all have run when the first error is raised
        each.result()


@click.group()
def main() -> None:
    """Train and compare tokenizers."""


@main.command()
@click.option("--data", type=Path, required=True, help="Music to train on.")
@click.option("--test", type=Path, required=True, help="Other music for the evaluation.")
@click.option("--work", type=Path, required=True, help="Folder for all results.")
@click.option("--minutes", default=30.0, help="CPU-minutes per candidate.")
@click.option("--jobs", default=2, help="Candidates at a time, one thread each.")
@click.option("--only", multiple=True, help="Names of candidates; default all.")
def train(data: Path, test: Path, work: Path, minutes: float, jobs: int, only: tuple[str, ...]) -> None:
    """Train the candidates that are not finished."""
    prepare(data, test, work)
    train_all(list(only or CANDIDATES), sys.argv[0], work, minutes, jobs)


@main.command()
@click.option("--work", type=Path, required=True)
def table(work: Path) -> None:
    """Print the quality of every prefix of levels and the speed on one core; also writes table.json in WORK."""
    references = np.load(work / "test.npy")
    rows = []
    for path in sorted(work.glob("*/facts.json")):
        facts = json.loads(path.read_text())
        if "prefixes" not in facts:
            rendered = np.load(path.parent / "rendered.npy", mmap_mode="r")
            facts["prefixes"] = [
                evaluate(level, references) for level in progress(rendered, facts["name"], len(rendered))
            ]
            path.write_text(json.dumps(facts, indent=1))
        rows.append(facts)
    measure_speed(rows, references[0], work)
    (work / "table.json").write_text(json.dumps(rows, indent=1))
    print(markdown(rows, len(references)))


def evaluate(rendered: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Mean of each metric over the excerpts, int16 [excerpts, samples] twice."""
    found = [compare(_float(a)[None], _float(b)[None], SAMPLE_RATE) for a, b in zip(rendered, references, strict=True)]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


@torch.inference_mode()
def measure_speed(rows: list[dict], excerpt: np.ndarray, work: Path, rounds: int = 5) -> None:
    """Seconds of audio per CPU-second of one core; candidates take turns, the best round counts."""
    torch.set_num_threads(1)
    loaded = []
    for facts in rows:
        candidate = CANDIDATES[facts["name"]]().eval()
        safetensors.torch.load_model(candidate, str(work / facts["name"].replace("/", "-") / "model.safetensors"))
        loaded.append(candidate)
        facts["encode_x"] = facts["decode_x"] = 0.0
    for _ in range(rounds):
        for facts, candidate in zip(rows, loaded, strict=True):
            n = len(excerpt) // candidate.multiple * candidate.multiple
            waveform = _float(excerpt[:n])[None, None]
            began = time.process_time()
            codes = candidate.encode(waveform)
            encoded = time.process_time()
            candidate.decode(codes)
            decoded = time.process_time()
            facts["encode_x"] = max(facts["encode_x"], n / SAMPLE_RATE / (encoded - began))
            facts["decode_x"] = max(facts["decode_x"], n / SAMPLE_RATE / (decoded - encoded))


def markdown(rows: list[dict], n_excerpts: int) -> str:
    """One line per candidate, best mel distance first."""
    rows = sorted(rows, key=lambda facts: facts["prefixes"][-1]["mel_distance"])
    lines = [
        f"{n_excerpts} excerpts of {EXCERPT_SECONDS:.0f} s, {rows[0]['cpu_seconds'] / 60:.0f} CPU-minutes each\n",
        "| tokenizer | kbps | codes/s | parameters, M | steps | mel ↓ (prefixes) | STFT ↓ | SI-SDR, dB ↑ | level, dB | chroma ↓ | CQT ↓ "
        "| encode, × real time, 1 core | decode |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for facts in rows:
        last = facts["prefixes"][-1]
        prefixes = " / ".join(f"{prefix['mel_distance']:.3f}" for prefix in facts["prefixes"])
        rate = sum(SAMPLE_RATE / hop for hop in facts["hop_lengths"])
        lines.append(
            f"| {facts['name']} | {facts['bits_per_second'] / 1000:.2f} | {rate:.0f} | {facts['parameters'] / 1e6:.1f} "
            f"| {facts['steps']} | {prefixes} | {last['stft_distance']:.2f} | {last['si_sdr_db']:.1f} "
            f"| {last['level_db']:.1f} | {last['chroma_distance']:.3f} | {last['cqt_distance']:.3f} | {facts['encode_x']:.0f} | {facts['decode_x']:.0f} |"
        )
    return "\n".join(lines)


@main.command()
@click.argument("name")
@click.option("--work", type=Path, required=True)
@click.option("--minutes", type=float, required=True)
def one(name: str, work: Path, minutes: float) -> None:
    """Train one candidate in this process."""
    train_one(name, CANDIDATES[name], work, minutes)


if __name__ == "__main__":
    main()
