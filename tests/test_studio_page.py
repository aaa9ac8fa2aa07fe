"""The studio in a real browser: a server of its own, as a musician uses it."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import tones
from playwright.sync_api import Browser, Page, expect

pytest.importorskip("fastapi")
SECONDS = 60_000  # milliseconds that a busy machine may take
PLAYER = "document.querySelector('#player').player"
MICROPHONE = """navigator.mediaDevices.getUserMedia = async () => {
    const context = new AudioContext(), tone = context.createOscillator(), out = context.createMediaStreamDestination();
    tone.connect(out);
    tone.start();
    return out.stream;
};"""


class Studio:
    """The command in a process of its own; it can be ended and started again."""

    def __init__(self, run: Path, projects: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.command = [sys.executable, "-m", "audiovq", "studio", str(run), "--port", str(self.port)]
        self.command += ["--projects", str(projects), "--max-seconds", "20", "--max-upload", "0.5"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(self.url).read()
                return
            assert self.process.poll() is None, "the studio ended"
            time.sleep(0.1)
        raise AssertionError("the studio does not answer")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def studio(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    found = Studio(tiny_run, tmp_path_factory.mktemp("projects"))
    yield found
    found.stop()


class Complaints(list[str]):
    """What a page complains of in its console; `lost` while it may find no server."""

    lost = False


def visit(browser: Browser, studio: Studio, complaints: Complaints, **options: Any) -> Page:
    options = {"viewport": {"width": 1280, "height": 900}, "locale": "en-US"} | options
    context = browser.new_context(**options)
    context.add_init_script(MICROPHONE)
    context.set_default_timeout(SECONDS)
    tab = context.new_page()

    def hear(message: Any) -> None:
        if message.type in ("error", "warning") and not complaints.lost and "status of 4" not in message.text:
            complaints.append(message.text)

    tab.on("console", hear)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda r: None if r.url.startswith((studio.url, "data:", "blob:")) else complaints.append(r.url))
    tab.goto(studio.url)
    tab.wait_for_selector("#make .primary:enabled")
    return tab


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    found = Complaints()
    yield found
    assert not found


@pytest.fixture
def page(browser: Browser, studio: Studio, complaints: Complaints) -> Iterator[Page]:
    tab = visit(browser, studio, complaints)
    yield tab
    tab.context.close()


def wait(page: Page, condition: str) -> None:
    """Until a condition of JavaScript holds; the page's own policy forbids what playwright has for this."""
    page.evaluate(f"""async () => {{
        for (let i = 0; i < 1500 && !({condition}); i++) await new Promise((done) => setTimeout(done, 20));
        if (!({condition})) throw new Error("not within thirty seconds: " + document.body.innerText.slice(0, 2000));
    }}""")


def make(page: Page, seconds: float, seed: int = 1, takes: int = 1) -> None:
    page.fill("#seconds", str(seconds))
    page.fill("#seed", str(seed))
    page.select_option("#takes-wanted", str(takes))
    page.click("#make .primary")
    wait_for(page, takes, seconds)


def wait_for(page: Page, n_versions: int, seconds: float) -> None:
    """Until so many versions are in the tree and the shown one, of this length, is in the player."""
    page.wait_for_selector("#project:not([hidden])")
    expect(page.locator("#tree li")).to_have_count(n_versions, timeout=SECONDS)
    wait(page, f"Math.abs({PLAYER}.transport.seconds - {seconds}) < 0.05 && !document.querySelector('#jobs article')")


