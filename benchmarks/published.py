"""A scoreboard of tokenizers: ours, published codecs and Opus, on the same excerpts, each as its users get it.

    python benchmarks/published.py samples/recordings                                  # the bundled model, codecs at hand, Opus
    python benchmarks/published.py MUSIC --codec runs/mine hf:weights/mimi:8 --kbps 6 12 --notes
    python benchmarks/published.py MUSIC --prior-music OTHER --minutes 6 --out rows.json

Weights are the reader's: a codec's id is looked up in the hub's cache, and downloaded unless HF_HUB_OFFLINE=1; or name a
folder (hf:FOLDER). A row without weights says so. Every coder gets the middle of each track, mono, and its result is
compared at --rate, to which it is resampled. kbps are raw: each code has log2(codebook size) bits; Opus's are those of its
packets, as in opus.py. Notes that survive are judged by transcription (--notes: the extra `notes`, and basic-pitch). With
--prior-music the small transformer of predictability.py (extra `peers`) learns the codes of that music for --minutes of CPU
time, all levels in one stream, and the held-out bits per second are given. Speed is seconds of audio per CPU-second of one
core, of encoder and decoder. Means over the excerpts with 95 % confidence.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from opus import opus
from torch import Tensor

from audiovq import Tokenizer
from audiovq.data import audio
from audiovq.data.resampling import resample
from audiovq.data.tracks import find_audio
from audiovq.evaluation.metrics import METRICS, Metric, compare
from audiovq.evaluation.notes import NOTE_METRICS, check_installed
from audiovq.evaluation.tables import cell, mean_estimate
from audiovq.utils.progress import track as progress

SOURCE_RATE = 48000
CODECS = (
    "default", "hf:facebook/encodec_24khz:8", "hf:facebook/encodec_32khz", "hf:descript/dac_44khz", "hf:descript/dac_24khz:16",
    "hf:kyutai/mimi:8", "hf:hubertsiuzdak/snac_24khz", "hf:hubertsiuzdak/snac_32khz", "hf:hubertsiuzdak/snac_44khz",
)  # fmt: skip
SHOWN = ("mel_distance", "stft_distance", "si_sdr_db", "level_db", "chroma_distance")
NO_WEIGHTS = "no weights here"


def excerpts(folder: Path, seconds: float) -> list[Tensor]:
    """The middle of each track, float [1, samples] at `SOURCE_RATE`."""
    found = []
    for path in progress(paths := find_audio(folder), "read", len(paths)):
        info = audio.audio_info(path)
        n = min(info.samples, round(seconds * info.sample_rate))
        found.append(audio.read_audio(path, SOURCE_RATE, 1, (info.samples - n) // 2, n)[0])
    return found


def judged(result: Tensor, rate: int, source: Tensor, at: int, metrics: dict[str, Metric]) -> dict[str, float]:
    """Metrics of a result [channels, samples] of `rate`, both at the rate `at`."""
    reference = resample(source, SOURCE_RATE, at)
    found = resample(result.mean(dim=0, keepdim=True), rate, at)
    n = min(found.shape[-1], reference.shape[-1])
    return compare(found[:, :n], reference[:, :n], at, metrics)


def judge_tokenizer(name: str, music: list[Tensor], at: int, metrics: dict[str, Metric]) -> dict[str, Any]:
    """The row of a tokenizer; what is not known of it is missing."""
    try:
        tokenizer = Tokenizer.from_pretrained(name, "cpu")
    except ValueError as error:
        return {"name": name, "note": f"{NO_WEIGHTS} ({str(error)[:120]})"}
    rows, encoding, decoding = [], 0.0, 0.0
    for source in progress(music, name, len(music)):
        began = time.process_time()
        codes = tokenizer.encode(source, SOURCE_RATE)
        encoded = time.process_time()
        result = tokenizer.decode(codes)
        encoding, decoding = encoding + encoded - began, decoding + time.process_time() - encoded
        kbps = codes.bits_per_second / 1000
        rows.append({"kbps": kbps, **judged(result, tokenizer.sample_rate, source, at, metrics)})
    seconds = sum(source.shape[-1] for source in music) / SOURCE_RATE
    facts = {
        "parameters": sum(p.numel() for p in tokenizer.network.parameters()),
        "encode_x": seconds / encoding, "decode_x": seconds / decoding, "hash": tokenizer.hash,
        "licence": (tokenizer.config.codec or {}).get("licence", ""),
    }  # fmt: skip
    return {"name": name, **facts, **{key: mean_estimate([row[key] for row in rows]) for key in rows[0]}}


def judge_opus(kbps: float, music: list[Tensor], at: int, metrics: dict[str, Metric]) -> dict[str, Any]:
    rows = []
    for source in progress(music, f"Opus {kbps:g}", len(music)):
        result, found = opus(source, SOURCE_RATE, kbps)
        rows.append({"kbps": found, **judged(result, SOURCE_RATE, source, at, metrics)})
    return {"name": f"Opus at {kbps:g} kbps", **{key: mean_estimate([row[key] for row in rows]) for key in rows[0]}}


class Levels:
    """What `predictability.Streams` asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.hop_lengths, self.codebook_size = list(tokenizer.config.hop_lengths), tokenizer.config.codebook_size


