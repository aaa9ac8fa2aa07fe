"""The studio in a real browser: a server of its own, as a musician uses it."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import tones
from playwright.sync_api import Browser, Page, expect

from audiovq.data.codes import Codes

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
    expect(page.locator("#takes button")).to_have_count(2)
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
    page.click("[title='Remove the mark']")
    page.click("#redraw .primary")  # there is no stretch to fill
    assert [page.input_value(f"#redraw [name={name}]") for name in ("start", "end")] == ["", ""]
    expect(page.locator("#jobs article")).to_have_count(0)
    drag(page, 0.5, 0.75)
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
    expect(page.locator("#name")).to_have_value("<b>My piece</b>")


def test_a_piece_without_its_finest_levels(page: Page, tmp_path: Path) -> None:
    """As from live music on a slow machine: it says so, and offers only what it has."""
    make(page, 2)
    page.get_by_role("tab", name="New details").click()
    page.select_option("#rerender select", label="all but the finest sound")
    page.click("#rerender .primary")
    wait_for(page, 2, 2)
    assert page.inner_text("#piece-title") == "New finest sound"
    with page.expect_download() as found:
        page.click("#codes-file")
    found.value.save_as(tmp_path / "all.codes")
    codes = Codes.load(tmp_path / "all.codes")
    codes.levels = codes.levels[:1]
    codes.save(tmp_path / "coarse.codes")
    page.set_input_files("aside .upload", tmp_path / "coarse.codes")
    wait_for(page, 3, 2)
    expect(page.locator("#facts")).to_contain_text("no finer than “Coarse”")
    expect(page.locator("#rerender option:enabled")).to_have_text(["the coarse outline"])
    expect(page.locator("#rerender select")).to_have_value("1")
    page.click("#rerender .primary")
    wait_for(page, 4, 2)
    assert "no finer" not in page.inner_text("#facts")
    expect(page.locator("#rerender option:enabled")).to_have_count(2)


def test_versions_have_numbers_and_names(page: Page) -> None:
    """Two of one kind are told apart, and can be renamed."""
    make(page, 1)
    page.fill("#extend [name=after]", "0.5")
    for n in (2, 3):
        page.click("#extend .primary")
        wait_for(page, n, 1.5)
        page.click("#undo")
        expect(page.locator("#number")).to_have_text("1")
    page.click("#tree li >> nth=2")
    expect(page.locator("#number")).to_have_text("3")
    expect(page.locator("#title")).to_have_value("0.5 s more")
    rows = page.locator("#tree li")
    expect(rows.locator("span")).to_have_text(["1.0 s", "1.5 s · seed 1", "1.5 s · seed 1"])
    page.fill("#title", "  The <b>end</b> ")
    page.keyboard.press("Enter")
    expect(rows.nth(2)).to_contain_text("The <b>end</b>")
    expect(rows.locator("small")).to_have_text(["1", "2", "3"])
    expect(rows.locator("b")).to_have_text(["New piece", "0.5 s more", "The <b>end</b>"])
    expect(rows.locator("span")).to_have_text(["1.0 s", "1.5 s", "1.5 s"])
    for field, name in (("#title", "The <b>end</b>"), ("#name", page.input_value("#name"))):
        page.fill(field, "not this")
        page.press(field, "Escape")
        expect(page.locator(field)).to_have_value(name)
    page.fill("#title", " ")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_value("The <b>end</b>")  # it has some name
    page.fill("#title", "not this one")
    page.click("#tree li >> nth=1")  # what was typed is of the version that it was typed for
    expect(page.locator("#title")).to_have_value("0.5 s more")
    expect(rows.locator("b")).to_have_text(["New piece", "0.5 s more", "Not this one"])


def test_settings_stay_with_their_project(page: Page) -> None:
    def shown() -> list[str]:
        fields = ("#seed", "#labels select", "#takes-wanted", "#extend [name=after]")
        slider = page.get_by_role("slider", name="Tame ↔ wild", include_hidden=True).nth(1)
        return [*(page.input_value(field) for field in fields), slider.input_value()]

    page.select_option("#labels select", "folk")
    make(page, 1, seed=8)
    assert shown() == ["8", "folk", "1", "5", "1"]
    page.select_option("#labels select", "rock")
    page.select_option("#takes-wanted", "2")
    page.fill("#extend [name=after]", "0.7")
    page.click("#how summary")
    page.get_by_role("slider", name="Tame ↔ wild").nth(1).fill("1.7")
    changed = ["8", "rock", "2", "0.7", "1.7"]
    page.reload()
    wait_for(page, 1, 1)
    assert shown() == changed
    address = page.url
    page.click(".brand a")
    page.wait_for_selector("#start:not([hidden])")
    assert [page.input_value("#seconds"), *shown()] == ["1", "8", "folk", "1", "5", "1"]  # its own
    page.fill("#seed", "9")
    page.reload()
    page.wait_for_selector("#make .primary:enabled")
    assert shown()[:2] == ["9", "folk"]
    page.goto(address)
    wait_for(page, 1, 1)
    assert shown() == changed
    page.click("#how summary")
    page.click("#reset")
    page.reload()
    wait_for(page, 1, 1)
    assert shown() == [*changed[:4], "1"]
    page.click("#delete-project")
    page.click("#question .primary")
    page.wait_for_selector("#start:not([hidden])")
    kept = page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('settings'))")
    assert len(kept) == 1  # that of the start page


def test_levels_of_bands_are_named_by_their_highest_notes(page: Page) -> None:
    levels = "{levels: [{highest: 52}, {highest: 76}, {highest: 124}]}"
    names = page.evaluate(f"async () => (await import('/assets/settings.js')).details({levels})")
    assert names == ["Up to E3", "Up to E5", "All"]


def test_sliders_have_names_and_are_reset(page: Page) -> None:
    page.click("#how summary")
    slider = page.get_by_role("slider", name="Tame ↔ wild")
    expect(slider).to_have_count(3)
    expect(page.get_by_role("slider", name="Genre: a hint ↔ a rule")).to_have_count(3)
    slider.nth(1).fill("1.7")
    page.click("#reset")
    assert slider.nth(1).input_value() == "1"


def test_a_spectrogram_is_of_the_sound_that_is_shown(page: Page) -> None:
    """Another one that was begun meanwhile leaves no trace, and is not taken for whole."""
    shares = page.evaluate("""async () => {
        const { drawSpectrogram } = await import("./player/pictures.js");
        const [noise, silence] = [0.3, 0].map((loud) => {
            const buffer = new AudioBuffer({ length: 48000 * 20, sampleRate: 48000 });
            buffer.copyToChannel(Float32Array.from({ length: buffer.length }, () => loud * (Math.random() - 0.5)), 0);
            return buffer;
        });
        const canvas = document.createElement("canvas"), labels = document.createElement("div");
        const context = canvas.getContext("2d", { willReadFrequently: true });
        canvas.style.cssText = "position: fixed; inset: 0; width: 1000px; height: 100px";
        document.body.append(canvas);
        const found = [];
        const draw = (buffer) => drawSpectrogram(canvas, buffer, [0, 20], true, labels);
        const bright = () => {
            const { data } = context.getImageData(0, 64, canvas.width, 1);
            found.push(data.filter((value, i) => i % 4 === 0 && value > 80).length / canvas.width);
        };
        await draw(noise), bright();
        draw(silence), bright();
        await draw(noise), bright();
        return found;
    }""")
    assert shares[0] > 0.9
    assert shares[1:] == [0, pytest.approx(shares[0], abs=0.01)]


def test_projects_are_listed_downloaded_imported_and_deleted(page: Page, tmp_path: Path) -> None:
    make(page, 1.2)
    page.fill("#name", "Kept")
    page.keyboard.press("Tab")
    page.click("#star-project")
    expect(page.locator("#star-project")).to_have_attribute("aria-pressed", "true")
    page.focus(".skip")
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#name")).to_have_value("Kept")  # still there
    assert page.evaluate("location.hash") != "#main"
    with page.expect_download() as found:
        page.click("#download-project")
    found.value.save_as(tmp_path / "kept.zip")
    page.click("#delete-project")
    page.click("#question .primary")
    page.wait_for_selector("#start:not([hidden])")
    expect(page.locator("#projects a", has_text="Kept")).to_have_count(0)
    page.set_input_files("#start .upload", tmp_path / "kept.zip")
    wait_for(page, 1, 1.2)
    page.click(".brand a")
    entry = page.locator("#projects a", has_text="★ Kept")
    expect(entry).to_contain_text(f"1 version · 0:01.2 · {time.strftime('%b')}")
    entry.click()
    wait_for(page, 1, 1.2)
    page.click("#delete")
    page.click("#question button >> nth=0")  # keep it
    expect(page.locator("#tree li")).to_have_count(1)
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
    expect(page.locator("#name")).to_have_value("tune")
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
    page.click("#to-live")
    page.wait_for_selector("#live:not([hidden])")
    assert page.evaluate(fits)
    assert page.evaluate(small) == []
    page.click(".brand a")
    page.wait_for_selector("#start:not([hidden])")
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
    other.click("#begin")  # an empty project can still be begun
    expect(other.locator("#begin")).to_be_hidden()
    assert other.inner_text("#piece-title") == "Your music appears here"
    assert other.evaluate("scrollY") == 0
    other.click("#jobs article button >> text=Stop")
    expect(other.locator("#begin")).to_be_visible(timeout=SECONDS)
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


# --- live -------------------------------------------------------------------------------------------------------------


class Line:
    """What goes over the websocket of a page."""

    def __init__(self, page: Page):
        self.sound: list[np.ndarray] = []
        self.facts: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        page.on("websocket", self.opened)

    def opened(self, socket: Any) -> None:
        socket.on("framesent", lambda text: self.sent.append(json.loads(text)))
        socket.on("framereceived", self.receive)

    def receive(self, content: str | bytes) -> None:
        if isinstance(content, bytes):
            self.sound.append(np.frombuffer(content, np.float32))
        else:
            self.facts.append(json.loads(content))

    @property
    def controls(self) -> dict[str, Any]:
        return next(said["controls"] for said in reversed(self.facts) if "controls" in said)


def until(page: Page, condition: Callable[[], object]) -> None:
    for _ in range(1500):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("not within thirty seconds: " + page.inner_text("body")[:2000])


@pytest.fixture
def live(page: Page) -> Line:
    line = Line(page)
    page.click("#to-live")
    page.click("#live-start")
    until(page, lambda: line.facts and sum(map(len, line.sound)) > 4000)
    return line


def played(line: Line) -> int:
    return max((turn.get("played", 0) for turn in line.sent), default=0)


def test_live_settings_stay_when_the_page_is_reloaded(page: Page) -> None:
    page.click("#to-live")
    pressed, mix = page.locator("#live-labels button[aria-pressed=true]"), page.locator("#live-labels input")
    page.click("#live-labels button >> text=rock")
    page.fill("#live-knobs [data-setting=temperature]", "1.5")
    page.fill("#live-knobs [data-setting=top_k]", "2")
    page.fill("#live-seed", "77")
    page.keyboard.press("Tab")
    page.reload()
    expect(pressed).to_have_text(["rock"])
    knobs = [page.input_value(f"#live-knobs [data-setting={name}]") for name in ("temperature", "top_k", "guidance")]
    assert (knobs, page.input_value("#live-seed")) == (["1.5", "2", "1"], "77")
    mix.fill("30")
    expect(page.locator("#live-labels output")).to_have_text("70 % folk, 30 % rock")
    page.reload()
    expect(page.locator("#live-labels output")).to_have_text("70 % folk, 30 % rock")
    expect(mix).to_have_value("30")
    page.click("#live-reset")
    page.reload()
    expect(page.locator("#live-knobs [data-setting=temperature]")).to_have_value("1")


def test_live_plays_and_every_control_acts(page: Page, live: Line) -> None:
    assert np.abs(np.concatenate(live.sound)).max() > 0.001
    assert live.sent[0]["buffer"] == 0.15
    until(page, lambda: played(live) > 8000)  # it sounds, in real time
    page.select_option("#live-buffer", "400")
    until(page, lambda: live.facts[-1]["buffer"] == 0.4)
    assert "heard after about" in page.inner_text("#live-facts")
    page.click("#live-labels button >> text=rock")
    until(page, lambda: live.controls["labels"] == {"genre": "rock"})
    page.fill("#live-knobs [data-setting=temperature]", "1.5")
    page.fill("#live-knobs [data-setting=top_k]", "2")
    page.fill("#live-knobs [data-setting=guidance]", "2")
    until(page, lambda: [live.controls[name] for name in ("temperature", "top_k", "guidance")] == [1.5, 4, 2])
    page.fill("#live-seed", "77")
    page.keyboard.press("Enter")
    until(page, lambda: live.controls["seed"] == 77)
    expect(page.locator("#live-facts")).to_contain_text("Seed 77")
    page.click("#live-reset")
    until(page, lambda: live.controls["temperature"] is None)
    expect(page.locator("#live-knobs [data-setting=temperature]")).to_have_value("1")
    page.click("#live-again")
    until(page, lambda: live.sent[-1].get("played", 0) and {"restart": True} in live.sent)
    assert any(turn.get("buffer") == 0.4 for turn in live.sent[1:])
    n = played(live)
    until(page, lambda: played(live) > n + 8000)
    page.click("#live-start")  # stops
    expect(page.locator("#live-start")).to_have_text("Start")
    page.wait_for_timeout(300)
    n = len(live.sound)
    page.wait_for_timeout(300)
    assert len(live.sound) == n
    page.click("#live-start")  # and starts again, at once
    until(page, lambda: len(live.sound) > n)
    assert not page.is_visible("#notice")
    assert page.is_hidden("#live-notes")  # this model has none


def test_live_is_opened_at_once_and_left(browser: Browser, studio: Studio, complaints: Complaints) -> None:
    page = visit(browser, studio, complaints, viewport={"width": 360, "height": 800})
    assert page.is_hidden("#to-start")  # a phone shows the other of the two
    page.goto(f"{studio.url}#live")
    page.reload()
    page.wait_for_selector("#live:not([hidden])")
    assert page.is_hidden("#how")  # what belongs to pieces
    assert page.is_hidden("#to-live")
    page.evaluate(
        "() => { WebSocket = class { static OPEN = 1; readyState = 0; close() {} }; }"
    )  # a server that does not answer yet
    page.click("#live-start")
    expect(page.locator("#live-facts")).to_have_text("Starting …")
    page.click("#live-start")
    expect(page.locator("#live-facts")).to_contain_text("Music without end")
    page.click("#to-start")
    page.wait_for_selector("#start:not([hidden])")
    assert page.is_visible("#how")
    page.context.close()


def test_what_was_played_is_kept(page: Page, live: Line) -> None:
    until(page, lambda: played(live) > 8000)
    page.click("#live-keep")
    page.locator("#live-kept li").nth(0).wait_for()
    page.click("#live-start")
    page.click("#live-keep")  # also after the end; the same project
    expect(page.locator("#live-kept li")).to_have_count(2)
    page.click("#live-kept a >> nth=0")
    page.wait_for_selector("#project:not([hidden])")
    expect(page.locator("#tree li")).to_have_count(2)
    wait(page, f"{PLAYER}.transport.seconds > 1")
    expect(page.locator("#name")).to_have_value("Live")


def test_a_second_page_is_told_and_leaving_ends_the_music(
    page: Page, live: Line, browser: Browser, studio: Studio, complaints: Complaints
) -> None:
    other = visit(browser, studio, complaints)
    other.goto(f"{studio.url}#live")
    other.click("#live-start")
    expect(other.locator("#notice")).to_contain_text("in another window", timeout=SECONDS)
    expect(other.locator("#live-start")).to_have_text("Start")
    page.click(".brand a")
    page.wait_for_selector("#start:not([hidden])")
    line = Line(other)
    other.click("#live-start")
    until(other, lambda: line.sound)
    other.context.close()


def test_live_by_keys_and_midi(page: Page, complaints: Complaints) -> None:
    line = Line(page)
    page.evaluate("""() => {
        const input = {};
        navigator.requestMIDIAccess = async () => ({ inputs: new Map([["a", input]]) });
        window.midi = (...data) => input.onmidimessage({ data });
    }""")
    page.focus("#to-live")
    page.keyboard.press("Enter")
    page.locator("body").press(" ")
    until(page, lambda: line.sound)
    page.keyboard.press("3")
    until(page, lambda: line.controls["labels"] == {"genre": "rock"})
    page.keyboard.press("n")
    until(page, lambda: line.controls["seed"] == int(page.input_value("#live-seed")) != 0)
    page.keyboard.press("r")
    until(page, lambda: {"restart": True} in line.sent)
    page.keyboard.press("k")
    expect(page.locator("#live-kept li")).to_have_count(1)
    page.focus("#live-knobs [data-setting=top_p]")
    page.keyboard.press("Home")
    until(page, lambda: line.controls["top_p"] == 0.05)
    page.focus("#live-midi")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Listening to 1 MIDI input")
    page.evaluate("midi(0xb0, 1, 127), midi(0x90, 49, 100), midi(0x80, 48, 0), midi(0xb0, 99, 1)")
    until(page, lambda: line.controls["temperature"] == 2)
    until(page, lambda: line.controls["labels"] == {"genre": "folk"})
    page.click("#live-labels button >> text=any")
    page.keyboard.press(" ")  # not that button's, which the mouse has pressed
    expect(page.locator("#live-start")).to_have_text("Start")


def test_a_pause_is_counted_and_said(page: Page, live: Line) -> None:
    def pauses() -> int:
        found = re.search(r"(no|\d+) pause", page.locator("#live-facts").inner_text())
        return -1 if found is None else 0 if found[1] == "no" else int(found[1])

    until(page, lambda: played(live) > 4000)
    before = pauses()  # 0, unless this machine is busy
    assert before >= 0
    page.evaluate("WebSocket.prototype.send = () => {}")  # nothing is heard of what was played: no more comes
    until(page, lambda: pauses() > before)
    expect(page.locator("#live-slow")).to_contain_text(re.compile("a larger buffer|End other programs"))


# --- touch ------------------------------------------------------------------------------------------------------------


def test_a_stretch_is_marked_by_touch_and_the_page_still_scrolls(
    browser: Browser, studio: Studio, complaints: Complaints
) -> None:
    page = visit(browser, studio, complaints, viewport={"width": 390, "height": 700}, has_touch=True)
    make(page, 2)
    page.locator("#player .stage").scroll_into_view_if_needed()
    box = page.locator("#player .stage").bounding_box()
    assert box is not None
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *place: float) -> None:
        points = [{"x": place[0], "y": place[1]}] if place else []
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    left, y = box["x"], box["y"] + 60
    touch("touchStart", left + 0.25 * box["width"], y)
    for share in (0.3, 0.4, 0.5, 0.6, 0.75):
        touch("touchMove", left + share * box["width"], y)
    touch("touchEnd")
    assert page.inner_text("#player .mark-text") == "0.5 – 1.5 s marked"
    before = page.evaluate("scrollY")
    touch("touchStart", left + 100, y + 40)
    for i in range(1, 12):
        touch("touchMove", left + 100, y + 40 - 20 * i)
    touch("touchEnd")
    wait(page, f"Math.abs(scrollY - {before}) > 50")
    assert page.inner_text("#player .mark-text") == "0.5 – 1.5 s marked"
    page.context.close()
