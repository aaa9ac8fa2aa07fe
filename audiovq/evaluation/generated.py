"""Is what a model generates like the music it learned from? Distances, statistics and label accuracy, each beside real music."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from audiovq.data.codes import Codes
from audiovq.evaluation.confidence import mean_estimate
from audiovq.evaluation.frechet import frechet_estimate, frechet_floor
from audiovq.evaluation.music_statistics import music_statistics

Embed = Callable[[Tensor, int], np.ndarray]  # float [channels, samples] and sample rate -> [windows, dim]

N_COMPONENTS = 32  # of the embedding, at most
WINDOWS_A_COMPONENT = 4  # at least, or fewer components are compared


@dataclass
class Piece:
    """An excerpt of a real track, or a generated piece (each its own track)."""

    waveform: Tensor  # float [channels, samples]
    track: str
    labels: Mapping[str, str] = field(default_factory=dict)  # the track's own, or those asked for


def generated_report(
    generated: Sequence[Piece], train: Sequence[Piece], held_out: Sequence[Piece], sample_rate: int, embed: Embed,
    yardsticks: Mapping[str, Sequence[Piece]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Judge generated music; every figure stands beside the same figure of real music.

    Args:
        embed: such as `MusicEmbedding`.
        yardsticks: more sets to measure from the held-out music, such as its reconstructions.
    Returns:
        sets: pieces, tracks and windows of each set.
        frechet: the distance of each set from the held-out music, with `ci95`; `floor` is the held-out music's own halves.
            Sets should be of like size, because few windows raise the distance.
        statistics: `music_statistics` of each set, mean and `ci95` over tracks.
        labels: see `label_accuracy`.
    """
    sets = {"generated": generated, "training": train, **(yardsticks or {}), "held-out": held_out}
    empty = [name for name, pieces in sets.items() if not pieces]
    if empty:
        raise ValueError(f"expected at least one piece of each set, found none of: {', '.join(empty)}")
    vectors = {name: [embed(piece.waveform, sample_rate) for piece in pieces] for name, pieces in sets.items()}
    by_track = {name: _by_track(pieces, vectors[name]) for name, pieces in sets.items()}
    return {
        "sets": {
            name: {"pieces": len(pieces), "tracks": len(by_track[name]), "windows": sum(map(len, vectors[name]))}
            for name, pieces in sets.items()
        },
        "frechet": _distances(by_track),
        "statistics": {name: _statistics(pieces, sample_rate) for name, pieces in sets.items()},
        "labels": label_accuracy(sets, vectors),
    }


def _by_track(pieces: Sequence[Piece], vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The windows of all pieces of a track, together."""
    tracks: dict[str, list[np.ndarray]] = {}
    for piece, windows in zip(pieces, vectors, strict=True):
        tracks.setdefault(piece.track, []).append(windows)
    return [np.concatenate(windows) for windows in tracks.values()]


def _distances(by_track: Mapping[str, list[np.ndarray]]) -> dict[str, Any]:
    reference = by_track["held-out"]
    n_windows, dim = sum(map(len, reference)), reference[0].shape[1]
    n_components = min(N_COMPONENTS, dim, max(1, n_windows // WINDOWS_A_COMPONENT))
    distances = {
        name: frechet_estimate(tracks, reference, n_components).to_json()
        for name, tracks in by_track.items()
        if name != "held-out"
    }
    return {"n_components": n_components, "floor": frechet_floor(reference, n_components), "distances": distances}


def _statistics(pieces: Sequence[Piece], sample_rate: int) -> dict[str, Any]:
    found = [music_statistics(piece.waveform, sample_rate) for piece in pieces]
    return {name: _mean_over_tracks(pieces, [f[name] for f in found]) for name in found[0]}


def _mean_over_tracks(pieces: Sequence[Piece], values: Sequence[float]) -> dict[str, float | None]:
    """Mean and interval over tracks, each track equally, because pieces of one track are alike."""
    tracks: dict[str, list[float]] = {}
    for piece, value in zip(pieces, values, strict=True):
        tracks.setdefault(piece.track, []).append(value)
    return mean_estimate([float(np.mean(track)) for track in tracks.values()]).to_json()


def label_accuracy(
    sets: Mapping[str, Sequence[Piece]], vectors: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """For each label that was asked for and has two or more values: does a classifier of real music hear it?

    Logistic regression on the standardised embeddings of the windows of "training" tracks; a piece gets the value that is
    likeliest over all its windows. Accuracy on "held-out" says how far the classifier is to be trusted, on "generated" how
    well the model does as it is told; `majority` is what guessing the commonest training value gets.
    """
    report: dict[str, dict[str, Any]] = {}
    for name in sorted({name for piece in sets["generated"] for name in piece.labels}):
        classifier = _classifier(sets["training"], vectors["training"], name)
        if classifier is None:
            continue
        report[name] = {"values": list(classifier.classes_)}
        majority = _majority(sets["training"], name)
        for group in ("held-out", "generated"):
            pairs = zip(sets[group], vectors[group], strict=True)
            known = [(piece, windows) for piece, windows in pairs if piece.labels.get(name) in classifier.classes_]
            if known:
                report[name][group] = _accuracy(classifier, known, name, majority)
    return report


def _classifier(pieces: Sequence[Piece], vectors: Sequence[np.ndarray], name: str) -> Pipeline | None:
    """Trained on the pieces that have the label; None if they have fewer than two values."""
    labelled = [(piece.labels[name], v) for piece, v in zip(pieces, vectors, strict=True) if name in piece.labels]
    if len({value for value, _ in labelled}) < 2:
        return None
    values = [value for value, windows in labelled for _ in windows]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return classifier.fit(np.concatenate([windows for _, windows in labelled]), values)


def _accuracy(
    classifier: Pipeline, pieces: Sequence[tuple[Piece, np.ndarray]], name: str, majority: str
) -> dict[str, Any]:
    heard = [classifier.classes_[classifier.predict_log_proba(windows).mean(axis=0).argmax()] for _, windows in pieces]
    asked = [piece.labels[name] for piece, _ in pieces]
    right = [float(h == a) for h, a in zip(heard, asked, strict=True)]
    return {
        "pieces": len(pieces),
        "accuracy": _mean_over_tracks([piece for piece, _ in pieces], right),
        "majority": asked.count(majority) / len(asked),
        "accuracy_of_value": {
            value: float(np.mean([r for r, a in zip(right, asked, strict=True) if a == value]))
            for value in sorted(set(asked))
        },
    }


def _majority(pieces: Sequence[Piece], name: str) -> str:
    found = [piece.labels[name] for piece in pieces if name in piece.labels]
    return max(sorted(set(found)), key=found.count)


def shuffle_codes(codes: Codes, seed: int) -> Codes:
    """The same codes in random order, each level for itself: as many of each, and no melody. A yardstick for "wrong"."""
    random = torch.Generator().manual_seed(seed)
    levels = [level[torch.randperm(len(level), generator=random)] for level in codes.levels]
    return dataclasses.replace(codes, levels=levels)
