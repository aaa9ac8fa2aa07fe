"""Seconds from the last code of a piece to its sound and its picture in the page of the studio, in a real browser.

python benchmarks/studio.py [MODEL] [--seconds 20] [--turns 3]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from audiovq import api
from audiovq.studio.page import open_studio
from audiovq.studio.service import Service
from audiovq.studio.uploads import Limits

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
# When a player first can play a sound whose title begins in one of these ways, and its picture is there; seconds since 1970.
WATCH = """([place, titles, seen]) => new Promise((done) => {
    const now = () => Date.now() / 1000, found = {};
    const look = () => {
        const [h3, audio, img] = ["h3", "audio", "img"].map((name) => document.querySelector(`#${place} ${name}`));
        if (h3 && titles.some((title) => h3.textContent.startsWith(title)) && audio.getAttribute("src")) {
            if (audio.readyState >= 3) found.heard ??= now();
            if (h3.textContent.startsWith(titles.at(-1)) && img.complete && img.naturalWidth) found.seen ??= now();
        }
        found.heard && (found.seen || !seen) ? done(found) : setTimeout(look, 5);
    };
    look();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(api.bundled_model()))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    limits = Limits(max_seconds=asked.seconds)
    with open_studio(Path(asked.model), limits) as (url, bench), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.wait_for_selector("#make:enabled")
        page.fill("#seconds input[type=number]", f"{asked.seconds:g}")
        page.keyboard.press("Tab")
        rows = [make(page, bench, number) for number in range(1, asked.turns + 1)]
        rows += [take_apart(page, bench)]
        browser.close()
    print(f"pieces of {asked.seconds:g} s, {asked.model}")
    for row in rows:
        print(", ".join(f"{name} {value:.2f} s" for name, value in row.items()))
    last = [max(row["codes to sound"], row["codes to picture"]) for row in rows]
    print(f"from codes to sound and picture: median {statistics.median(last):.2f} s, longest {max(last):.2f} s")


def make(page: Page, bench: Service, number: int) -> dict[str, float]:
    """A new piece; seconds."""
    began = time.time()
    page.click("#make")
    sketch = page.evaluate(WATCH, ["main", ["A sketch: 1 "], False])
    whole = page.evaluate(WATCH, ["main", ["All levels", f"Version {number} "], True])
    token = page.evaluate("sessionStorage.getItem('audiovq-studio')")
    made_at = bench.desk(token).tree.get(number).made_at
    return {"click to sketch": sketch["heard"] - began, "click to codes": made_at - began} | since(made_at, whole)


def take_apart(page: Page, bench: Service) -> dict[str, float]:
    """The last piece as a recording; seconds."""
    desk = bench.desk(page.evaluate("sessionStorage.getItem('audiovq-studio')"))
    sound = desk.shelf.sound(desk.tree.get(max(desk.tree.versions)))
    page.get_by_role("tab", name="Take a recording apart").click()
    began = time.time()
    page.set_input_files("#upload input[type=file]", sound)
    whole = page.evaluate(WATCH, ["original", [sound.name], True])
    assert desk.recording is not None
    return {"drop to codes": desk.recording.made_at - began} | since(desk.recording.made_at, whole)


def since(made_at: float, found: dict[str, Any]) -> dict[str, float]:
    return {"codes to sound": found["heard"] - made_at, "codes to picture": found["seen"] - made_at}


if __name__ == "__main__":
    main()
