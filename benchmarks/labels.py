"""Is the label heard that was asked for? A classifier of real tracks judges generated pieces.

    python benchmarks/labels.py runs/mine --label timbre

Logistic regression learns the values of a label from excerpts of the run's training tracks: on the means and deviations of
mel-frequency cepstral coefficients, or on musicnn's embedding (--features). The table has the share that it gets right: of
held-out tracks, of their reconstructions, and of new pieces, `--pieces` a value.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from pathlib import Path

import librosa
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from audiovq import Generator
from audiovq.data.tracks import Scan
from audiovq.evaluation.embedding import MusicEmbedding
from audiovq.evaluation.evaluate_generator import excerpts
from audiovq.evaluation.held_out import training_and_held_out_music


def with_value(music: Scan, label: str, value: str) -> Scan:
    chosen = np.array([labels.get(label) == value for labels in music.tracks.labels()])
    return dataclasses.replace(music, tracks=music.tracks.take(chosen))


def cepstral_statistics(waveform: Tensor, rate: int) -> np.ndarray:
    """Means and deviations of 19 coefficients (all but that of the level), and of their changes, float [57]."""
    mono = waveform.mean(dim=0).numpy()
    found = librosa.feature.mfcc(y=mono, sr=rate, n_mfcc=20, n_fft=4096, hop_length=2048)[1:]
    return np.concatenate([found.mean(axis=1), found.std(axis=1), np.diff(found, axis=1).std(axis=1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--label", default="timbre")
    parser.add_argument("--tracks", type=int, default=40, help="training tracks a value")
    parser.add_argument("--pieces", type=int, default=10, help="generated pieces and held-out tracks a value")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--features", choices=("mfcc", "musicnn"), default="mfcc")
    parser.add_argument("--guidance", type=float, help="default: the model's")
    options = parser.parse_args()
    generator = Generator.from_pretrained(options.run)
    tokenizer, values = generator.tokenizer, generator.labels[options.label]
    training, held_out = training_and_held_out_music(options.run, str(options.run), None)
    embed = MusicEmbedding(generator.device) if options.features == "musicnn" else None

    def features(waves: list[Tensor]) -> list[np.ndarray]:
        if embed:
            return [embed(wave, tokenizer.sample_rate).mean(axis=0) for wave in waves]
        return [cepstral_statistics(wave, tokenizer.sample_rate) for wave in waves]

    x, y = [], []
    for value in values:
        found = excerpts(with_value(training, options.label, value), options.tracks, options.seconds, tokenizer)
        x += features([piece.waveform for piece in found])
        y += [value] * len(found)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(np.stack(x), y)
    print(f"{len(x)} training tracks, {len(values)} values of {options.label}, excerpts of {options.seconds:g} s\n")
    print(
        f"| {options.label} | held-out tracks | reconstructed | generated | mistaken for |\n|---|---|---|---|---|",
        flush=True,
    )
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for value in values:
        real = excerpts(with_value(held_out, options.label, value), options.pieces, options.seconds, tokenizer)
        waves = [piece.waveform for piece in real]
        again = [tokenizer.decode(tokenizer.encode(wave, tokenizer.sample_rate)) for wave in waves]
        labels = {options.label: value}
        new = list(generator.sample(options.seconds, 0, options.pieces, labels=labels, guidance=options.guidance))
        cells, mistaken = [], collections.Counter[str]()
        for name, group in (("held out", waves), ("reconstructed", again), ("generated", new)):
            heard = classifier.predict(np.stack(features(group)))
            right[name] += [bool(each == value) for each in heard]
            cells.append(f"{np.mean(heard == value):.0%}")
            if name == "generated":
                mistaken.update(str(each) for each in heard if each != value)
        wrong = ", ".join(f"{n} {each}" for each, n in mistaken.items())
        print(f"| {value} | {' | '.join(cells)} | {wrong} |", flush=True)
    print(f"| all | {' | '.join(f'{np.mean(each):.1%}' for each in right.values())} | |")


if __name__ == "__main__":
    main()
