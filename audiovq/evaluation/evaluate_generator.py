"""The generation test: a model generates pieces, and they are judged beside real music (`audiovq eval --generated`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from audiovq import api
from audiovq.data import audio
from audiovq.data.tracks import DataConfig, Scan, Track, scan
from audiovq.evaluation.confidence import Estimate
from audiovq.evaluation.embedding import MusicEmbedding
from audiovq.evaluation.generated import Piece, generated_report, shuffle_codes
from audiovq.recipe import load_saved_recipe
from audiovq.utils.progress import say


def evaluate_generated(model: str, data: str | None, n: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Generate `n` pieces and judge them; about as many excerpts of the same length are taken of each set of real music.

    Real music is the run's training and held-out tracks; `data` replaces the held-out ones, or, for a model without a run,
    is split into both. Labels are asked for in the combinations and shares that the training tracks have.

    Raises:
        ValueError: no such model, no real music, pieces or tracks shorter than the embedding's 3 s, or no weights for it.
    """
    if n < 1 or seconds < MusicEmbedding.window_seconds:
        shortest = MusicEmbedding.window_seconds
        raise ValueError(f"expected 1 or more pieces of at least {shortest:.2f} s, found {n} of {seconds:g} s")
    folder = api.resolve_model(model)
    generator = api.Generator.from_pretrained(folder)
    (train_root, train), (held_root, held_out) = real_tracks(folder, model, data)
    embed = MusicEmbedding(generator.device)
    tokenizer = generator.tokenizer
    real = excerpts(train_root, train, n, seconds, tokenizer)
    test = excerpts(held_root, held_out, n, seconds, tokenizer)
    generated = generate_pieces(generator, train, n, seconds, seed)
    say(f"judge {n} generated pieces beside {len(real)} excerpts of training and {len(test)} of held-out tracks")
    codes = [tokenizer.encode(piece.waveform, tokenizer.sample_rate) for piece in test]
    yardsticks = {
        "reconstructed held-out": [Piece(tokenizer.decode(c), p.track) for c, p in zip(codes, test, strict=True)],
        "shuffled codes": [
            Piece(tokenizer.decode(shuffle_codes(c, seed + i)), p.track)
            for i, (c, p) in enumerate(zip(codes, test, strict=True))
        ],
    }
    report = generated_report(generated, real, test, tokenizer.sample_rate, embed, yardsticks)
    return {"model": model, "seconds": seconds, "seed": seed, **report}


def real_tracks(
    folder: Path, model: str, data: str | None
) -> tuple[tuple[Path, list[Track]], tuple[Path, list[Track]]]:
    """Training and held-out tracks of what the priors learned, each with its root folder."""
    is_run = (folder / "data" / "tracks.jsonl").is_file()
    if not is_run and data is None:
        raise ValueError(f"{model}: not a run, so it has no music; name a folder of music: audiovq eval {model} DATA")
    other = scan(Path(data), DataConfig(folder=data)) if data is not None else None
    own = Scan.load(folder / "data").only(load_saved_recipe(folder / "recipe.yaml").codes.only) if is_run else other
    assert own is not None
    train = own.folder, own.split("train")
    held_out = (other.folder, other.tracks) if other and is_run else (own.folder, own.split("valid"))
    if not held_out[1]:
        raise ValueError(f"{model}: no track is held out; name a folder of other music: audiovq eval {model} DATA")
    return train, held_out


def excerpts(root: Path, tracks: list[Track], n: int, seconds: float, tokenizer: api.Tokenizer) -> list[Piece]:
    """About `n` excerpts, spread evenly over tracks and within each; tracks shorter than `seconds` give all they have."""
    usable = [track for track in tracks if track.seconds >= MusicEmbedding.window_seconds]
    if not usable:
        raise ValueError(f"{root}: expected tracks of at least {MusicEmbedding.window_seconds:.2f} s, found none")
    m = min(n, len(usable))
    found = []
    for i in range(m):
        track = usable[i * len(usable) // m]
        length = min(track.samples, round(seconds * track.sample_rate))
        k = min(n // m + (i < n % m), track.samples // length)
        for j in range(k):
            start = int((track.samples - length) * (j / (k - 1) if k > 1 else 0.5))
            waveform, _ = audio.read_audio(
                root / track.path, tokenizer.sample_rate, tokenizer.config.channels, start, length
            )
            found.append(Piece(waveform, track.path, track.labels))
    return found


def generate_pieces(generator: api.Generator, train: list[Track], n: int, seconds: float, seed: int) -> list[Piece]:
    """New pieces; the labels asked for are those of training tracks, evenly over all of them."""
    groups: dict[tuple[tuple[str, str], ...], int] = {}
    for i in range(n):
        labels = known_labels(train[i * len(train) // n % len(train)].labels, generator.labels) if train else {}
        key = tuple(sorted(labels.items()))
        groups[key] = groups.get(key, 0) + 1
    pieces = []
    for i, (key, count) in enumerate(groups.items()):
        waveforms = generator.sample(seconds, seed + i, count, labels=dict(key), progress=True)
        pieces += [Piece(waveform, f"generated-{i}-{j}", dict(key)) for j, waveform in enumerate(waveforms)]
    return pieces


def known_labels(labels: Mapping[str, str], vocabularies: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if value in vocabularies.get(name, ())}


def print_tables(report: dict[str, Any]) -> None:
    """Distances, statistics and label accuracy, real beside generated."""
    console = Console(width=max(150, Console().width))
    console.print(_distance_table(report["frechet"], report["sets"]))
    statistics = report["statistics"]
    table = Table("", *statistics, title="what the music is like, mean over tracks ± 95 % confidence")
    for name in statistics["held-out"]:
        table.add_row(name.replace("_", " "), *(_cell(group[name]) for group in statistics.values()))
    console.print(table)
    for name, label in report["labels"].items():
        console.print(_label_table(name, label))


def _distance_table(frechet: dict[str, Any], sets: dict[str, Any]) -> Table:
    table = Table("set", "pieces", "tracks", "windows", "Fréchet distance", title="distance from the held-out music")
    table.caption = f"musicnn, first {frechet['n_components']} principal components of the held-out music"
    rows = sorted(frechet["distances"].items(), key=lambda item: item[1]["mean"])
    for name, distance in [*rows, ("held-out", {"mean": frechet["floor"], "ci95": None})]:
        sizes = (str(sets[name][key]) for key in ("pieces", "tracks", "windows"))
        text = "too little music" if distance["mean"] is None else _cell(distance)
        table.add_row("floor: held-out, halves" if name == "held-out" else name, *sizes, text)
    return table


def _label_table(name: str, label: dict[str, Any]) -> Table:
    table = Table(
        name, "pieces", "accuracy", "guessing", *label["values"], title=f"label {name}, as a classifier hears it"
    )
    for group in ("held-out", "generated"):
        if group in label:
            found = label[group]
            each = [found["accuracy_of_value"].get(value) for value in label["values"]]
            cells = ("" if accuracy is None else f"{accuracy:.2f}" for accuracy in each)
            table.add_row(group, str(found["pieces"]), _cell(found["accuracy"]), f"{found['majority']:.2f}", *cells)
    return table


def _cell(estimate: dict[str, Any]) -> str:
    return str(Estimate(estimate["mean"], estimate["ci95"]))
