"""Seconds from the last code of a piece to its sound and its picture on the page of the studio, in a real browser.

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
# Seconds since 1970 when a player can play a sound whose title begins in one of these ways, and when it shows a picture.
WATCH = """([place, titles, picture]) => new Promise((done) => {
    const now = () => Date.now() / 1000, found = {};
    const look = () => {
        const [h3, audio, img] = ["h3", "audio", "img"].map((name) => document.querySelector(`#${place} ${name}`));
        if (h3 && titles.some((title) => h3.textContent.startsWith(title)) && audio.getAttribute("src")) {
            if (audio.readyState >= 3) found.sound ??= now();
            if (h3.textContent.startsWith(titles.at(-1)) && img.complete && img.naturalWidth) found.picture ??= now();
        }
        found.sound && (found.picture || !picture) ? done(found) : setTimeout(look, 5);
    };
    look();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(api.bundled_model()))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    limits = Limits(max_seconds=arguments.seconds)
    with open_studio(Path(arguments.model), limits) as (url, service), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.wait_for_selector("#make:enabled")
        page.fill("#seconds input[type=number]", f"{arguments.seconds:g}")
        page.keyboard.press("Tab")
        rows = [make(page, service, number) for number in range(1, arguments.turns + 1)]
        rows += [use_recording(page, service)]
        browser.close()
    print(f"pieces of {arguments.seconds:g} s, {arguments.model}")
    for row in rows:
        print(", ".join(f"{name} {value:.2f} s" for name, value in row.items()))
    last = [max(row["codes to sound"], row["codes to picture"]) for row in rows]
    print(f"from codes to sound and picture: median {statistics.median(last):.2f} s, longest {max(last):.2f} s")


def make(page: Page, service: Service, number: int) -> dict[str, float]:
    """A new piece; seconds."""
    began = time.time()
    page.click("#make")
    sketch = page.evaluate(WATCH, ["main", ["A sketch: 1 "], False])
    whole = page.evaluate(WATCH, ["main", ["All levels", f"Version {number} "], True])
    token = page.evaluate("sessionStorage.getItem('audiovq-studio')")
    made_at = service.session(token).tree.get(number).made_at
    return {"click to sketch": sketch["sound"] - began, "click to codes": made_at - began} | since(made_at, whole)


def use_recording(page: Page, service: Service) -> dict[str, float]:
    """The last piece as a recording; seconds."""
    session = service.session(page.evaluate("sessionStorage.getItem('audiovq-studio')"))
    sound = session.files.sound(session.tree.get(max(session.tree.versions)))
    page.get_by_role("tab", name="Use a recording").click()
    began = time.time()
    page.set_input_files("#upload input[type=file]", sound)
    whole = page.evaluate(WATCH, ["original", [sound.name], True])
    assert session.recording is not None
    return {"drop to codes": session.recording.made_at - began} | since(session.recording.made_at, whole)


def since(made_at: float, found: dict[str, Any]) -> dict[str, float]:
    return {"codes to sound": found["sound"] - made_at, "codes to picture": found["picture"] - made_at}


if __name__ == "__main__":
    main()
