"""audiovq-player compared with `audiovq sample`: time with start-up, first sound, size of the environment, and whether the codes are equal.

python benchmarks/player.py PAGE [--python ENV/bin/python] [--model default] [--pieces 10] [--in-browser]

PAGE is what `audiovq export MODEL PAGE --web` wrote; ENV an environment with audiovq-player alone.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from audiovq import Generator

sys.path.insert(0, str(Path(__file__).parent.parent / "player"))
from audiovq_player import Player

ROOT = Path(__file__).parent.parent
SECONDS_PER_PIECE = 93.0  # ten pieces of the bundled model have 100,000 codes
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--autoplay-policy=no-user-gesture-required",
)
Codes = Sequence[np.ndarray]


def seconds_of(command: Sequence[str]) -> tuple[float, float]:
    """Wall time and CPU time of a command."""
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    cpu = 0.0
    while process.poll() is None:
        try:
            cpu = sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - began, cpu


def first_sound(command: Sequence[str]) -> float:
    """Seconds from the command to the first sample in its standard output."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        assert process.stdout
        process.stdout.read(44 + 2)
        took = time.perf_counter() - began
        process.kill()
    return took


def print_times(python: str, page: str, model: str, n: int = 5) -> None:
    """Both commands by turns, so that other load meets both."""
    audiovq = [sys.executable, "-m", "audiovq", "sample", "--model", model, "--no-report", "--seed", "0"]
    player = [python, "-m", "audiovq_player", "sample", "--model", page, "--seed", "0"]
    with tempfile.TemporaryDirectory() as folder:
        whole = ["--seconds", "20", "--out", f"{folder}/a.wav"]
        commands = {"audiovq sample": [*audiovq, *whole], "audiovq-player sample": [*player, *whole]}
        piped = ["--seconds", "600", "--out"]
        pipes = {
            "audiovq sample": [*audiovq, *piped, f"{folder}/b.wav", "--stream", "-"],
            "audiovq-player sample": [*player, *piped, "-"],
        }
        found = {name: list[tuple[float, float]]() for name in commands}
        first = {name: list[float]() for name in pipes}
        for _ in range(n):
            for name, command in commands.items():
                found[name].append(seconds_of(command))
                first[name].append(first_sound(pipes[name]))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{name:22} 20 s of music, start-up included: {wall:5.2f} s, {cpu:5.2f} s of CPU time (median of {n})")
    for name, times in first.items():
        print(f"{name:22} ten minutes to a pipe: first sound {statistics.median(times):.2f} s after the command")
    (wall, cpu), (other_wall, other_cpu) = medians.values()
    print(f"player / audiovq: {other_wall / wall:.2f} of the time, {other_cpu / cpu:.2f} of the CPU time")


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def print_equality(name: str, pieces: Callable[[int], Codes], expected: Sequence[Codes]) -> None:
    """How many draws differ: of each piece those up to the first other code, because all later ones follow from it."""
    n_draws = n_different = 0
    for seed, codes in enumerate(expected):
        found = pieces(seed)
        first = [np.flatnonzero(a != b) for a, b in zip(found, codes, strict=True)]
        # In levels that are finer than a changed one, everything may follow from the change.
        level = next((i for i, places in enumerate(first) if len(places)), None)
        n_draws += sum(map(len, codes)) if level is None else sum(map(len, codes[:level])) + int(first[level][0]) + 1
        n_different += level is not None
    print(f"{name}: {n_different} of {n_draws} draws differ from torch in fp32 ({len(expected)} pieces)")


@contextmanager
def opened_page(page: Path) -> Iterator[Callable[[int, float], Codes]]:
    """A function that makes a piece in Chromium."""
    from playwright.sync_api import sync_playwright

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page))
    handler.func.log_message = lambda *values: None  # type: ignore[method-assign]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        def make(seed: int, seconds: float) -> Codes:
            tab = browser.new_page()
            tab.goto(f"http://127.0.0.1:{server.server_address[1]}/#seconds={seconds}&seed={seed}")
            tab.wait_for_selector("#make:not([disabled])", timeout=300_000)
            began = time.perf_counter()
            tab.click("#make")
            tab.wait_for_selector("#status:text-is('Done.')", timeout=3_600_000)
            speed = seconds / (time.perf_counter() - began)
            state = tab.evaluate(
                "import('./page.js').then(({ state: s }) => [s.firstSound, s.codes.map((c) => [...c])])"
            )
            print(f"  page, seed {seed}: {speed:.2f} × real time, first sound after {state[0] / 1000:.2f} s")
            tab.close()
            return [np.array(level) for level in state[1]]

        yield make
        browser.close()
    server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--model", default="default")
    parser.add_argument("--pieces", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=SECONDS_PER_PIECE)
    parser.add_argument("--in-browser", action="store_true")
    options = parser.parse_args()
    model = str(options.page.absolute())
    print_times(options.python, model, options.model)
    print(f"environment of the player: {megabytes(Path(options.python).parent.parent):.0f} MB")
    print(f"page: {megabytes(options.page):.1f} MB")
    generator = Generator.from_pretrained(options.model, "cpu")
    expected = [
        [level.numpy() for level in generator.sample_codes(options.seconds, seed, precision="fp32")[0].levels]
        for seed in range(options.pieces)
    ]
    player = Player(model)

    def by_player(seed: int) -> Codes:
        piece = player.piece(options.seconds, seed, keep_codes=True)
        for _ in piece.blocks():
            pass
        return piece.codes

    print_equality("player", by_player, expected)
    if options.in_browser:
        with opened_page(options.page) as make:
            print_equality("page", lambda seed: make(seed, options.seconds), expected)


if __name__ == "__main__":
    main()