def drag(page: Page, start: float, end: float) -> None:
    """Over the picture, from a share of its width to another."""
    page.locator("#player .stage").scroll_into_view_if_needed()
    box = page.locator("#player .stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * start, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end, box["y"] + 60, steps=4)
    page.mouse.up()


def test_make_listen_change_undo_and_export(page: Page, tmp_path: Path) -> None:
    make(page, 2.5, seed=3, takes=2)
    assert page.inner_text("#player .time") == "0:00 / 0:02.5"
    assert "2.5 s · seed 3" in page.inner_text("#facts")
    assert page.locator("#takes button").count() == 2
    page.click("#player .play")
    wait(page, f"{PLAYER}.transport.position > 0.1")
    page.click("#takes button >> nth=1")  # goes on at the same place
    expect(page.locator("#piece-title")).to_contain_text("take 2")
    wait(page, f"{PLAYER}.transport.source && {PLAYER}.transport.position > 0.1")
    page.click("#player .play")
    page.click("#star")
    expect(page.locator("#tree [aria-selected=true]")).to_contain_text("★")
    for name in ("Coarse", "Medium"):
        page.click(f"#player .layers >> text={name}")
        wait(page, f"{PLAYER}.layers.querySelector('[aria-pressed=true]').textContent === '{name}'")

    page.select_option("#takes-wanted", "1")
    page.fill("#extend [name=after]", "1.5")
    page.click("#extend .primary")
    wait_for(page, 3, 4)
    drag(page, 0.5, 0.75)
    assert page.is_visible("#redraw")  # the mark opens it
    start, end = (float(page.input_value(f"#redraw [name={name}]")) for name in ("start", "end"))
    assert (start, end) == (pytest.approx(2, abs=0.03), pytest.approx(3, abs=0.03))
    page.click("#redraw .primary")
    wait_for(page, 4, 4)
    page.keyboard.press("Control+z")
    expect(page.locator("#tree [aria-selected=true]")).to_have_attribute("aria-level", "2")
    page.keyboard.press("Control+Shift+Z")
    expect(page.locator("#tree [aria-selected=true]")).to_have_attribute("aria-level", "3")

    for tab, panel, n in (("Vary", "vary", 5), ("New details", "rerender", 6), ("Add before", "before", 7)):
        page.get_by_role("tab", name=tab).click()
        page.click(f"#{panel} .primary")
        wait_for(page, n, 9 if panel == "before" else 4)
    page.select_option("#export [name=format]", "flac")
    with page.expect_download() as found:
        page.click("#export .primary")
    found.value.save_as(tmp_path / "x.flac")
    assert soundfile.info(tmp_path / "x.flac").duration == pytest.approx(9, abs=0.05)

    page.fill("#name", "<b>My piece</b>")
    page.keyboard.press("Tab")
    wait(page, "document.title.includes('<b>My piece</b>')")
    page.reload()  # nothing is lost
    wait_for(page, 7, 9)
    assert page.input_value("#name") == "<b>My piece</b>"


def test_projects_are_listed_downloaded_imported_and_deleted(page: Page, tmp_path: Path) -> None:
    make(page, 1.2)
    page.fill("#name", "Kept")
    page.keyboard.press("Tab")
    page.click("#star-project")
    expect(page.locator("#star-project")).to_have_attribute("aria-pressed", "true")
    with page.expect_download() as found:
        page.click("#download-project")
    found.value.save_as(tmp_path / "kept.zip")
    page.click("#delete-project")
    page.click("#question .primary")
    page.wait_for_selector("#start:not([hidden])")
    assert page.locator("#projects a", has_text="Kept").count() == 0
    page.set_input_files("#start .upload", tmp_path / "kept.zip")
    wait_for(page, 1, 1.2)
    page.click(".brand a")
    entry = page.locator("#projects a", has_text="★ Kept")
    assert f"1 version · 0:01.2 · {time.strftime('%b')}" in entry.inner_text()
    entry.click()
    wait_for(page, 1, 1.2)
    page.click("#delete")
    page.click("#question button >> nth=0")  # keep it
    assert page.locator("#tree li").count() == 1
    page.click("#delete")
    page.click("#question .primary")
    expect(page.locator("#tree li")).to_have_count(0)
    assert page.is_hidden("#player")


def test_recordings_from_files_and_the_microphone(page: Page, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tune.wav", tones(2, 16000), 16000)
    (tmp_path / "broken.wav").write_text("no music")
    (tmp_path / "large.wav").write_bytes(bytes(1_000_000))
    page.set_input_files("#start .upload", tmp_path / "large.wav")
    expect(page.locator("#notice")).to_contain_text("large.wav: a recording may have up to 0.5 MB")
    page.set_input_files("#start .upload", tmp_path / "tune.wav")
    wait_for(page, 1, 2)
    assert page.input_value("#name") == "tune"
    page.click("#player .layers >> text=Original")
    wait(page, f"{PLAYER}.transport.buffer.sampleRate === 16000")
    page.set_input_files("aside .upload", tmp_path / "broken.wav")
    expect(page.locator("#notice")).to_contain_text("broken.wav")
    page.wait_for_timeout(500)
    assert page.is_visible("#notice")  # until the user does something
    page.click("aside .record")
    page.wait_for_timeout(600)
    page.click("aside .record")
    expect(page.locator("#tree li")).to_have_count(2, timeout=SECONDS)
    expect(page.locator("#piece-title")).to_contain_text("Recording.wav")


def test_keyboard_alone(page: Page) -> None:
    page.focus("#seconds")
    page.keyboard.press("Control+a")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    wait_for(page, 1, 3)
    page.locator("#player .stage").focus()
    for key in ("Home", *["ArrowRight"] * 10, "i", *["ArrowRight"] * 10, "o"):
        page.keyboard.press(key)
    assert page.inner_text("#player .mark-text") == "0.6 – 1.2 s marked"
    page.keyboard.press(" ")
    wait(page, f"{PLAYER}.transport.source !== null")
    page.keyboard.press(" ")
    page.get_by_role("tab", name="Fill a stretch").focus()
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#vary")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for(page, 2, 3)
    page.focus("#tree [aria-selected=true]")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#tree li").first).to_have_attribute("aria-selected", "true")
    assert page.evaluate("document.activeElement.closest('#tree') !== null")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (390, "light"), (2000, "dark")])
