"""`audiovq eval --generated`: distances and statistics of generated pieces, with the same figures of real music."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audiovq.api.generator import Generator
from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.data.tracks import Scan
from audiovq.evaluation.embedding import MusicEmbedding
from audiovq.evaluation.frechet import frechet_estimate
from audiovq.evaluation.held_out import training_and_held_out_music
from audiovq.evaluation.music_statistics import music_statistics
from audiovq.evaluation.notes import check_installed, harmony
from audiovq.evaluation.tables import mean_estimate, print_table
from audiovq.pretrained.locate import resolve_model
from audiovq.utils.progress import say

Embed = Callable[[Tensor, int], np.ndarray]  # float [channels, samples] and sample rate -> [windows, dim]

MAX_COMPONENTS = 32  # principal components of the embedding that are compared
WINDOWS_PER_COMPONENT = 4  # at least, or fewer components are compared


class Piece(NamedTuple):
    """An excerpt of a real track, or a generated piece, which is a track of its own."""

    waveform: Tensor  # float [channels, samples]
    track: str


def evaluate_generated(
    model: str, data: str | None, n: int, seconds: float, seed: int = 0, notes: bool = False
) -> dict[str, Any]:
    """Generate pieces and compare them with about as many excerpts of real music, all of the same length.

    Real music is the run's training and held-out tracks, or `data`, a folder of music in place of the
    held-out tracks; for a model that is not a run, of both. Labels are drawn as often as the training tracks
    have them. With `notes` (and the extra audiovq[notes]) there are also statistics of notes.

    Returns:
        The report of `compare_sets`, with the arguments.
    Raises:
        ValueError: no such model, no real music, pieces or tracks shorter than the embedding's window (3 s),
            or the weights of the embedding cannot be downloaded.
    """
    if notes:
        check_installed()
    shortest = MusicEmbedding.window_seconds
    if n < 1 or not shortest <= seconds < math.inf:
        raise ValueError(f"expected 1 or more pieces of {shortest:.2f} s or more, found {n} of {seconds:g} s")
    folder = resolve_model(model)
    generator = Generator.from_pretrained(folder)
    training, held_out = training_and_held_out_music(folder, model, data)
    embed = MusicEmbedding(generator.device)
    tokenizer = generator.tokenizer
    real_training, real_held_out = (excerpts(music, n, seconds, tokenizer) for music in (training, held_out))
    generated = generate_pieces(generator, training, n, seconds, seed)
    say(f"compare {n} generated, {len(real_training)} training and {len(real_held_out)} held-out pieces")
    # Two yardsticks: what the tokenizer alone costs, and codes without any order.
    reconstructed, shuffled = [], []
    for i, piece in enumerate(real_held_out):
        codes = tokenizer.encode(piece.waveform, tokenizer.sample_rate)
        reconstructed.append(Piece(tokenizer.decode(codes), piece.track))
        shuffled.append(Piece(tokenizer.decode(shuffle_codes(codes, seed + i)), piece.track))
    sets = {"generated": generated, "training": real_training, "reconstructed held-out": reconstructed}
    sets |= {"shuffled codes": shuffled, "held-out": real_held_out}
    return {"model": model, "seconds": seconds, "seed": seed, **compare_sets(sets, tokenizer.sample_rate, embed, notes)}


def excerpts(music: Scan, n: int, seconds: float, tokenizer: Tokenizer) -> list[Piece]:
    """`n` excerpts, or as many as do not overlap, spread over the tracks and within each. Short tracks are used whole."""
    shortest = MusicEmbedding.window_seconds
    usable = [track for track in music.tracks if track.seconds >= shortest]
    if not usable:
        raise ValueError(f"{music.folder}: expected tracks of at least {shortest:.2f} s, found none")
    n_tracks = min(n, len(usable))
    chosen = [usable[i * len(usable) // n_tracks] for i in range(n_tracks)]
    lengths = [min(track.samples, round(seconds * track.sample_rate)) for track in chosen]
    rounds = [(k, i) for i, track in enumerate(chosen) for k in range(track.samples // lengths[i])]
    counts = Counter(i for _, i in sorted(rounds)[:n])  # one of each track, then a second one of those with room, ...
    found = []
    for i, (track, length) in enumerate(zip(chosen, lengths, strict=True)):
        for k in range(n_here := counts[i]):
            start = int((track.samples - length) * (k / (n_here - 1) if n_here > 1 else 0.5))
            path, channels = music.folder / track.path, tokenizer.config.channels
            waveform, _ = audio.read_audio(path, tokenizer.sample_rate, channels, start, length)
            found.append(Piece(waveform, track.path))
    return found


def generate_pieces(generator: Generator, training: Scan, n: int, seconds: float, seed: int) -> list[Piece]:
    """Generate `n` pieces with the labels of training tracks that are spread evenly over all of them."""
    tracks, known = training.tracks, generator.labels
    combinations: Counter[tuple[tuple[str, str], ...]] = Counter()  # of labels that the model knows
    for i in range(n):
        labels = tracks[i * len(tracks) // n].labels if tracks else {}
        mine = [(name, value) for name, value in labels.items() if value in known.get(name, ())]
        combinations[tuple(sorted(mine))] += 1
    pieces = []
    for i, (labels, count) in enumerate(combinations.items()):
        waveforms = generator.sample(seconds, seed + i, count, labels=dict(labels), progress=True)
        pieces += [Piece(wave, f"generated-{i}-{k}") for k, wave in enumerate(waveforms)]
    return pieces


def shuffle_codes(codes: Codes, seed: int) -> Codes:
    """The same codes in random order, each level, and slot, by itself: as many of each, but no melody."""
    random, levels = torch.Generator().manual_seed(seed), [level.clone() for level in codes.levels]
    for part in (level[slot :: codes.slots] for level in levels for slot in range(codes.slots)):
        part.copy_(part[torch.randperm(len(part), generator=random)])
    return dataclasses.replace(codes, levels=levels)


def compare_sets(sets: Mapping[str, Sequence[Piece]], rate: int, embed: Embed, notes: bool = False) -> dict[str, Any]:
    """Compare pieces of "generated", "training" and "held-out" music, and of further sets.

    Returns:
        sets: numbers of pieces, tracks and windows of each set.
        frechet: the distance of each set from the held-out music with `ci95`; few windows raise it.
        statistics: the mean of `music_statistics`, and with `notes` `harmony`, over the tracks of each set, with `ci95`.
    """
    if empty := [name for name, pieces in sets.items() if not pieces]:
        raise ValueError(f"expected at least one piece of each set, found none of: {', '.join(empty)}")
    windows = {}
    for name, group in sets.items():
        vectors = [embed(piece.waveform, rate) for piece in group]
        windows[name] = [np.concatenate(track) for track in _by_track(group, vectors)]
    reference = windows["held-out"]
    n_windows, dim = sum(map(len, reference)), reference[0].shape[1]
    n_components = min(MAX_COMPONENTS, dim, max(1, n_windows // WINDOWS_PER_COMPONENT))
    statistics = {}
    for name, group in sets.items():
        found = [music_statistics(piece.waveform, rate) for piece in group]
        if notes:
            found = [each | harmony(piece.waveform, rate) for each, piece in zip(found, group, strict=True)]
        statistics[name] = {}
        for key in found[0]:  # each track has equal weight, because pieces of one track are alike
            known = [(piece, each[key]) for piece, each in zip(group, found, strict=True) if each[key] is not None]
            tracks = _by_track([piece for piece, _ in known], [value for _, value in known])
            means = [float(np.mean(track)) for track in tracks]
            statistics[name][key] = mean_estimate(means) if means else {"mean": None, "ci95": None}
    sizes, distances = {}, {}
    for name, tracks in windows.items():
        sizes[name] = {"pieces": len(sets[name]), "tracks": len(tracks), "windows": sum(map(len, tracks))}
        if name != "held-out":
            distances[name] = frechet_estimate(tracks, reference, n_components)
    return {"sets": sizes, "frechet": {"n_components": n_components, "distances": distances}, "statistics": statistics}


def _by_track(pieces: Sequence[Piece], values: Sequence[Any]) -> list[list[Any]]:
    tracks: dict[str, list[Any]] = {}
    for piece, value in zip(pieces, values, strict=True):
        tracks.setdefault(piece.track, []).append(value)
    return list(tracks.values())


def print_tables(report: dict[str, Any]) -> None:
    frechet, sets, statistics = report["frechet"], report["sets"], report["statistics"]
    distances = sorted(frechet["distances"].items(), key=lambda item: item[1]["mean"])
    print_table(
        "distance from the held-out music",
        ["set", "pieces", "tracks", "windows", "Fréchet distance"],
        [[name, *sets[name].values(), distance] for name, distance in distances],
        f"musicnn, first {frechet['n_components']} principal components of the held-out music",
    )
    print_table(
        "what the music is like, mean over tracks ± 95 % confidence",
        ["", *statistics],
        [[key.replace("_", " "), *(s[key] for s in statistics.values())] for key in statistics["held-out"]],
    )
