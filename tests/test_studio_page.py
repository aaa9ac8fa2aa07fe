"""The studio in a real browser, from an empty page to downloaded files."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import assert_one_line_error, cli, tones
from playwright.sync_api import Browser, BrowserContext, Page

from audiovq import Codes, Tokenizer
from audiovq.studio.service import Service
from audiovq.studio.uploads import Limits

pytest.importorskip("gradio")
from audiovq.studio import page as studio_page

LIMITS = Limits(max_seconds=20, max_upload_mb=0.5, max_takes=2)


@pytest.fixture(scope="module")
def studio(tiny_run: Path) -> Iterator[tuple[str, Service]]:
    with studio_page.open_studio(tiny_run, LIMITS, name="<b>tiny</b>") as opened:
        yield opened
        folder = opened[1].folder.parent
    assert not folder.exists()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that caches scripts and style; each of its pages is another user of the studio."""
    found = browser.new_context(viewport={"width": 1280, "height": 900})
    found.set_default_timeout(120_000)  # for a busy machine
    yield found
    found.close()


@pytest.fixture
def page(context: BrowserContext, studio: tuple[str, Service]) -> Iterator[Page]:
    """A page that has been opened; a request to another address fails the test."""
    tab = visit(context.new_page(), studio[0])
    yield tab
    tab.close()


