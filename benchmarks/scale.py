"""From one laptop to 64 GPUs and 100,000 hours: what millions of tracks cost, and how scan, encoding, checkpoints and crops
scale. All music is synthetic; each measurement runs in processes of its own, each on one core.

python benchmarks/scale.py [--tracks 2000000] [--files 20000] [--cores 12] [--only tables …] [--folder DIR]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.distributed as dist
from torch.utils.data import default_collate

from audiovq import Tokenizer
from audiovq.data.codes import Codes
from audiovq.data.datasets import CodeWindows, WaveformCrops, vocabularies
from audiovq.data.shards import ShardIndex, Shards, ShardWriter
from audiovq.data.tracks import DataConfig, Scan, Track, scan, table_of
from audiovq.recipe import TrainingConfig
from audiovq.training.averages import Averages
from audiovq.training.checkpoints import Checkpoints
from audiovq.training.encode_stage import encode_data_set

FEW = 100
HOPS, RATE, CODEBOOK = [2048, 1024, 512], 44100, 2048
BATCH, BATCHES, CONTEXT = 32, 100, 512
N_LONG, LONG_SECONDS = 16, 60.0  # files that are scanned and encoded by one process, and by two
GPUS, HOURS = 64, 100_000


class Memory:
    """Memory of this process in MB, without mapped files, whose pages all processes share: now, and the most so far."""

    def __init__(self) -> None:
        self.before = self.most = self.now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.02)

    @staticmethod
    def now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

    def rows(self, what: str) -> dict[str, float]:
        now = self.now()
        return {f"{what}, memory of its own, MB": now - self.before, "    its peak": max(now, self.most) - self.before}


class Clock:
    """Seconds since it was made, and those of the CPU."""

    def __init__(self) -> None:
        self.began, self.began_cpu = time.perf_counter(), time.process_time()

    def rows(self, what: str) -> dict[str, float]:
        return {f"{what}, s": time.perf_counter() - self.began, "    CPU s": time.process_time() - self.began_cpu}


def named(rows: dict[str, float], what: str) -> dict[str, float]:
    """The rows, those of details with what they belong to: names are keys of a table."""
    return {f"{name} ({what})" if name.startswith(" ") else name: value for name, value in rows.items()}


def make_run(folder: Path, n: int) -> None:
    """Codes of `n` tracks of 6 to 8 s (the same ones again and again), and the scan that goes with them."""
    random, pieces = np.random.default_rng(0), []
    for seconds in np.linspace(6, 8, 16):
        n_samples = int(seconds * RATE)
        levels = [torch.from_numpy(random.integers(0, CODEBOOK, -(-n_samples // hop))) for hop in HOPS]
        pieces.append(Codes(levels, n_samples, RATE, HOPS, CODEBOOK, 2, "0" * 64))
    writer = ShardWriter(folder / "codes", ShardIndex("0" * 64, RATE, HOPS, CODEBOOK))

    def tracks() -> Iterator[Track]:
        for i in range(n):
            labels = {
                "artist": f"artist {i % 1000}",
                "genre": f"genre {i % 20}",
                "title": f"A title of no meaning, {i}",
            }
            name = f"artist {i % 1000}/album {i % 7}/{i:06d} a title of no meaning.flac"
            split, size = "valid" if i % 10 == 0 else "train", pieces[i % 16].n_samples
            yield Track(name, f"{i:064x}", RATE, 2, size, split, labels, audio_sha256=f"{i:064x}", stamp=[9, i])
            writer.add(Track(name, f"{i:064x}", RATE, 2, size, split, labels), pieces[i % 16])

    Scan(folder, table_of(tracks(), folder / "lines"), []).save(folder / "data")
    writer.finish()
    (folder / "lines").unlink()


def measure_codes(folder: Path) -> dict[str, float]:
    memory, clock = Memory(), Clock()
    shards = Shards(folder / "codes")
    rows = named(clock.rows("open the codes"), "open")
    words = vocabularies(shards, ["artist", "genre"])
    data = CodeWindows(shards, "train", 2, CONTEXT, 8, words, seed=0)
    rows |= named(clock.rows("codes: ready for the first example"), "ready")
    clock = Clock()
    default_collate([data[i] for i in range(BATCH)])
    rows |= named(clock.rows(f"first batch of {BATCH}"), "first")
    clock = Clock()
    for step in range(1, 1 + BATCHES):
        default_collate([data[step * BATCH + i] for i in range(BATCH)])
    found = named(clock.rows(f"{BATCHES} more batches"), "more")
    return rows | found | named(memory.rows("codes"), "codes")


def measure_music(folder: Path) -> dict[str, float]:
    memory, clock = Memory(), Clock()
    tracks = Scan.load(folder / "data").tracks.of("train")
    rows = named(clock.rows("open the list of music"), "music")
    WaveformCrops(folder, tracks, RATE, 2, 65536, 0, cache_gigabytes=2.0)
    rows |= named(clock.rows("music: ready for the first crop"), "crop")
    return rows | named(memory.rows("list of music"), "music")


def tables(folder: Path, options: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {}
    for n in (FEW, options.tracks):
        clock = Clock()
        make_run(folder / str(n), n)
        found.setdefault("write the codes and the list of music, s", []).append(time.perf_counter() - clock.began)
        for what in ("codes", "music"):
            for name, value in result_of(child(what, folder / str(n))).items():
                found.setdefault(name, []).append(value)
    size = sum(path.stat().st_size for path in (folder / str(options.tracks) / "codes").iterdir()) / 1e9
    print(f"{'':44}{FEW:>9} tracks{options.tracks:>11} tracks ({size:.1f} GB of codes)")
    for name, values in found.items():
        print(f"{name:44}" + "".join(f"{value:12.3f}      " for value in values), flush=True)


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


def measure_scan(folder: Path, cache: Path) -> dict[str, float]:
    memory, clock = Memory(), Clock()
    found = scan(folder, DataConfig(min_seconds=0.1), cache)
    return {"tracks": len(found.tracks), **clock.rows("scan"), **memory.rows("scan")}


def resumed_scan(folder: Path, options: argparse.Namespace) -> None:
    """A scan of many small files that is killed, and goes on."""
    music, cache, n_files = folder / "music", folder / "scan_cache.jsonl", options.files
    make_files(music, n_files)
    some = result_of(child("scan", music / "000", folder / "few" / "scan_cache.jsonl"))
    print(f"scan of {some['tracks']} small files: {some['scan, s']:.2f} s, {some['    CPU s']:.2f} s of CPU time")
    process = child("scan", music, cache)
    while not cache.exists() or cache.stat().st_size < 220 * n_files:  # about half the lines
        time.sleep(0.01)
        if process.poll() is not None:
            raise SystemExit("the scan was done before it could be killed; give more --files")
    process.kill()
    process.wait()
    n_known = cache.read_bytes().count(b"\n")
    rest, again = (result_of(child("scan", music, cache)) for _ in range(2))
    peak = f"{rest['    its peak']:.0f} MB"
    print(
        f"scan of {n_files} small files, killed (-9) after {n_known}: the rest takes {rest['scan, s']:.2f} s, "
        f"{rest['    CPU s']:.2f} s of CPU time, {peak}\n"
        f"    again, nothing new: {again['scan, s']:.2f} s, {again['    CPU s']:.2f} s of CPU time, {again['tracks']} tracks",
        flush=True,
    )


def long_audio(seconds: float, seed: int) -> np.ndarray:
    """Stereo [samples, 2]: a chord and noise, so that lossless files have about the size of those of music."""
    random, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    chord = np.sum([np.sin(2 * np.pi * f * t) for f in random.uniform(100, 2000, 6)], axis=0) / 10
    return (chord[:, None] + random.normal(0, 0.02, (len(t), 2))).clip(-1, 1)


def measure_share(folder: Path, rank: int, n: int) -> dict[str, float]:
    """Seconds of scan and of encoding on one of `n` processes, without start and loading of the model."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{n}", rank=rank, world_size=n)
    network, place, rows = Tokenizer.from_pretrained("default", device="cpu").network, folder / f"on-{n}", {}
    dist.barrier()
    clock = Clock()
    music = scan(folder / "long", DataConfig(), place / "data" / f"scan_cache-{rank}.jsonl")
    dist.barrier()
    rows |= {"scan": time.perf_counter() - clock.began, "scan, CPU": time.process_time() - clock.began_cpu}
    if rank == 0:
        music.save(place / "data")
    dist.barrier()
    music, clock = Scan.load(place / "data"), Clock()
    encode_data_set(place / "codes", music, network, 1, torch.device("cpu"))
    rows |= {"encode": time.perf_counter() - clock.began, "encode, CPU": time.process_time() - clock.began_cpu}
    dist.destroy_process_group()
    return rows


