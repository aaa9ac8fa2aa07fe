"""What 100,000 tracks cost against 100: opening their codes, a batch, memory; and scanning a folder of many files, cut off
by kill -9 and gone on with. All synthetic; each measurement in a process of its own.

python benchmarks/large_data.py [--tracks 100000] [--files 20000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from audiovq.data.codes import Codes
from audiovq.data.datasets import CodeWindows, WaveformCrops, vocabularies
from audiovq.data.shards import ShardIndex, Shards, ShardWriter
from audiovq.data.tracks import DataConfig, Scan, Track, scan

FEW = 100
HOPS, RATE, CODEBOOK = [2048, 1024, 512], 44100, 2048
BATCH, BATCHES, CONTEXT = 32, 100, 512


def make_run(folder: Path, n: int) -> None:
    """Codes of `n` tracks of 6 to 24 s (the same ones again and again), and the scan that goes with them."""
    random = np.random.default_rng(0)
    pieces = []
    for seconds in np.linspace(6, 24, 16):
        n_samples = int(seconds * RATE)
        levels = [torch.from_numpy(random.integers(0, CODEBOOK, -(-n_samples // hop))) for hop in HOPS]
        pieces.append(Codes(levels, n_samples, RATE, HOPS, CODEBOOK, 2, "0" * 64))
    writer = ShardWriter(folder / "codes", ShardIndex("0" * 64, RATE, HOPS, CODEBOOK))
    tracks = []
    for i in range(n):
        codes = pieces[i % 16]
        labels = {"artist": f"artist {i % 1000}", "genre": f"genre {i % 20}", "title": f"A title of no meaning, {i}"}
        name = f"artist {i % 1000}/album {i % 7}/{i:06d} a title of no meaning.flac"
        track = Track(
            name, f"{i:064x}", RATE, 2, codes.n_samples, "valid" if i % 10 == 0 else "train", labels,
            audio_sha256=f"{i:064x}",
        )  # fmt: skip
        tracks.append(track)
        writer.add(track, codes)
    writer.finish()
    Scan(folder, tracks, []).save(folder / "data")


def make_files(folder: Path, n: int) -> None:
    """Quarter-second WAV files of noise, all different, in folders of a thousand."""
    random = np.random.default_rng(1)
    samples = random.integers(-9000, 9000, 4000 + n, dtype=np.int16)
    size = 2 * 2000
    head = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += b"".join(v.to_bytes(w, "little") for v, w in ((1, 2), (1, 2), (8000, 4), (16000, 4), (2, 2), (16, 2)))
    head += b"data" + size.to_bytes(4, "little")
    for i in range(n):
        if i % 1000 == 0:
            (folder / f"{i // 1000:03d}").mkdir(parents=True)
        (folder / f"{i // 1000:03d}" / f"{i:06d}.wav").write_bytes(head + samples[i : i + 2000].tobytes())


def megabytes(kind: str) -> float:
    """Of this process: VmHWM is its peak, RssAnon what it has now without mapped files, whose pages all processes share."""
    status = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in status if line.startswith(kind)).split()[1]) / 1024


def measure_codes(folder: Path) -> dict[str, float]:
    before = megabytes("RssAnon")
    began, began_cpu = time.perf_counter(), time.process_time()
    shards = Shards(folder / "codes")
    opened = time.perf_counter() - began
    words = vocabularies(shards, ["artist", "genre"])
    data = CodeWindows(shards, "train", 2, CONTEXT, 8, words, seed=0)
    ready, ready_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    for step in range(10):
        default_collate([data[step * BATCH + i] for i in range(BATCH)])
    began, began_cpu = time.perf_counter(), time.process_time()
    for step in range(10, 10 + BATCHES):
        default_collate([data[step * BATCH + i] for i in range(BATCH)])
    batch, batch_cpu = (time.perf_counter() - began) / BATCHES, (time.process_time() - began_cpu) / BATCHES
    return {
        "open the codes, s": opened, "ready for the first example, s": ready,
        "ready for the first example, CPU s": ready_cpu, f"a batch of {BATCH}, ms": 1000 * batch,
        f"a batch of {BATCH}, CPU ms": 1000 * batch_cpu, "memory of its own, MB": megabytes("RssAnon") - before,
    }  # fmt: skip


def measure_music(folder: Path) -> dict[str, float]:
    before = megabytes("VmHWM")
    began, began_cpu = time.perf_counter(), time.process_time()
    found = Scan.load(folder / "data")
    WaveformCrops(folder, found.split("train"), RATE, 2, 65536, 0, cache_gigabytes=2.0)
    return {
        "open the list of the music, s": time.perf_counter() - began,
        "open the list of the music, CPU s": time.process_time() - began_cpu,
        "its memory, MB": megabytes("VmHWM") - before,
    }


def measure_scan(folder: Path, cache: Path) -> dict[str, float]:
    before = megabytes("VmHWM")
    began, began_cpu = time.perf_counter(), time.process_time()
    found = scan(folder, DataConfig(min_seconds=0.1), cache)
    return {
        "s": time.perf_counter() - began,
        "CPU s": time.process_time() - began_cpu,
        "tracks": len(found.tracks),
        "MB beyond the libraries": megabytes("VmHWM") - before,
    }


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement ended with {process.returncode}")
    return json.loads(output)


def compare_sizes(folder: Path, n_tracks: int) -> None:
    rows: dict[str, list[float]] = {}
    for n in (FEW, n_tracks):
        began = time.perf_counter()
        make_run(folder / str(n), n)
        rows.setdefault("write the codes, s", []).append(time.perf_counter() - began)
        for what in ("codes", "music"):
            for name, value in result_of(child(what, folder / str(n))).items():
                rows.setdefault(name, []).append(value)
    size = sum(path.stat().st_size for path in (folder / str(n_tracks) / "codes").iterdir()) / 1e9
    print(f"{'':36}{FEW:>12} tracks{n_tracks:>12} tracks ({size:.1f} GB of codes)")
    for name, values in rows.items():
        print(f"{name:36}" + "".join(f"{value:12.3f}       " for value in values))


def compare_scans(folder: Path, n_files: int) -> None:
    music, cache = folder / "music", folder / "scan_cache.jsonl"
    make_files(music, n_files)
    some = result_of(child("scan", music / "000", folder / "few.jsonl"))
    print(
        f"scan {some['tracks']} files: {some['s']:.2f} s, {some['CPU s']:.2f} s of CPU time, {some['MB beyond the libraries']:.0f} MB"
    )
    process = child("scan", music, cache)
    while not cache.exists() or cache.stat().st_size < 220 * n_files:  # about half the lines
        time.sleep(0.01)
        if process.poll() is not None:
            raise SystemExit("the scan was done before it could be killed; give more --files")
    process.kill()
    process.wait()
    n_known = cache.read_bytes().count(b"\n")
    rest, again = (result_of(child("scan", music, cache)) for _ in range(2))
    new, known = n_files - n_known, n_known / n_files * again["CPU s"]
    print(
        f"scan {n_files} files, killed (-9) after {n_known}: the rest takes {rest['s']:.2f} s, {rest['CPU s']:.2f} s of CPU\n"
        f"    time, {new / (rest['CPU s'] - known):.0f} new files a CPU second, {rest['MB beyond the libraries']:.0f} MB\n"
        f"scan again, nothing new: {again['s']:.2f} s, {again['CPU s']:.2f} s of CPU time, {again['tracks']} tracks"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the data is made and removed again; default a temporary one")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *paths = options.child
        measure = {"codes": measure_codes, "music": measure_music, "scan": measure_scan}[what]
        print(json.dumps(measure(*map(Path, paths))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare_sizes(Path(folder), options.tracks)
        compare_scans(Path(folder), options.files)


if __name__ == "__main__":
    main()
