"""The studio as a user waits for it: start to usable page, from the last code to the sound, and live.

python benchmarks/studio.py [MODEL] [--seconds 20] [--turns 3] [--changes 10] [--buffer 0.15]

The page is usable when Chromium shows its button "Make music" enabled. Without Chromium that line is left out. The first start
with a model other than the bundled one waits for it; the next ones show what is kept of it. Live:
a client of the websocket plays in real time as the page does, and switches a label (or the seed) once in each session; the
latency is the time from then until what it plays differs from the music without the switch by a tenth of its loudness.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import httpx
import numpy as np
from playwright.sync_api import sync_playwright
from websockets.sync.client import connect

from audiovq.api import Generator

TICK, PLAYED, WINDOW = 0.02, 3.0, 1024  # seconds between two reports, and after a switch; samples that are compared
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--buffer", type=float, default=0.15)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as projects:
        first, *starts = [start(arguments, projects, chromium, n_pieces=0) for _ in range(arguments.turns)]
        starts.append(start(arguments, projects, chromium, n_pieces=arguments.turns))
    for name in first:
        print(
            f"start to {name}: median {statistics.median(row[name] for row in starts):.2f} s, first {first[name]:.2f} s"
        )


def start(arguments: argparse.Namespace, projects: str, chromium: str | None, n_pieces: int) -> dict[str, float]:
    """Start the command and make pieces; seconds from the start to each step of it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS) if chromium else None
        page = browser.new_page() if browser else None
        command = [sys.executable, "-m", "audiovq", "studio", "--projects", projects]
        command.append(arguments.model)
        began = time.time()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, ended(process) as output:
            url = next(word for line in output for word in line.split() if word.startswith("http"))
            found = {}
            with httpx.Client(base_url=url, timeout=120) as client:
                client.get("/")
                found["first answer"] = time.time() - began
                if page is not None:
                    page.goto(url, wait_until="commit")
                    page.wait_for_selector("#make .primary:enabled", timeout=60_000)
                    found["usable page"] = time.time() - began
                client.get("/api/model").raise_for_status()
                found["loaded model"] = time.time() - began
                rows = [make(client, arguments.seconds) for _ in range(n_pieces)]
            if n_pieces and arguments.changes:
                live(url, arguments)
    for name in rows[0] if rows else ():
        print(f"{name}: median {statistics.median(row[name] for row in rows):.2f} s")
    return found


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[IO[str]]:
    """Its messages; it is ended with the block, also after an error."""
    assert process.stderr is not None
    try:
        yield process.stderr
    finally:
        process.terminate()


def make(client: httpx.Client, seconds: float) -> dict[str, float]:
    """A piece; seconds from its last code to the whole sound."""
    answer = client.post("/api/pieces", json={"seconds": seconds}).raise_for_status().json()
    project = f"/api/projects/{answer['project']['id']}"
    while not (versions := client.get(project).raise_for_status().json()["versions"]):
        time.sleep(0.25)  # as the page does
    client.get(f"{project}/versions/1/sound").raise_for_status()
    return {"last code to sound": time.time() - versions[0]["made_at"]}


def live(url: str, arguments: argparse.Namespace) -> None:
    """Print latency and pauses of the websocket."""
    generator = Generator.from_pretrained(arguments.model)
    label, values = next(iter(generator.labels.items()), ("", []))
    latencies, pauses = [], 0
    for i in range(arguments.changes):
        first = {"seed": i, **({label: values[i % len(values)]} if values else {})}
        second = {label: values[(i + 1) % len(values)]} if values else {"seed": i + 1000}
        sound, at, underruns = session(url, first, second, arguments.buffer, 1 + i / arguments.changes, generator)
        n = (len(sound) - at) // WINDOW * WINDOW
        without = generator.live(**first)
        without.read(at / generator.sample_rate)
        same = without.read(n / generator.sample_rate)[0].numpy().reshape(-1, WINDOW)
        differs = np.linalg.norm(sound[at:][:n].reshape(-1, WINDOW) - same, axis=1) > 0.1 * np.linalg.norm(same, axis=1)
        latencies.append(float(differs.argmax() + 1) * WINDOW / generator.sample_rate)
        pauses += underruns
    seconds = arguments.changes * (PLAYED + 1.5)
    print(
        f"live: from a switch to changed sound: median {statistics.median(latencies):.2f} s, worst {max(latencies):.2f} s"
    )
    print(f"live: {pauses} pauses in {seconds:.0f} s of {arguments.changes} sessions, buffer {arguments.buffer:g} s")


def session(
    url: str, first: dict, second: dict, buffer: float, switch: float, generator: Generator
) -> tuple[np.ndarray, int, int]:
    """What was played, float32 [n] of one channel, how much of it before the switch, and the pauses."""
    rate, blocks, n_received, n_before, underruns, at = generator.sample_rate, [], 0, 0, 0, None
    began = None  # the time at which the sample `n_before` is played
    with connect(url.replace("http", "ws") + "/api/live") as line:
        line.send(json.dumps({"set": first, "buffer": buffer}))
        while True:
            with contextlib.suppress(TimeoutError):
                found = line.recv(timeout=TICK)
                if isinstance(found, bytes):
                    blocks.append(np.frombuffer(found, np.float32).reshape(generator.tokenizer.config.channels, -1)[0])
                    n_received += len(blocks[-1])
            played = n_before if began is None else n_before + round((time.monotonic() - began) * rate)
            if played > n_received:  # a pause, until the buffer is full again
                began, n_before, underruns, played = None, n_received, underruns + 1, n_received
            if began is None and n_received - n_before >= buffer * rate:
                began = time.monotonic()
            if at is None and played > switch * rate:
                at = played
                line.send(json.dumps({"set": second}))
            line.send(json.dumps({"played": played, "underruns": underruns}))
            if at is not None and played > at + PLAYED * rate:
                return np.concatenate(blocks)[:played], at, underruns


if __name__ == "__main__":
    main()
