"""The studio as a user waits for it: start to usable page, and from the last code to the sound.

python benchmarks/studio.py [MODEL] [--seconds 20] [--turns 3]

The page is usable when it is in Chromium and has the answer of `api/model`. Without Chromium that line is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import httpx
from playwright.sync_api import sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    starts = [start(arguments, chromium, n_pieces=0) for _ in range(arguments.turns - 1)]
    starts.append(start(arguments, chromium, n_pieces=arguments.turns))
    for name in starts[0]:
        print(f"start to {name}: median {statistics.median(row[name] for row in starts):.2f} s")


def start(arguments: argparse.Namespace, chromium: str | None, n_pieces: int) -> dict[str, float]:
    """Start the command and make pieces; seconds from the start to each step of it."""
    with tempfile.TemporaryDirectory() as projects, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS) if chromium else None
        page = browser.new_page() if browser else None
        command = [sys.executable, "-m", "audiovq", "studio", "--projects", projects]
        command += [arguments.model] if arguments.model else []
        began = time.time()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, ended(process) as output:
            url = next(word for word in output.readline().split() if word.startswith("http"))
            found = {}
            with httpx.Client(base_url=url, timeout=120) as client:
                client.get("/")
                found["first answer"] = time.time() - began
                if page is not None:
                    with page.expect_response("**/api/model", timeout=60_000) as answer:
                        page.goto(url, wait_until="commit")
                    answer.value.finished()
                    found["usable page"] = time.time() - began
                client.get("/api/model").raise_for_status()
                found["loaded model"] = time.time() - began
                rows = [make(client, arguments.seconds) for _ in range(n_pieces)]
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


if __name__ == "__main__":
    main()
