"""Latency of changes, real-time factor, pauses and memory of music without end; first sound of `sample --stream`.

python benchmarks/live.py [MODEL] [--changes 20] [--minutes 1] [--block 0] [--buffer 0.5] [--threads 1]

A change is another seed, so every code after it differs. Its latency is the music from `set` to the first 50 ms that
differ from a twin's without the change by at least half of their loudness (root mean square), and the time that it takes
to make that music; a buffer comes on top.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from audiovq import api
from audiovq.api import Generator
from audiovq.live.player import Player, null_device

READ_SECONDS = 0.05


def latencies(generator: Generator, n: int, block: float) -> tuple[list[float], list[float]]:
    """Seconds of music until it differs, and seconds of work until then, of each change."""
    music, work = [], []
    live = generator.live(seed=0, block_seconds=block)
    live.read(1)
    for i in range(n):
        state = live.state()
        twin = generator.live(state=state)
        live.set(seed=i + 1)
        began, heard = time.monotonic(), 0.0
        while True:
            changed = live.read(READ_SECONDS)
            took = time.monotonic() - began
            same = twin.read(READ_SECONDS)
            heard += READ_SECONDS
            if (changed - same).norm() > same.norm() / 2:
                music.append(heard)
                work.append(took)
                break
            began = time.monotonic() - took  # the twin's work does not count
    return music, work


def first_sound(model: str) -> tuple[float, float]:
    """Seconds from the command to the first sound of ten minutes, and from then to the second second of sound."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "audiovq", "sample", "--model", model, "--seconds", "600", "--seed", "1"]
        began = time.monotonic()
        out = Path(folder) / "x.wav"
        with subprocess.Popen(
            [*command, "--stream", "-", "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout
            process.stdout.read(44 + 2)
            first = time.monotonic() - began
            process.stdout.read(88200)
            second = time.monotonic() - began - first
            process.kill()
        return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(api.bundled_model()))
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--block", type=float, default=0.0)
    parser.add_argument("--buffer", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"{given.model}; {platform.processor() or platform.machine()}, {given.threads} threads, load {load:.1f} a core"
    )
    generator = Generator.from_pretrained(given.model)
    if given.changes:
        music, work = latencies(generator, given.changes, given.block)
        promised = generator.live(block_seconds=given.block).latency_seconds
        for name, values in (("seconds of music", music), ("seconds of work", work)):
            print(
                f"from set() to changed sound, {name}: median {statistics.median(values):.2f}, worst {max(values):.2f}"
            )
        print(f"`latency_seconds` promises at most {promised:.2f}")
    process, memory = psutil.Process(), list[float]()
    live = generator.live(seed=0, block_seconds=given.block)
    with Player(live, given.buffer, print) as player, null_device(player):
        end, cpu = time.monotonic() + 60 * given.minutes, time.process_time()
        while time.monotonic() < end:
            time.sleep(min(5.0, max(0.0, end - time.monotonic())))
            memory.append(process.memory_info().rss / 2**20)
        per_cpu = player.n_made / player.rate / (time.process_time() - cpu)
    print(f"{given.minutes:g} minutes, block {given.block:g} s, buffer {given.buffer:g} s: {player.underruns} pauses")
    print(f"seconds of music in a second: {player.real_time_factor:.1f}, in a CPU-second: {per_cpu:.1f}")
    print(f"memory: {memory[0]:.0f} MB at first, {max(memory):.0f} MB at most")
    first, second = first_sound(given.model)
    print(
        f"sample --stream of ten minutes: first sound after {first:.2f} s, another second of sound {second:.2f} s later"
    )


if __name__ == "__main__":
    main()
