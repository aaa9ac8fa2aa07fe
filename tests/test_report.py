"""The listening report: its contents, its size, and that a browser plays it."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_one_line_error, cli, tones
from playwright.sync_api import Browser, Page
from scipy.stats import binomtest

from audiovq import Tokenizer
from audiovq.data.tracks import find_audio
from audiovq.recipe import load_recipe
from audiovq.report.clips import MAX_CLIPS, PICTURE_BYTES, choose, outline, render
from audiovq.report.contents import Clip, Group
from audiovq.report.curves import MAX_POINTS, stage_curves, thin
from audiovq.report.page import report_pieces, report_run, try_report
from audiovq.training.logs import read_steps

CREDITS = (
    "# Credits\n\n| file | author |\n|---|---|\n| a | <script>alert(1)</script> |\n\n![far](http://x.test/p.png)\n"
)


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, whose music has credits."""
    folder = tmp_path_factory.mktemp("report") / "tiny & co"
    shutil.copytree(tiny_run, folder)
    music = folder.parent / "music"
    music.mkdir()
    (music / "CREDITS.md").write_text(CREDITS)
    facts = json.loads((folder / "data" / "report.json").read_text())
    (folder / "data" / "report.json").write_text(json.dumps(facts | {"folder": str(music)}))
    return folder


