"""A model that follows notes in the studio: piano, pads, chords and mixed labels, in a real browser as a musician plays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import tones
from playwright.sync_api import Browser, Page, Route, expect
from test_studio_page import SECONDS, Complaints, Line, Studio, until, visit, wait_for
from tiny_generator import tiny_generator

from audiovq import Generator
from audiovq.data.notes import chord_frames
from audiovq.studio.engine import Engine
from audiovq.studio.live import Session
from audiovq.studio.making import _change
from audiovq.studio.projects import Library, Project
from audiovq.studio.requests import JobRequest, Limits, Turn

KINDS: list[list[Any]] = [[{"kind": "label", "name": "genre"}, {"kind": "timing"}, {"kind": "notes"}], [], []]
GENRES = ("folk", "jazz", "rock")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_generator(KINDS, (256, 128, 64), GENRES).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def studio(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    found = Studio(model, tmp_path_factory.mktemp("projects"))
    yield found
    found.stop()


@contextlib.contextmanager
def page_of(browser: Browser, studio: Studio, **options: Any) -> Iterator[Page]:
    complaints = Complaints()
    page = visit(browser, studio, complaints, **options)
    try:
        yield page
    finally:
        page.context.close()
    assert not complaints


@contextlib.contextmanager
def playing(browser: Browser, studio: Studio, **options: Any) -> Iterator[tuple[Page, Line]]:
    with page_of(browser, studio, **options) as page:
        line = Line(page)
        page.click("#to-live")
        page.click("#live-start")
        until(page, lambda: line.facts and line.sound)
        yield page, line


def heard(page: Page, line: Line, notes: list[int] | None, chords: str = "") -> None:
    """Until the piano shows these, and the server says that it follows them."""
    shown = page.locator("#piano [aria-pressed=true]")

    def is_so() -> bool:
        keys = shown.evaluate_all("(keys) => keys.map((key) => +key.dataset.notes)")
        return (line.controls["notes"], line.controls["chords"], keys) == (notes, chords, notes or [])

    until(page, is_so)


def lit(page: Page) -> str:
    """The keys of the chord that sounds."""
    return " ".join(page.locator("#piano .sounds").evaluate_all("(keys) => keys.map((key) => key.ariaLabel)"))


def key(page: Page, name: str) -> tuple[float, float]:
    """The middle of a white key, below the black ones; or of a pad."""
    box = page.locator(f"#live-notes [aria-label='{name}'], #pads button:text-is('{name}')").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.8


def test_the_piano_is_played_by_computer_keys(browser: Browser, studio: Studio) -> None:
    with playing(browser, studio, color_scheme="dark") as (page, line):
        page.keyboard.down("a")
        heard(page, line, [60])
        page.keyboard.down("y")
        heard(page, line, [60, 68])
        page.keyboard.up("a")
        heard(page, line, [68])
        page.keyboard.press("z")  # the lower octave; what is held stays
        page.keyboard.down("j")
        heard(page, line, [59, 68])
        page.keyboard.up("j")
        page.keyboard.up("y")
        heard(page, line, None)
        assert page.inner_text("#piano [aria-label=C3]").split() == ["C3", "A"]
        assert page.inner_text("#piano [aria-label=C4]") == "C4"
        page.keyboard.press("x")
        page.keyboard.press("d")  # short, and heard all the same
        until(page, lambda: any(turn.get("set", {}).get("notes") == [64] for turn in line.sent))
        heard(page, line, None)
        page.keyboard.down("s")
        heard(page, line, [62])
        page.evaluate("dispatchEvent(new Event('blur'))")  # another window: its release is not seen
        heard(page, line, None)
        page.keyboard.press("k")  # the page's other keys are as ever
        expect(page.locator("#live-kept li")).to_have_count(1)
        page.keyboard.press("r")
        until(page, lambda: {"restart": True} in line.sent)
        page.keyboard.press("3")
        until(page, lambda: line.controls["labels"] == {"genre": "jazz"})
        page.keyboard.press("Control+a")
        page.focus("#live-seed")
        page.keyboard.press("a")  # typed, not played
        page.wait_for_timeout(200)
        assert line.controls["notes"] is None


def test_piano_and_pads_by_mouse_hold_and_focus(browser: Browser, studio: Studio) -> None:
    with playing(browser, studio) as (page, line):
        page.focus("#live-seed")
        page.mouse.move(*key(page, "E3"))
        page.mouse.down()
        heard(page, line, [52])
        page.mouse.move(*key(page, "G3"))  # glides
        heard(page, line, [55])
        page.mouse.up()
        heard(page, line, None)
        page.keyboard.down("f")  # the focus has left the text field
        heard(page, line, [65])
        page.keyboard.up("f")
        page.mouse.move(*key(page, "Am"))
        page.mouse.down()
        heard(page, line, [57, 60, 64])
        expect(page.locator("#pads [aria-pressed=true]")).to_have_text("Am")
        page.mouse.up()
        heard(page, line, None)
        page.click("#live-hold")
        for name, notes in (("F", [53, 57, 60]), ("C", [48, 52, 55])):  # until another is pressed
            page.mouse.click(*key(page, name))
            heard(page, line, notes)
            expect(page.locator("#pads [aria-pressed=true]")).to_have_text(name)
        page.mouse.click(*key(page, "C"))  # once more ends it
        heard(page, line, None)
        page.mouse.click(*key(page, "D4"))
        heard(page, line, [62])
        page.click("#live-hold")
        heard(page, line, None)
        for name in ("Enter", "Space"):
            page.focus("#pads button >> text=G")
            page.keyboard.down(name)
            heard(page, line, [55, 59, 62])
            page.keyboard.up(name)
            heard(page, line, None)
        page.locator("#pads button").first.evaluate("(pad) => pad.click()")  # as a screen reader does
        heard(page, line, [48, 52, 55])
        page.locator("#pads button").first.evaluate("(pad) => pad.click()")
        heard(page, line, None)
        assert page.inner_text("#live-start") == "Stop"  # it has played all the time


def test_chords_are_played_in_turn_and_wrong_ones_are_said(browser: Browser, studio: Studio) -> None:
    with playing(browser, studio) as (page, line):
        page.click("#live-hold")
        page.mouse.click(*key(page, "Dm"))
        heard(page, line, [50, 53, 57])
        page.click("#live-chords")
        page.keyboard.type("Am F C G")
        page.keyboard.press("Enter")
        heard(page, line, None, "Am F C G")  # what was held has ended
        page.click("#live-hold")
        page.mouse.move(*key(page, "E7"))
        page.mouse.down()
        heard(page, line, [52, 56, 59, 62])  # goes first while it is pressed
        until(page, lambda: lit(page) == "")
        page.mouse.up()
        heard(page, line, None, "Am F C G")
        until(page, lambda: lit(page) in ("A3 C4 E4 A4", "F3 C4 F4 A4", "C3 C4 E4 G4", "G3 D4 G4 B4"))
        page.fill("#live-chords", "Am H")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("chords: H: expected such as F#m")
        assert page.evaluate("!document.querySelector('#live-chords').validity.valid")
        heard(page, line, None, "Am F C G")  # nothing has changed
        page.click("#live-start")
        assert lit(page) == ""
        page.click("#live-start")
        expect(page.locator("#notice")).to_contain_text("chords: H", timeout=SECONDS)  # nor does it start
        page.fill("#live-chords", "")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_be_hidden()
        page.click("#live-start")
        until(page, lambda: line.controls.get("chords") == "" and page.inner_text("#live-start") == "Stop")
        page.fill("#live-chords", "Dm:2 G7:2")
        page.keyboard.press("Enter")
        heard(page, line, None, "Dm:2 G7:2")
        line.facts.clear()
        page.reload()  # they stay, and are played when it starts
        expect(page.locator("#live-chords")).to_have_value("Dm:2 G7:2")
        page.click("#to-live")
        page.click("#live-start")
        until(page, lambda: line.facts)
        heard(page, line, None, "Dm:2 G7:2")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (390, "dark")])
def test_several_fingers_on_a_phone(browser: Browser, studio: Studio, width: int, scheme: Any) -> None:
    options: Any = {"viewport": {"width": width, "height": 844}, "has_touch": True, "color_scheme": scheme}
    with playing(browser, studio, **options) as (page, line):
        page.locator("#piano").scroll_into_view_if_needed()
        finger, scrolled = page.context.new_cdp_session(page), page.evaluate("scrollY")

        def touch(kind: str, *names: str) -> None:
            places = [key(page, name) for name in names]
            points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", "C3")
        heard(page, line, [48])
        touch("touchStart", "C3", "E4")
        heard(page, line, [48, 64])
        touch("touchMove", "D3", "E4")  # a finger glides, the other stays
        heard(page, line, [50, 64])
        touch("touchEnd")
        heard(page, line, None)
        assert page.evaluate("scrollY") == scrolled
        page.tap("#live-hold")
        page.tap("#pads button >> text=Dm")
        heard(page, line, [50, 53, 57])
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        sizes = page.locator("#live-notes button").evaluate_all("(all) => all.map((each) => each.offsetHeight)")
        assert min(sizes) >= 44


def test_keys_of_a_midi_controller_are_notes(browser: Browser, studio: Studio) -> None:
    with playing(browser, studio) as (page, line):
        page.evaluate("""() => {
            const input = {};
            navigator.requestMIDIAccess = async () => ({ inputs: new Map([["a", input]]) });
            window.midi = (...data) => input.onmidimessage({ data });
        }""")
        page.click("#live-midi")
        expect(page.locator("#status")).to_contain_text("Listening to 1 MIDI input")
        page.evaluate("midi(0x90, 49, 100), midi(0x90, 72, 1), midi(0x90, 40, 100), midi(0xb0, 1, 127)")
        until(page, lambda: (line.controls["notes"], line.controls["temperature"]) == ([49, 72], 2))
        assert line.controls["labels"] == {}
        page.evaluate("midi(0x80, 49, 0), midi(0x90, 72, 0)")
        heard(page, line, None)


def test_labels_are_mixed_by_a_slider(browser: Browser, studio: Studio) -> None:
    with playing(browser, studio) as (page, line):
        blend = page.locator("#live-labels input")

        def shown(labels: dict[str, Any], ends: str, says: str, *pressed: str) -> None:
            until(page, lambda: line.controls["labels"] == labels)
            expect(blend).to_have_attribute("aria-label", f"genre: {ends}")
            expect(blend).to_have_attribute("aria-valuetext", says)
            expect(page.locator("#live-labels output")).to_have_text(says)
            states = page.locator("#live-labels button").evaluate_all("(all) => all.map((each) => each.ariaPressed)")
            assert states == list(pressed)

        shown({}, "folk ↔ jazz", "any", "true", "false", "false", "false")
        blend.fill("30")
        mixture = {"genre": {"folk": 0.7, "jazz": 0.3}}
        shown(mixture, "folk ↔ jazz", "70 % folk, 30 % jazz", "false", "mixed", "mixed", "false")
        page.click("#live-labels button >> text=rock")  # with the one that was chosen before it
        shown({"genre": "rock"}, "folk ↔ rock", "rock", "false", "false", "false", "true")
        page.click("#live-labels button >> text=jazz")
        shown({"genre": "jazz"}, "jazz ↔ rock", "jazz", "false", "false", "true", "false")
        blend.focus()
        page.keyboard.press("End")
        shown({"genre": "rock"}, "jazz ↔ rock", "rock", "false", "false", "false", "true")
        page.keyboard.press("ArrowLeft")
        mixture = {"genre": {"jazz": pytest.approx(0.01), "rock": 0.99}}
        shown(mixture, "jazz ↔ rock", "1 % jazz, 99 % rock", "false", "false", "mixed", "mixed")
        page.keyboard.press("1")
        shown({}, "jazz ↔ rock", "any", "true", "false", "false", "false")


def test_pieces_follow_chords_and_recordings(browser: Browser, studio: Studio, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tune.wav", tones(1, 8000), 8000)
    with page_of(browser, studio) as page:
        n = page.locator("#projects li").count()
        page.fill("#seconds", "1")
        page.fill("#chords", "Am H")
        page.click("#make .primary")
        expect(page.locator("#notice")).to_contain_text("chords: H: expected such as F#m")
        page.fill("#chords", " Am:0.5 F ")  # and again, from the same page
        page.click("#make .primary")
        wait_for(page, 1, 1)
        assert "Am:0.5 F" in page.inner_text("#facts")
        assert page.is_hidden("#chroma-field")
        page.set_input_files("aside .upload", tmp_path / "tune.wav")
        wait_for(page, 2, 1)
        page.select_option("#chroma", label="tune.wav")
        page.fill("#extend [name=after]", "1")
        page.click("#extend .primary")
        expect(page.locator("#notice")).to_contain_text("notes, chords: expected one of them, found both")
        page.fill("#chords", "")
        page.click("#extend .primary")
        wait_for(page, 3, 2)
        page.click(".brand a")
        expect(page.locator("#projects li")).to_have_count(n + 1)  # the refused one has left none


def test_the_page_is_usable_while_the_model_loads(browser: Browser, studio: Studio) -> None:
    """By what the server knew of it before; when it turns out to be another, the page begins anew."""
    page, asked = browser.new_page(), list[Route]()
    page.route("**/api/model", lambda route: asked.append(route))
    page.goto(studio.url)
    page.wait_for_selector("#make .primary:enabled")
    until(page, lambda: asked)
    expect(page.locator("#status")).to_contain_text("The model is loading; your music begins as soon as it is there")
    page.fill("#seconds", "1")
    page.click("#make .primary")
    wait_for(page, 1, 1)
    asked[0].continue_()
    expect(page.locator("#status")).not_to_contain_text("loading")
    page.reload()
    until(page, lambda: len(asked) == 2)
    asked[1].fulfill(json={"name": "another"})
    until(page, lambda: len(asked) == 3)
    asked[2].continue_()
    wait_for(page, 1, 1)
    page.close()


def test_play_live_waits_for_the_model(browser: Browser, studio: Studio) -> None:
    page, asked = browser.new_page(), list[Route]()
    page.route("**/api/model?early=true", lambda route: asked.append(route))
    page.goto(studio.url)
    until(page, lambda: asked)
    link = page.get_by_role("link", name="Play live")
    expect(link).to_be_disabled()
    expect(page.locator("#status")).to_contain_text("The model is loading")
    link.click(force=True)
    assert page.is_hidden("#live")
    asked[0].continue_()
    expect(link).to_be_enabled()
    link.click()
    expect(page.locator("#live")).to_be_visible()
    page.close()


def test_live_says_the_chord_of_the_code_that_was_drawn_last(model: Path) -> None:
    generator = Generator.from_pretrained(model)
    session = Session(generator, "", Turn(set={"chords": "Am:0.2 F:0.3"}, buffer=5))
    once = chord_frames("Am:0.2 F:0.3", generator.hop_lengths[0] / generator.sample_rate).tolist()
    n_drawn, found = [], []
    for i in range(12):
        session.update(Turn(restart=i == 8))
        session.block()
        n_drawn.append(len(session.live.frames))
        found.append(session.facts["frame"])
    assert n_drawn[8] < n_drawn[7]
    assert found == [once[(n - 1) % len(once)] for n in n_drawn]
    assert len(set(found)) == 2
    session.update(Turn(set={"chords": ""}))
    session.block()
    assert session.facts["frame"] == 0


@pytest.mark.parametrize(
    ("n", "title"), [(1, "new details"), (2, "new details after “Medium 1”"), (3, "new finest sound")]
)
def test_new_details_are_named_after_what_the_player_shows(n: int, title: str) -> None:
    generator = tiny_generator([[], [], [], []], (512, 256, 128, 64))
    piece = generator.tokenizer.encode(torch.zeros(1, 8000), 8000)
    request = JobRequest(kind="rerender", version=1, keep_levels=n)
    assert _change(generator, Limits(), request, piece, 0)[0] == title


def test_jobs_follow_notes_as_python_does(model: Path, tmp_path: Path) -> None:
    """Chords, and the recording of a project, which a model without chroma follows by its notes."""
    limits = Limits()
    (tmp_path / "sounds").mkdir()
    engine = Engine(model, "tiny", Library(tmp_path / "projects", limits), limits, tmp_path / "sounds")
    described = engine.describe()
    assert (described["notes"], described["chroma"]) == (True, False)
    project = engine.library.create(Project(tokenizer_hash=engine.hash))
    soundfile.write(tmp_path / "tune.wav", tones(1, 8000), 8000)
    arrived = engine.library.folder(project) / "recordings" / "incoming-0123456789abcdef.wav"
    arrived.write_bytes((tmp_path / "tune.wav").read_bytes())
    opened = engine.open(project, arrived, "tune.wav")
    opened.work(opened)
    follows: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"chords": "Am:0.5 F"}, {"chords": "Am:0.5 F"}),
        ({"chroma": project.recordings[0].id}, {"notes": str(tmp_path / "tune.wav")}),
        ({}, {}),
    ]
    found = []
    for wanted, options in follows:
        settings: dict[str, list[float]] = {"guidance": [3, 1, 1]}
        job = engine.job(project, JobRequest(kind="make", seconds=1, seed=4, settings=settings, **wanted))
        codes = engine.codes(project, job.work(job)[0])
        more = {"guidance": [3, 1, 1]} if options else {}
        expected = next(iter(engine.generator.sample_codes(1, 4, **more, **options)))
        assert all(torch.equal(a, b) for a, b in zip(codes.levels, expected.levels, strict=True))
        found.append(codes.levels[0])
    assert project.versions[1].chords == "Am:0.5 F"
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[1], found[2])
    with pytest.raises(ValueError, match="chords: H: expected such as"):
        engine.job(project, JobRequest(kind="make", seconds=1, chords="H"))
