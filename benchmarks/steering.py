"""Do samples have the requested label? Two kinds of tunes that a classifier can tell apart, a small model, 50 pieces per label.

    python benchmarks/steering.py --out /tmp/steering                # renders, trains, samples, classifies
    python benchmarks/steering.py --out /tmp/steering --judge        # samples and classifies with the model that is there
    python benchmarks/steering.py --out /tmp/x --effort 0.02 --pieces 4   # only to see that it works

The tunes are random walks on a scale, rendered by this file: `organ` is low, slow and sustained, `bells` are high, quick and
die away. The classifier is a logistic regression on the mean and spread of the log-mel spectrogram and the mean chroma,
trained on the training tracks; its accuracy on held-out tracks, and on these through the tokenizer, is printed before
the share of pieces that it finds to have the requested label, for each label and guidance. Done is 90 % for each label.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from sklearn.linear_model import LogisticRegression  # comes with librosa
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from audiovq import Generator
from audiovq.data.audio import read_audio

RATE, TRACK_SECONDS, PIECE_SECONDS = 8000, 10.0, 5.0
TRACKS, HELD_OUT = 40, 8  # a label
GENRES = ("organ", "bells")

RECIPE = """
name: steering
data: {{folder: {folder}}}
precision: fp32
tokenizer:
  model:
    sample_rate: 8000
    hop_lengths: [512, 256]
    dim: 96
    encoder: {{front: {{kind: stft, overlap: 8}}, n_blocks: 2}}
    decoder: {{kind: istft, dim: 128, n_blocks: 3, overlap: 8}}
    quantizer: {{kind: ema, codebook_size: 256, codebook_dim: 16, decay: 0.97, revival_fraction: 0.05}}
  losses: {{mel: 5, mel_windows: [512, 2048], stft: 10, stft_windows: [1024, 4096], waveform_l1: 0, commitment: 0.1}}
  vq_start_step: {vq_start_step}
  crop_seconds: 1.0
  training: {{steps: {tokenizer_steps}, batch_size: 8, learning_rate: 0.002, warmup_steps: 10, evaluate_steps: 10000}}
priors:
  - model:
      transformer: {{dim: 128, n_layers: 3, n_heads: 4, context: 128, attention_window: 64, dropout: 0.1}}
      conditioners: [{{kind: label, name: genre, dropout: 0.1}}]
      unconditional_rate: 0.1
    training: {{steps: {prior_steps}, batch_size: 8, learning_rate: 0.002, warmup_steps: 10, evaluate_steps: 10000}}
samples: {{seconds: 5, n: 2}}
"""


def tune(genre: str, random: np.random.Generator) -> np.ndarray:
    """A random walk on the major scale, float [samples]."""
    low, note_seconds, harmonics, decay = (40, 0.5, 9, 0.5) if genre == "organ" else (72, 0.2, 3, 8.0)
    n, n_note = int(TRACK_SECONDS * RATE), int(note_seconds * RATE)
    scale = low + np.array([12 * octave + step for octave in range(2) for step in (0, 2, 4, 5, 7, 9, 11)])
    wave, degree = np.zeros(n + 4 * n_note), int(random.integers(len(scale)))
    for start in range(0, n, n_note):
        degree = int(np.clip(degree + random.integers(-2, 3), 0, len(scale) - 1))
        t = np.arange(n_note if genre == "organ" else 4 * n_note) / RATE
        frequency = 440 * 2 ** ((scale[degree] - 69) / 12)
        tone = sum(
            np.sin(2 * np.pi * k * frequency * t) / k for k in range(1, harmonics + 1) if k * frequency < RATE / 2
        )
        envelope = np.minimum(1, t / 0.01) * np.exp(-decay * t) * np.minimum(1, (t[-1] - t) / 0.02)
        wave[start : start + len(t)] += tone * envelope
    return 0.5 * wave[:n] / np.abs(wave[:n]).max()


def render(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for g, genre in enumerate(GENRES):
        for i in range(TRACKS):
            path = folder / f"{genre}-{i}.flac"
            soundfile.write(path, tune(genre, np.random.default_rng([g, i])), RATE)
            split = "valid" if i < HELD_OUT else "train"
            path.with_suffix(".json").write_text(json.dumps({"genre": genre, "split": split}))


def features(waveform: torch.Tensor) -> np.ndarray:
    """Float [channels, samples] -> [mels · 2 + 12]: loudness apart, so that it cannot tell."""
    mono = waveform.mean(dim=0).numpy()
    mel = librosa.feature.melspectrogram(y=mono, sr=RATE, n_fft=1024, hop_length=256, n_mels=40)
    decibels = librosa.power_to_db(mel, ref=float(mel.max()), top_db=60)
    chroma = librosa.feature.chroma_stft(y=mono, sr=RATE, n_fft=2048, hop_length=512, tuning=0.0)
    return np.concatenate([decibels.mean(axis=1), decibels.std(axis=1), chroma.mean(axis=1)])


def stretches(folder: Path, split: str) -> tuple[list[torch.Tensor], list[str]]:
    """All stretches of PIECE_SECONDS of a split's tracks, and their labels."""
    found, labels = [], []
    for path in sorted(folder.glob("*.flac")):
        facts = json.loads(path.with_suffix(".json").read_text())
        if facts["split"] == split:
            parts = read_audio(path)[0].split(int(PIECE_SECONDS * RATE), dim=1)
            found += parts
            labels += [facts["genre"]] * len(parts)
    return found, labels


