"""`audiovq eval`: metrics of each track and prefix of levels, their means, and the use of the codes."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from audiovq.api.tokenizer import Tokenizer
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.data.tracks import Scan
from audiovq.evaluation.code_statistics import code_statistics
from audiovq.evaluation.held_out import held_out_music
from audiovq.evaluation.metrics import METRICS, Metric, compare
from audiovq.evaluation.notes import NOTE_METRICS, check_installed
from audiovq.evaluation.tables import mean_estimate, print_table
from audiovq.pretrained.locate import resolve_model
from audiovq.utils.progress import track as progress

Row = dict[str, Any]


class Reconstruction(NamedTuple):
    """A track, and what each prefix of levels makes of it."""

    track: str
    source: Tensor  # float [channels, samples]
    prefixes: list[Tensor]  # float [channels, samples] each: level 0 alone, levels 0 and 1, …
    codes: Codes


def evaluate_model(model: str, data: str | None, notes: bool = False) -> dict[str, Any]:
    """Evaluate the tokenizer of a model, a run or a hub id, on a folder of music, default what the run held out; with
    `notes`, transcriptions are compared, too (extra audiovq[notes]). Returns the report of `evaluate_tracks`, with the
    names of model and tokenizer. ValueError for no such model or no music, or without the extra."""
    if notes:
        check_installed()
    folder = resolve_model(model)
    tokenizer = Tokenizer.from_pretrained(folder)
    music = held_out_music(folder, model, data)
    tracks = progress(reconstructions(tokenizer, music), "evaluate", len(music.tracks))
    return {"model": model, "tokenizer": tokenizer.hash, **evaluate_tracks(tracks, NOTE_METRICS if notes else METRICS)}


def reconstructions(tokenizer: Tokenizer, music: Scan) -> Iterator[Reconstruction]:
    """Encode and decode each track; one is in memory at a time."""
    for track in music.tracks:
        source, rate = audio.read_audio(music.folder / track.path, tokenizer.sample_rate, tokenizer.config.channels)
        codes = tokenizer.encode(source, rate)
        prefixes = [tokenizer.decode(codes, n_levels) for n_levels in range(1, len(codes.levels) + 1)]
        yield Reconstruction(track.path, source, prefixes, codes)


def evaluate_tracks(tracks: Iterable[Reconstruction], metrics: Mapping[str, Metric] = METRICS) -> Row:
    """Compare reconstructions with their sources.

    Returns:
        tracks: a row of metrics for each track and prefix of levels.
        summary: a row for each prefix: `mean_estimate` of each metric over tracks; raw kbps, and kbps at the entropy of
            the codes of all tracks.
        levels: a row for each level: codes a second, number of codes, and `code_statistics`. The entropy is
            too low with fewer than about ten codes for each entry of the codebook.
    """
    rows: list[Row] = []
    counts: list[np.ndarray] = []  # int64 [codebook_size] a level
    codes = None
    for track in tracks:
        codes = track.codes
        found = [np.bincount(level.numpy(), minlength=codes.codebook_size) for level in codes.levels]
        counts = [a + b for a, b in zip(counts, found, strict=True)] if counts else found
        for n_levels, waveform in enumerate(track.prefixes, start=1):
            row = {"track": track.track, "levels": n_levels, "seconds": codes.seconds}
            rows.append(row | compare(waveform, track.source, codes.sample_rate, metrics))
    if codes is None:
        raise ValueError("expected at least one track to evaluate, found none")
    levels = []
    for level, (counted, hop_length) in enumerate(zip(counts, codes.hop_lengths, strict=True)):
        rate = codes.sample_rate / hop_length
        facts = {"level": level, "codes_per_second": rate, "n_codes": int(counted.sum())}
        levels.append(facts | code_statistics(counted, rate, codes.slots))
    summary, bits_a_code = [], math.log2(codes.codebook_size / codes.slots)
    for n_levels in range(1, len(levels) + 1):
        group = [row for row in rows if row["levels"] == n_levels]
        size = {"levels": n_levels, "n_tracks": len(group), "seconds": sum(row["seconds"] for row in group)}
        means = {name: mean_estimate([row[name] for row in group]) for name in metrics}
        kbps = sum(level["codes_per_second"] for level in levels[:n_levels]) * bits_a_code / 1000
        entropy_kbps = sum(level["unigram_bits_per_second"] for level in levels[:n_levels]) / 1000
        summary.append({**size, **means, "kbps": kbps, "entropy_kbps": entropy_kbps})
    return {"tracks": rows, "summary": summary, "levels": levels}


def print_tables(report: dict[str, Any]) -> None:
    print_table("tracks", list(report["tracks"][0]), [list(row.values()) for row in report["tracks"]])
    summary, levels = report["summary"], report["levels"]
    names = [name for name in summary[0] if name not in {"levels", "n_tracks", "seconds"}]
    print_table(
        f"mean over {summary[0]['n_tracks']} tracks ± 95 % confidence",
        ["", *(f"{row['levels']} of {len(levels)} levels" for row in summary)],
        [[name.replace("_", " "), *(row[name] for row in summary)] for name in names],
    )
    print_table("use of the codes", list(levels[0]), [list(row.values()) for row in levels])