def shares(folder: Path, options: argparse.Namespace) -> None:
    (folder / "long").mkdir()
    for i in range(N_LONG):
        soundfile.write(folder / "long" / f"{i}.flac", long_audio(LONG_SECONDS, i), RATE)
    alone = [result_of(child("share", folder, 0, 1))]
    two = [result_of(process) for process in [child("share", folder, rank, 2, core=rank) for rank in range(2)]]
    seconds, rates = N_LONG * LONG_SECONDS, {}
    for what in ("scan", "encode"):
        one, both = alone[0][what], max(rows[what] for rows in two)
        used, used_both = alone[0][f"{what}, CPU"], sum(rows[f"{what}, CPU"] for rows in two)
        rates[what] = seconds / used
        print(
            f"{what} {seconds / 60:.0f} min of FLAC: 1 process {one:.1f} s, 2 processes {both:.1f} s: {one / both:.2f} times "
            f"as fast; CPU time {used:.1f} and {used_both:.1f} s, {rates[what]:.0f} times real time a core",
            flush=True,
        )
    n_cores = GPUS * options.cores
    print(f"\n{HOURS:,} h with {GPUS} GPUs, {options.cores} cores for each:")
    for what, made_from in (
        ("scan", "FLAC on a core"),
        ("encode", "the bundled tokenizer on a core, without the GPUs"),
    ):
        hours = HOURS / rates[what] / n_cores
        print(f"  {what:8}{hours:8.2f} h    computed from {rates[what]:.0f} times real time, measured with {made_from}")
    if torch.cuda.is_available():
        rate = encoding_rate(torch.device("cuda"))
        print(
            f"  encode  {HOURS / rate / GPUS:8.2f} h    computed from {rate:.0f} times real time, measured on one GPU"
        )
    else:
        print("  encode on the GPUs: not measured, this machine has none")