def share(classifier: Pipeline, waveforms: list[torch.Tensor], labels: list[str]) -> float:
    return float(np.mean(classifier.predict([features(w) for w in waveforms]) == np.array(labels)))


def judge(out: Path, n_pieces: int, guidances: list[float]) -> bool:
    """Print the shares; True if some guidance reaches 90 % for each label."""
    waveforms, labels = stretches(out / "music", "train")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit([features(w) for w in waveforms], labels)
    generator = Generator.from_pretrained(out / "run")
    real, real_labels = stretches(out / "music", "valid")
    decoded = [generator.tokenizer.decode(generator.tokenizer.encode(w, RATE)) for w in real]
    print(f"{len(real)} stretches of held-out tracks: {share(classifier, real, real_labels):.1%} classified right, "
          f"{share(classifier, decoded, real_labels):.1%} through the tokenizer")  # fmt: skip
    free = list(generator.sample(PIECE_SECONDS, seed=1, n=n_pieces))
    print(f"no label requested: {share(classifier, free, [GENRES[0]] * n_pieces):.1%} {GENRES[0]}")
    good = False
    for guidance in guidances:
        shares = []
        for genre in GENRES:
            began = time.monotonic()
            pieces = generator.sample(PIECE_SECONDS, seed=0, n=n_pieces, labels={"genre": genre}, guidance=guidance)
            shares.append(share(classifier, list(pieces), [genre] * n_pieces))
            print(f"guidance {guidance:g}, {genre}: {shares[-1]:.1%} of {n_pieces} ({time.monotonic() - began:.0f} s)")
            for i in range(2):
                soundfile.write(out / f"{genre}-guidance-{guidance:g}-{i}.wav", pieces[i % n_pieces].T.numpy(), RATE)
        good |= min(shares) >= 0.9
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--effort", type=float, default=1.0, help="of the training steps")
    parser.add_argument("--pieces", type=int, default=50, help="a label and guidance")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    arguments = parser.parse_args()
    out = arguments.out
    if not arguments.judge:
        render(out / "music")
        steps = {
            name: max(4, round(arguments.effort * full))
            for name, full in (("tokenizer_steps", 800), ("prior_steps", 300))
        }
        recipe = out / "steering.yaml"
        recipe.write_text(
            RECIPE.format(folder=(out / "music").resolve(), vq_start_step=steps["tokenizer_steps"] // 20, **steps)
        )
        began = time.monotonic()
        command = [sys.executable, "-m", "audiovq", "train", str(recipe), "--out", str(out / "run")]
        subprocess.run(command, check=True)
        print(f"trained in {time.monotonic() - began:.0f} s")
    sys.exit(0 if judge(out, arguments.pieces, arguments.guidance) else 1)


if __name__ == "__main__":
    main()
