"""Latency of changes, real-time factor, pauses and memory of music without end; first sound of `sample --stream`.

python benchmarks/live.py [MODEL] [--changes 20] [--minutes 1] [--block 0.1] [--buffer 0.15] [--threads 1]

A change is another value of a label, or another seed if the model has no label. Its latency is the time from `set` until
the sound that a player gives in real time differs from a twin's without the change: by a tenth of its loudness (root
mean square of 23 ms), and by half. The buffer is in it. What is above `latency_seconds` and the buffer is the music's own:
a held note sounds on. A change takes three seconds and more.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import numpy as np
import psutil
import torch

from audiovq import api
from audiovq.api import Generator
from audiovq.live.player import Player, null_device
from audiovq.utils.progress import track

WINDOW = 1024  # samples that are compared
ALONE, LONGEST = 1.0, 4.0  # seconds after a change until its twin is made, and until the sound must differ


class Recorder(Player):
    """Keeps what it gives, and how much was played and taken, with pauses, after each time."""

    heard: tuple[np.ndarray, ...] = ()
    marks: tuple[tuple[int, int], ...] = ((0, 0),)

    def take(self, n: int) -> np.ndarray:
        before = self.n_played
        out = super().take(n)
        self.heard += (out[: self.n_played - before],)
        self.marks += ((self.n_played, self.marks[-1][1] + n),)
        return out


def latencies(generator: Generator, n: int, block: float, buffer: float) -> tuple[list[list[float]], int]:
    """Seconds from each change until the sound differs by a tenth and by half, and the pauses meanwhile."""
    found, pauses, random = list[list[float]](), 0, Random(0)
    label, values = next(iter(generator.labels.items()), ("", []))
    labels = {label: values[0]} if values else {}
    state = generator.live(seed=0, block_seconds=block, labels=labels).state()
    for i in track(range(n), "changes", n):
        live, twin = generator.live(state=state), generator.live(state=state)
        change = {label: values[(i + 1) % len(values)]} if values else {"seed": i + 1}
        player = Recorder(live, buffer, lambda line: None)
        with player, null_device(player):
            time.sleep(0.4 + 0.6 * random.random())
            live.set(**change)
            (at, began), rate = player.marks[-1], player.rate
            time.sleep(ALONE)  # the twin takes as much computing as the music
            twin.read(at / rate)
            ratios, end = np.zeros(0), time.monotonic() + LONGEST - ALONE
            while not (ratios > 0.5).any() and time.monotonic() < end:
                time.sleep(0.2)
                sound = np.concatenate(player.heard)[at:, 0]
                new = sound[len(ratios) * WINDOW : len(sound) // WINDOW * WINDOW].reshape(-1, WINDOW)
                same = twin.read(new.size / rate)[0].numpy().reshape(-1, WINDOW) if new.size else new
                level = np.maximum(np.linalg.norm(same, axis=1), 0.01)
                ratios = np.append(ratios, np.linalg.norm(new - same, axis=1) / level)
        changed = [at + int(np.append(ratios > share, True).argmax() + 1) * WINDOW for share in (0.1, 0.5)]
        times = [next((taken for played, taken in player.marks if played >= n), math.inf) - began for n in changed]
        found.append([taken / rate for taken in times])
        pauses, state = pauses + player.underruns, live.state()
    return found, pauses


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
    parser.add_argument("--block", type=float, default=0.1)
    parser.add_argument("--buffer", type=float, default=0.15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"{given.model}; {platform.processor() or platform.machine()}, {given.threads} threads, load {load:.1f} a core"
    )
    generator = Generator.from_pretrained(given.model)
    if given.changes:
        found, pauses = latencies(generator, given.changes, given.block, given.buffer)
        for share, values in zip(("a tenth", "half"), zip(*found, strict=True), strict=True):
            middle, worst = statistics.median(values), max(values)
            print(f"from set() to a sound that differs by {share}: median {middle:.2f} s, worst {worst:.2f} s")
        promised = generator.live(block_seconds=given.block).latency_seconds
        print(f"`latency_seconds` {promised:.2f}, buffer {given.buffer:g}; {pauses} pauses")
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