def encoding_rate(device: torch.device) -> float:
    tokenizer = Tokenizer.from_pretrained("default", device=device)
    waveform = torch.from_numpy(long_audio(LONG_SECONDS, 0).T).float()
    tokenizer.encode(waveform, RATE)
    clock = Clock()
    for _ in range(5):
        tokenizer.encode(waveform, RATE)
    return 5 * LONG_SECONDS / (time.perf_counter() - clock.began)


def measure_checkpoints(folder: Path, seconds: float) -> dict[str, float]:
    """A loop of steps of a network of 30 M parameters with AdamW, and checkpoints at the default interval."""
    network = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(29)])
    optimizer, config = torch.optim.AdamW(network.parameters()), TrainingConfig(steps=1)
    checkpoints = Checkpoints(folder / "checkpoints", network, [optimizer], Averages(network, 0.0), config)
    clock, quiet, stalls, n = Clock(), list[float](), list[float](), 0
    while time.perf_counter() - clock.began < seconds:
        began, is_writing = time.perf_counter(), checkpoints.writing is not None and not checkpoints.writing.done()
        network(torch.randn(32, 1024)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        n += 1
        if not is_writing:
            quiet.append(time.perf_counter() - began)
        if checkpoints.due:
            checkpoints.save(n)
            stalls.append(checkpoints.stall)
    whole = time.perf_counter() - clock.began
    checkpoints.wait()
    return {
        "checkpoints": len(stalls), "interval": config.checkpoint_seconds, "stall": statistics.mean(stalls),
        "share": sum(stalls) / whole, "lost": 1 - n * statistics.mean(quiet) / whole,
    }  # fmt: skip


def stalls(folder: Path, options: argparse.Namespace) -> None:
    found = result_of(child("checkpoints", folder, 185))
    print(
        f"checkpoints of 30 M parameters with AdamW, {found['checkpoints']} in 185 s (every {found['interval']:.0f} s, the "
        f"default): each holds up the loop for {found['stall']:.2f} s, {found['share']:.2%} of the time; "
        f"with slower steps while one is written {found['lost']:.2%}",
        flush=True,
    )


def measure_crops(folder: Path) -> dict[str, float]:
    tracks = scan(folder, DataConfig()).tracks
    data = WaveformCrops(folder, tracks, RATE, 2, RATE, 0, cache_gigabytes=0.0)
    for i in range(5):
        data[i]
    began = sum(os.times()[:4])  # CPU time, that of ffmpeg, too
    for i in range(5, 155):
        data[i]
    return {"crops": 150 / (sum(os.times()[:4]) - began)}


def crops(folder: Path, options: argparse.Namespace) -> None:
    kinds = {"flac": RATE, "opus": 48000} | ({"m4a": RATE} if shutil.which("ffmpeg") else {})
    for suffix, rate in kinds.items():
        (folder / suffix).mkdir()
        for i in range(4):
            kind: dict[str, Any] = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
            path = folder / suffix / f"{i}.{suffix}"
            written = path if suffix != "m4a" else folder / "m4a.flac"
            soundfile.write(written, long_audio(60, i), rate, **kind)
            if written != path:
                subprocess.run(["ffmpeg", "-v", "error", "-i", written, "-c:a", "aac", path], check=True)
        found = result_of(child("crops", folder / suffix))["crops"]
        fed = ", ".join(f"{found * options.cores * step:.0f} in {step} s" for step in (0.1, 0.25, 1.0))
        print(
            f"crops of 1 s from {suffix} at {rate} Hz: {found:.0f} a second of one core (measured); "
            f"a step of a GPU with {options.cores} cores gets {fed} (computed from it)",
            flush=True,
        )


def child(*arguments: object, core: int = 0) -> subprocess.Popen[str]:
    """A measurement in a process of its own, on one core."""
    cores = sorted(os.sched_getaffinity(0))
    command = [
        "taskset",
        "-c",
        str(cores[core % len(cores)]),
        sys.executable,
        __file__,
        "--child",
        *map(str, arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])


PARTS = {"tables": tables, "resume": resumed_scan, "shares": shares, "checkpoints": stalls, "crops": crops}


def run_child(what: str, *arguments: str) -> dict[str, float]:
    paths, numbers = [Path(a) for a in arguments if "/" in a], [int(a) for a in arguments if "/" not in a]
    measure: dict[str, Any] = {
        "codes": measure_codes, "music": measure_music, "scan": measure_scan, "share": measure_share,
        "checkpoints": measure_checkpoints, "crops": measure_crops,
    }  # fmt: skip
    return measure[what](*paths, *numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=2_000_000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--cores", type=int, default=12, help="cores for each GPU, in what is computed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--folder", type=Path, help="where the data is made and removed again; default a temporary one")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(*options.child)))
        return
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, load {load}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {'a GPU' if torch.cuda.is_available() else 'no GPU'}"
    )
    for name in options.only:
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            PARTS[name](Path(folder), options)


if __name__ == "__main__":
    main()