@pytest.fixture(scope="module")
def page_file(run: Path) -> Path:
    result = cli("report", run, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["bytes"] == Path(facts["report"]).stat().st_size
    assert facts["clips"] == 4 + 3  # source and three prefixes; a piece with one, two, three levels
    return Path(facts["report"])


class Links(HTMLParser):
    """All addresses that a page loads, and not those that one may click on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.found += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]


def audios(html: str) -> list[tuple[str, bytes]]:
    found = re.findall(r'<audio[^>]* src="data:audio/(\w+);base64,([^"]+)"', html)
    return [(kind, base64.b64decode(text)) for kind, text in found]


def test_the_page_is_complete_and_loads_nothing(run: Path, page_file: Path) -> None:
    html = page_file.read_text()
    assert "<h1>tiny &amp; co</h1>" in html
    for text in ("Source", "Level 0", "Levels 0 and 1", "All 3 levels", "Piece 1", Tokenizer.from_pretrained(run).hash,
                 "3 for training, 1 held out", "CREDITS.md", "torch", (run / "recipe.yaml").read_text()):  # fmt: skip
        assert text in unescape(html), text
    assert "<script>alert" not in html
    links = Links()
    links.feed(html)
    assert len(links.found) > 20
    assert all(link.startswith(("data:", "#")) for link in links.found)
    sounds = audios(html)
    assert {kind for kind, _ in sounds} == {"flac"}
    assert [soundfile.info(io.BytesIO(sound)).frames for _, sound in sounds] == [4000] * 7


def test_sounds_are_the_samples_equally_loud(run: Path, page_file: Path) -> None:
    html = page_file.read_text()
    gains = [float(text.replace("−", "-")) for text in re.findall(r'class="gain">([+−][\d.]+) dB', html)]
    names = [f"tokenizer/track-3-{name}.wav" for name in ("source", "levels-1", "levels-2", "levels-3")]
    for gain, name, (_, sound) in zip(gains, names, audios(html), strict=False):
        shown, original = soundfile.read(io.BytesIO(sound))[0], soundfile.read(run / "samples" / name)[0]
        assert np.abs(shown - original * 10 ** (gain / 20)).max() < 0.01  # the gain is shown to a tenth of a decibel


def test_a_page_is_never_too_big(tmp_path: Path) -> None:
    random, reserved = np.random.default_rng(0), 3 * PICTURE_BYTES
    clips = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", random.uniform(-0.5, 0.5, 6 * 16000), 16000)
        clips.append(Clip(f"noise {i}", tmp_path / f"{i}.wav"))
    room = 9_000_000
    for kind, is_excerpt, share in (("flac", False, 0.9), ("mp3", False, 0.8), ("mp3", True, 0.0)):
        rendered, sound = render([Group("noise", "generated", clips)], room)
        assert sound["format"] == kind
        assert sum(len(c["audio"]) + len(c["spectrogram"]) + len(c["outline"]) for c in rendered) <= room
        assert all(clip["is_excerpt"] == is_excerpt for clip in rendered)
        assert sound["excerpt_seconds"] == 6 or 3 <= sound["excerpt_seconds"] < 5.5
        room = reserved + int(share * sound["bytes"])
    many = [Group("", "generated", clips * 9)] * 5
    assert choose(many) == (many[:1], 4 * 27)
    assert len(choose([Group("", "pieces", clips * 20)])[0][0].clips) == MAX_CLIPS


def test_excerpts_begin_where_something_happens(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", tones(60, 8000), 8000)
    for start, expected in ((0.0, 0.0), (20.0, 20.0), (50.0, 30.0)):
        clip = render([Group("", "pieces", [Clip("x", tmp_path / "long.wav", start=start)])], 10**7)[0][0]
        assert (clip["start"], clip["seconds"], clip["is_excerpt"]) == (expected, 30.0, True)


def test_the_waveform_is_drawn_to_scale() -> None:
    wave = torch.zeros(1, 720)
    wave[0, 100], wave[0, 101], wave[0, 400] = 1.0, -0.5, 0.25  # columns 50 and 200 of 360
    path = outline(wave)
    assert "L50 -100" in path
    assert "L50 50" in path
    assert "L200 -25" in path
    assert path.count("L") == 720


def test_curves(run: Path, tmp_path: Path) -> None:
    stages = {stage["title"]: stage["charts"] for stage in stage_curves(run / "training")}
    assert list(stages) == ["Tokenizer", "Priors"]
    assert [chart["title"][:4] for chart in stages["Priors"]] == ["Loss", "Cros"]
    logged = read_steps(run / "training" / "prior-1" / "metrics.jsonl")
    costs = [line["bits_per_second"] for line in logged if "bits_per_second" in line]
    series = next(s for s in stages["Priors"][1]["series"] if s["level"] == 1 and not s["held_out"])
    assert [value for _, value in series["points"]] == pytest.approx(costs, rel=1e-4)
    held_out = next(s for s in stages["Priors"][0]["series"] if s["level"] == 1 and s["held_out"])
    assert held_out["points"][-1][1] == pytest.approx(logged[-1]["valid_loss"], rel=1e-4)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    assert [line["step"] for line in read_steps(tmp_path / "metrics.jsonl")] == [1, 2]
    thinned = thin([[float(i), float(i)] for i in range(1000)])
    assert len(thinned) <= MAX_POINTS
    assert thinned[-1] == [999, 997.0]  # the mean of the last five
    assert thin([[1, 2.0]]) == [[1, 2.0]]


def test_training_and_sampling_leave_a_page(tiny_recipe: Path, tmp_path: Path) -> None:
    result = cli("train", tiny_recipe, "--out", tmp_path / "run", "--stage", "tokenizer", "--report", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["finished"] == ["tokenizer"]
    assert len(audios((tmp_path / "run" / "report.html").read_text())) == 4
    assert cli("train", tiny_recipe, "--out", tmp_path / "run2", "--stage", "tokenizer", "--no-report").exit_code == 0
    assert not (tmp_path / "run2" / "report.html").exists()


def test_a_page_of_new_pieces(tiny_run: Path, tmp_path: Path) -> None:
    options = ("--model", tiny_run, "--seed", 1, "--report", "--json")
    result = cli(
        "sample",
        *options,
        "--seconds",
        1,
        "--num",
        3,
        "--best",
        2,
        "--out",
        tmp_path / "a.wav",
        "--label",
        "genre=folk",
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["seed"], facts["report"], len(facts["pieces"])) == (1, str(tmp_path / "a.html"), 2)
    assert all(Path(piece["file"]).is_file() for piece in facts["pieces"])
    html = (tmp_path / "a.html").read_text()
    assert len(audios(html)) == 2
    assert "genre=folk" in html
    assert 'id="abx"' not in html
    soundfile.write(tmp_path / "clip.wav", tones(3, 16000), 16000)
    edit = ("--edit", tmp_path / "clip.wav", "--from", 1, "--to", 2, "--out", tmp_path / "b.wav")
    assert cli("sample", *options, *edit).exit_code == 0
    sounds = audios((tmp_path / "b.html").read_text())
    assert [soundfile.info(io.BytesIO(sound)).samplerate for _, sound in sounds] == [
        8000,
        16000,
    ]  # source, and the piece at the rate of the recording
    assert 'id="abx"' in (tmp_path / "b.html").read_text()
    assert cli("sample", "--model", tiny_run, "--seed", 2, "--seconds", 1, "--out", tmp_path / "c.wav").exit_code == 0
    assert not (tmp_path / "c.html").exists()  # switched off in the environment, see conftest


def test_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line_error(cli("report", tmp_path), "recipe.yaml")
    assert_one_line_error(cli("report", run, "--out", tmp_path / "none" / "x.html"), "cannot be written", "--out")
    (tmp_path / "x.wav").write_text("no sound")
    assert try_report(lambda: report_pieces(tmp_path / "x.html", run, {"x": tmp_path / "x.wav"})) is None
    assert not list(tmp_path.glob("*.html"))
    assert "no listening report" in capsys.readouterr().err


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(run / "recipe.yaml", tmp_path / "new")
    assert report_run(tmp_path / "new")["clips"] == 0
    assert "nothing to listen to yet" in (tmp_path / "new" / "report.html").read_text()


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    """The report, opened from disk; whatever it complains of or asks the network for fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    tab, complaints = context.new_page(), []
    tab.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request", lambda request: complaints.append(request.url) if request.url[:5] not in ("file:", "data:") else None
    )
    tab.goto(page_file.as_uri())
    yield tab
    context.close()
    assert not complaints