def test_sizes_and_themes(browser: Browser, studio: Studio, complaints: Complaints, width: int, scheme: Any) -> None:
    size: Any = {"width": width, "height": 844}
    page = visit(browser, studio, complaints, viewport=size, color_scheme=scheme, has_touch=width < 400)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    small = """() => [...document.querySelectorAll("button, select, summary, .button, input:not(.upload)")].filter((each) => {
        const box = (each.closest(".check") ?? each).getBoundingClientRect();
        return box.height && box.height < 44;
    }).map((each) => each.outerHTML)"""
    assert page.evaluate(fits)
    assert page.evaluate(small) == []
    make(page, 2, takes=2)
    assert page.evaluate(fits)
    assert page.evaluate(small) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 16, 23)" if scheme == "dark" else "rgb(247, 245, 250)")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    page.reload()
    wait_for(page, 2, 2)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background  # remembered
    headings = page.evaluate("[...document.querySelectorAll('h1, h2')].filter((e) => e.checkVisibility()).length")
    assert headings >= 6
    unnamed = "[...document.querySelectorAll('button')].filter((e) => !e.textContent.trim() && !e.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    page.context.close()


def test_work_goes_on_without_the_page_and_can_be_stopped(
    page: Page, browser: Browser, studio: Studio, complaints: Complaints
) -> None:
    page.fill("#seconds", "20")
    page.fill("#seed", "5")
    page.select_option("#takes-wanted", "2")
    page.click("#make .primary")
    page.wait_for_selector("#jobs article")
    other = visit(browser, studio, complaints)
    other.fill("#seconds", "20")
    other.click("#make .primary")
    other.click("#jobs article button >> text=Stop")
    expect(other.locator("#jobs article")).to_have_count(0, timeout=SECONDS)
    expect(other.locator("#status")).to_contain_text("Stopped")
    other.context.close()
    page.reload()
    wait_for(page, 2, 20)


def test_a_dropped_file_and_a_project_deleted_elsewhere(
    page: Page, browser: Browser, studio: Studio, complaints: Complaints, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "tune.wav", tones(1, 8000), 8000)
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "tune.wav"));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        list((tmp_path / "tune.wav").read_bytes()),
    )
    wait_for(page, 1, 1)
    other = visit(browser, studio, complaints)
    other.goto(page.url)
    wait_for(other, 1, 1)
    page.click("#changes [role=tab] >> text=Vary")
    page.click("#vary .primary")
    wait_for(other, 2, 1)  # the other tab shows it, too
    assert other.is_visible("#keep-audio")
    page.click("#delete-project")
    page.click("#question .primary")
    page.wait_for_selector("#start:not([hidden])")
    other.wait_for_selector("#start:not([hidden])")  # by itself
    expect(other.locator("#notice")).to_contain_text("there is no such project")
    other.context.close()


def test_a_lost_server_is_said_and_found_again(page: Page, studio: Studio, complaints: Complaints) -> None:
    make(page, 1)
    complaints.lost = True
    studio.stop()
    expect(page.locator("#lost")).to_be_visible(timeout=SECONDS)
    page.click("#player .play")  # what is there goes on
    wait(page, f"{PLAYER}.transport.source !== null")
    studio.start()
    expect(page.locator("#lost")).to_be_hidden(timeout=SECONDS)
    page.fill("#extend [name=after]", "1")
    page.click("#extend .primary")
    wait_for(page, 2, 2)
