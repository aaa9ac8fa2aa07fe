"""Run the README's first command and evaluate the music that it makes.

    python benchmarks/quickstart.py --out /tmp/quickstart           # trains, samples, evaluates
    python benchmarks/quickstart.py --out /tmp/quickstart --judge   # evaluates an existing run

Prints the wall time of each command, then the statistics of `audiovq.evaluation.music_statistics` for each training
track (their range) and each generated piece, and whether each criterion holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from audiovq.data.audio import read_audio
from audiovq.data.tracks import Scan
from audiovq.evaluation.music_statistics import music_statistics

ROOT = Path(__file__).parent.parent
SEEDS = range(4)


def timed(*command: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "audiovq", *command], check=True)
    return time.monotonic() - began


def make(out: Path) -> dict[str, float]:
    seconds = {"train": timed("train", str(ROOT / "recipes" / "quickstart.yaml"), "--out", str(out))}
    for seed in SEEDS:
        piece = str(out / f"seed-{seed}.wav")
        seconds[f"sample 20 s, seed {seed}"] = timed(
            "sample", "--model", str(out), "--seconds", "20", "--seed", str(seed), "--out", piece
        )
    return seconds


def criteria(piece: dict[str, float], tracks: list[dict[str, float]], n_samples: int, rate: int) -> dict[str, bool]:
    """Music-like, against the mean over the training tracks. White noise has 3.58 bits of chroma entropy and a flatness
    above 0.5; a constant tone no onsets and a chroma change near 0."""
    mean = {name: sum(t[name] for t in tracks) / len(tracks) for name in tracks[0]}
    return {
        "length exact": n_samples == 20 * rate,
        "level within 6 dB": abs(piece["rms_db"] - mean["rms_db"]) <= 6,
        "no clipping": piece["clipped"] == 0 and piece["peak"] < 1,
        "flatness within 0.01": abs(piece["flatness"] - mean["flatness"]) <= 0.01,
        "chroma entropy within 15 %": abs(piece["chroma_entropy"] / mean["chroma_entropy"] - 1) <= 0.15,
        "chroma change at least half": piece["chroma_change"] >= 0.5 * mean["chroma_change"],
        "onsets within a factor of 2": 0.5 <= piece["onsets_per_second"] / mean["onsets_per_second"] <= 2,
    }


def judge(out: Path) -> bool:
    data = Scan.load(out / "data")
    rate = 0
    tracks = []
    for track in data.tracks.of("train"):
        config = json.loads((out / "tokenizer" / "config.json").read_text())["model"]
        waveform, rate = read_audio(data.folder / track.path, config["sample_rate"], config["channels"])
        tracks.append(music_statistics(waveform, rate))
    names = list(tracks[0])
    print(f"{'':22}" + "".join(f"{name:>19}" for name in names))
    for label, choose in (("training tracks, min", min), ("training tracks, max", max)):
        print(f"{label:22}" + "".join(f"{choose(t[name] for t in tracks):19.4f}" for name in names))
    good = True
    for seed in SEEDS:
        waveform, rate = read_audio(out / f"seed-{seed}.wav")
        piece = music_statistics(waveform, rate)
        held = criteria(piece, tracks, waveform.shape[1], rate)
        failed = [name for name, holds in held.items() if not holds]
        print(
            f"{f'seed {seed}':22}" + "".join(f"{piece[name]:19.4f}" for name in names),
            "all hold" if not failed else f"NOT: {failed}",
        )
        good &= not failed
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judge", action="store_true")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if not arguments.judge:
        for name, seconds in make(arguments.out).items():
            print(f"{name:22} {seconds:7.1f} s")
    sys.exit(0 if judge(arguments.out) else 1)


if __name__ == "__main__":
    main()