@pytest.fixture
def details(studio: tuple[str, Service], monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Generation waits after each level until this is set."""
    go_on, grow = threading.Event(), studio[1].generator.grow

    def waiting(*arguments: Any, **options: Any) -> Iterator[list[Codes]]:
        for takes in grow(*arguments, **options):
            yield takes
            assert go_on.wait(120)

    monkeypatch.setattr(studio[1].generator, "grow", waiting)
    return go_on


def visit(tab: Any, url: str) -> Any:
    def only_from_the_studio(request: Any) -> None:
        assert request.url.startswith((url, "data:", "blob:")), request.url

    tab.on("request", only_from_the_studio)
    tab.goto(url)
    tab.wait_for_selector("#make:enabled")
    return tab


def wait_for_sketch(tab: Any) -> None:
    tab.wait_for_function("document.querySelector('#main h3')?.textContent.includes('1 of 3 levels')")


def wait_for_version(tab: Any, number: int) -> None:
    tab.wait_for_function(f"document.querySelector('#main h3')?.textContent.startsWith('Version {number} ') === true")
    tab.wait_for_function("document.querySelector('#main audio').readyState >= 1")
    tab.wait_for_function(f"document.querySelector('#main img').src.endsWith('/audiovq-{number}.png')")


def fill(tab: Any, **fields: object) -> None:
    for name, value in fields.items():
        tab.fill(f"#{name} :is(input[type=number], input[type=text], textarea)", str(value))
        tab.keyboard.press("Tab")


def download(tab: Any, kind: str, folder: Path) -> Path:
    with tab.expect_download() as found:
        tab.click(f"#files a:text-is('{kind}')")
    found.value.save_as(folder / found.value.suggested_filename)
    return folder / found.value.suggested_filename


def expected(tokenizer: Tokenizer, codes: Codes) -> np.ndarray:
    return (tokenizer.decode(codes)[0] * 32767).round().numpy().astype(np.int16)


def test_make_play_continue_replace_and_download(
    page: Page, details: threading.Event, tiny_run: Path, tmp_path: Path
) -> None:
    fill(page, seconds=5, seed=3)
    page.click("#make")
    wait_for_sketch(page)
    details.set()
    wait_for_version(page, 1)
    assert page.evaluate("document.querySelector('#main audio').duration") == 5
    page.evaluate("document.querySelector('#main audio').play()")
    page.wait_for_function("document.querySelector('#main audio').currentTime > 0.1")
    page.wait_for_function("document.querySelector('#main .picture img').naturalWidth == 1000")

    fill(page, after=2)
    page.click("#extend")
    wait_for_version(page, 2)
    page.get_by_role("tab", name="Replace a part").click()
    box = page.locator("#main .picture").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50, steps=3)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#start input').value != 1")
    start, end = (float(page.input_value(f"#{name} input")) for name in ("start", "end"))
    assert 3.2 < start < 3.4 < 3.9 < end < 4.2  # of seven seconds, the axis beginning at 0.07 of the width
    fill(page, seed=4)
    page.click("#redraw")
    wait_for_version(page, 3)

    tokenizer = Tokenizer.from_pretrained(tiny_run)
    codes = Codes.load(download(page, "Codes", tmp_path))
    assert codes.n_samples == 7 * 8000
    samples, rate = soundfile.read(download(page, "WAV", tmp_path), dtype="int16")
    assert (tmp_path / "audiovq-3.wav").is_file()
    assert rate == 8000
    assert np.array_equal(samples, expected(tokenizer, codes))
    first, last = int(start * 8000 / 256) * 4, -int(-end * 8000 // 256) * 4
    page.click("#undo")
    wait_for_version(page, 2)
    before = Codes.load(download(page, "Codes", tmp_path)).levels[2]
    differs = (before != codes.levels[2]).nonzero().flatten()
    assert len(differs)
    assert first <= int(differs[0])
    assert int(differs[-1]) < last
    assert page.locator("#tree label").all_inner_texts() == [
        "1 · new piece · 5.0 s", "└─ 2 · 2 s more · 7.0 s", f"   └─ 3 · new from {start:.1f} to {end:.1f} s · 7.0 s",
    ]  # fmt: skip
    page.locator("#tree label").nth(2).click()
    wait_for_version(page, 3)
    page.reload()  # a page that is loaded again shows the same session
    wait_for_version(page, 3)
    page.click("#delete")
    wait_for_version(page, 2)


def test_takes_side_by_side_for_two_people_at_once(
    page: Page, context: BrowserContext, studio: tuple[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = studio
    at_work, most, lock, pieces = 0, 0, threading.Lock(), service.generator.pieces

    def watched(*arguments: Any, **options: Any) -> Iterator[Codes]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        yield from pieces(*arguments, **options)
        with lock:
            at_work -= 1

    monkeypatch.setattr(service.generator, "pieces", watched)
    other = visit(context.new_page(), url)
    for tab, seed in ((page, 1), (other, 2)):
        fill(tab, seconds=2, seed=seed)
        tab.click("#takes input")
        tab.get_by_role("option", name="2").click()
    for tab in (page, other):
        tab.click("#make")
    for tab, seed in ((page, 1), (other, 2)):
        wait_for_version(tab, 1)
        assert tab.locator("#tree label").count() == 2
        assert f"seed {seed}." in tab.inner_text("#main .note")
        tab.click("#keep-2")
        wait_for_version(tab, 2)
        assert tab.is_hidden("#take-1 audio")
    assert (at_work, most) == (0, 1)
    other.close()


def test_a_recording_and_files_that_are_none(page: Page, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tune.wav", tones(2, 8000), 8000)
    (tmp_path / "broken song.wav").write_text("no music")
    (tmp_path / "large.wav").write_bytes(bytes(1_000_000))
    page.get_by_role("tab", name="Use a recording").click()
    page.set_input_files("#upload input[type=file]", tmp_path / "broken song.wav")
    page.wait_for_function(
        "document.querySelector('#about').textContent.includes('broken song.wav: not audio that can be read')"
    )
    assert page.is_hidden("#adopt")
    page.get_by_label("Clear").click()
    page.set_input_files("#upload input[type=file]", tmp_path / "large.wav")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.set_input_files("#upload input[type=file]", tmp_path / "tune.wav")
    for place in ("original", "prefix-1", "prefix-2", "prefix-3"):
        page.wait_for_function(f"document.querySelector('#{place} audio').duration == 2")
    page.wait_for_function("document.querySelector('#original .picture img').naturalWidth == 1000")
    assert "tune.wav: 2.0 s" in page.inner_text("#about")
    assert page.inner_text("#prefix-2 h3") == "Levels 0 and 1"
    page.click("#adopt")
    wait_for_version(page, 1)
    assert "tune.wav" in page.inner_text("#main h3")


def press_stop(tab: Any) -> None:
    """Returns when the studio has the request."""
    with tab.expect_response(lambda response: response.request.method == "POST"):
        tab.click("#stop")


def wait_for_words(tab: Any, words: str) -> None:
    tab.wait_for_function(f"document.querySelector('#status')?.textContent.includes('{words}')")


def test_wrong_seeds_and_stopping(page: Page, details: threading.Event) -> None:
    fill(page, seed="minus one")
    page.click("#make")
    wait_for_words(page, "found minus one")
    fill(page, seed="", seconds=20)
    page.click("#make")
    wait_for_sketch(page)
    press_stop(page)
    details.set()
    wait_for_words(page, "Stopped.")
    assert page.locator("#tree label").count() == 0
    assert page.locator("text=<b>tiny</b>").count() == 1  # as text


def test_a_waiting_request_can_be_stopped(
    page: Page, context: BrowserContext, studio: tuple[str, Service], details: threading.Event
) -> None:
    page.click("#make")
    wait_for_sketch(page)
    other = visit(context.new_page(), studio[0])
    other.click("#make")
    other.wait_for_function("document.querySelector('#progress').textContent.includes('queue')")
    press_stop(other)
    details.set()
    wait_for_words(other, "Stopped.")
    wait_for_version(page, 1)
    other.click("#make")  # a later request is not stopped
    wait_for_version(other, 1)
    other.close()


def test_no_analytics_and_no_other_files(studio: tuple[str, Service], tiny_run: Path) -> None:
    url, service = studio
    assert not studio_page.Studio(service, "tiny").blocks.analytics_enabled
    for path in (tiny_run / "recipe.yaml", Path("/etc/passwd"), service.folder / ".." / ".." / "x"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[0-9]"):
            urllib.request.urlopen(f"{url}gradio_api/file={path}")


def test_a_port_that_is_taken(studio: tuple[str, Service], tiny_run: Path) -> None:
    port = studio[0].rstrip("/").rpartition(":")[2]
    assert_one_line_error(cli("studio", tiny_run, "--port", port), f"--port {port}", "cannot be opened")