def wait(page: Page, condition: str) -> None:
    """Until a condition of JavaScript holds (the page's own policy forbids what playwright has for this)."""
    page.evaluate(f"""async () => {{
        for (let i = 0; i < 500 && !({condition}); i++) await new Promise((done) => setTimeout(done, 20));
        if (!({condition})) throw new Error("not within ten seconds");
    }}""")


def test_a_browser_plays_every_sound(page: Page) -> None:
    durations = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map((audio) => new Promise((done) => {
            audio.addEventListener("canplaythrough", () => done([audio.readyState, audio.duration]), {once: true});
            audio.addEventListener("error", () => done(["error", audio.error.message]));
            audio.preload = "auto"; audio.load();
        })))"""
    )
    assert durations == [[4, pytest.approx(0.5, abs=0.01)]] * 7
    page.click("#clip-1 .play")
    wait(page, "document.querySelector('#clip-1 audio').currentTime > 0.05")
    page.click("#clip-3 .play")  # goes on where the other was, which stops
    assert page.evaluate("document.querySelector('#clip-1 audio').paused")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_seeking_by_keyboard_themes_and_curves(page: Page) -> None:
    page.focus("#clip-0 .seek")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    wait(page, "Math.abs(document.querySelector('#clip-0 audio').currentTime - 0.1) < 0.02")
    dark = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(dark)
    page.click("#theme")
    assert page.evaluate(dark) != before
    assert page.locator(".chart").count() == 5
    assert page.locator(".chart path").count() == page.locator(".chart g").count() > 12
    page.focus(".chart svg")
    assert page.inner_text(".chart thead th") == "step 4"
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".chart thead th") == "step 3"


def abx_trial(page: Page, right: bool) -> str:
    """Listen, look up which sound is playing, answer; returns what X was."""
    page.click("[data-listen=x]")
    truth = page.evaluate("window.played.src === document.querySelector('#clip-0 audio').src ? 'a' : 'b'")
    page.click(f"[data-answer={truth if right else 'ab'.replace(truth, '')}]")
    return truth


def test_the_blind_test_counts_right(page: Page) -> None:
    page.evaluate(
        "() => { const play = Audio.prototype.play; HTMLMediaElement.prototype.play = function () { window.played = this; return play.call(this); }; }"
    )
    truths = []
    for n, right in ((10, 8), (5, 5), (16, 4)):
        page.select_option("#abx-trials", str(n))
        page.click("#abx-setup button")
        assert page.is_disabled("[data-answer=a]")  # X was not played yet
        for i in range(n):
            assert page.inner_text("#abx-progress") == f"Trial {i + 1} of {n}"
            truths.append(abx_trial(page, i < right))
        p = binomtest(right, n, 0.5, "greater").pvalue
        assert page.inner_text("#abx-score") == f"{right} of {n} right"
        assert page.inner_text("#abx-p") == f"p = {p:.3f}"
        assert ("You hear a difference" in page.inner_text("#abx-verdict")) == (p < 0.05)
        page.click("#abx-again")
    assert set(truths) == {"a", "b"}
    assert page.locator("#abx-log tbody tr").count() == 3
    page.select_option("#abx-b", "0")  # the same twice
    page.click("#abx-setup button")
    assert page.is_hidden("#abx-test")


def test_without_scripts_there_are_plain_players(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab: Any = context.new_page()
    tab.goto(page_file.as_uri())
    assert tab.locator("audio[controls]").first.is_visible()
    assert tab.locator(".play").first.is_hidden()
    context.close()


def test_the_wheel_has_template_style_and_script(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    names = wheel.namelist()
    assert {f"audiovq/report/template/page.{suffix}" for suffix in ("html", "css", "js")} <= set(names)
    assert {f"audiovq/studio/assets/player.{suffix}" for suffix in ("html", "css", "js")} <= set(names)
    wheel.extractall(tmp_path / "installed")  # quickstart finds its music there
    recipe = load_recipe(str(tmp_path / "installed" / "audiovq" / "recipes" / "quickstart.yaml"))
    assert len(find_audio(Path(recipe.data.folder))) == 8
    assert sum(entry.compress_size for entry in wheel.infolist() if "/samples/" in entry.filename) < 5e6