def prior_bits(name: str, music: tuple[list[Any], list[Any]], minutes: float) -> float:
    """Held-out bits per second of audio after the fixed transformer has learned for so many CPU-minutes."""
    fixed = importlib.import_module("predictability")
    tokenizer = Tokenizer.from_pretrained(name, "cpu")
    streams = fixed.Streams(Levels(tokenizer))

    def encode(tracks: list[Any], title: str) -> list[Tensor]:
        found = []
        for each in progress(tracks, f"{name}: {title}", len(tracks)):
            codes = tokenizer.encode(each, fixed.SAMPLE_RATE)
            found.append(streams.join([level[None] for level in codes.levels])[0])
        return found

    training, held_out = encode(music[0], "encode"), encode(music[1], "held out")
    prior = fixed.new_prior(streams)
    fixed.train_prior(prior, training, 60 * minutes, "adamw")
    return fixed.held_out_bits(prior, held_out) / (sum(map(len, music[1])) / fixed.SAMPLE_RATE)


def markdown(rows: list[dict[str, Any]], names: list[str], title: str) -> str:
    columns = ["kbps", *names, "bits_per_second", "encode_x", "decode_x", "parameters"]
    lines = [title, "", "| " + " | ".join(["", *(name.replace("_", " ") for name in columns)]) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in rows:
        if "note" in row:
            lines.append(f"| {row['name']} | {NO_WEIGHTS}" + " |" * len(columns))
            continue
        cells = [cell(row[name]) if isinstance(row.get(name), dict) else shown(name, row.get(name)) for name in columns]
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines)


def shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} M" if name == "parameters" else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("music", type=Path)
    parser.add_argument("--codec", nargs="+", default=list(CODECS), help="tokenizers, as for --model of audiovq")
    parser.add_argument("--kbps", type=float, nargs="*", default=[6, 8, 12], help="of Opus; none: without Opus")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each track, from its middle")
    parser.add_argument("--rate", type=int, default=24000, help="Hz, at which results are compared")
    parser.add_argument("--notes", action="store_true", help="also F1 of transcribed notes")
    parser.add_argument("--prior-music", type=Path, help="music for the fixed transformer; default none")
    parser.add_argument("--minutes", type=float, default=6.0, help="CPU-minutes of the fixed transformer")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    metrics = {name: METRICS[name] for name in SHOWN}
    if options.notes:
        check_installed()
        metrics |= {name: NOTE_METRICS[name] for name in ("note_f1", "frame_f1")}
    fixed = importlib.import_module("predictability") if options.prior_music else None  # before the long work
    music = excerpts(options.music, options.seconds)
    if not music:
        raise SystemExit(f"{options.music}: expected a folder of music, found none in it")
    rows = [judge_tokenizer(name, music, options.rate, metrics) for name in options.codec]
    if fixed:
        learned = [[track / 32768.0 for track in split] for split in fixed.choose_music(options.prior_music)]
        for row in (row for row in rows if "note" not in row):
            row["bits_per_second"] = prior_bits(row["name"], (learned[0], learned[1]), options.minutes)
    rows += [judge_opus(kbps, music, options.rate, metrics) for kbps in options.kbps]
    title = f"{len(music)} excerpts of {options.seconds:g} s at {options.rate} Hz, mean ± 95 % confidence"
    print(markdown(rows, list(metrics), title))
    for row in (row for row in rows if "note" in row):
        print(f"{row['name']}: {row['note']}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
