"""The listening report: its contents, its size, and that a browser plays it."""

import base64
import hashlib
import io
import json
import os
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
from conftest import ROOT, assert_one_line_error, cli, tones
from playwright.sync_api import Browser, Page
from scipy.stats import binomtest

from audiovq import Tokenizer
from audiovq.data.tracks import find_audio
from audiovq.pretrained.export import without_local_paths
from audiovq.recipe import load_recipe, load_saved_recipe
from audiovq.report.clips import MAX_CLIPS, Clip, Group, choose, render
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
    recipe = without_local_paths(load_saved_recipe(run / "recipe.yaml")).to_yaml().strip()
    assert "<h1>tiny &amp; co</h1>" in html
    for text in ("Source", "Level 0", "Levels 0 and 1", "All 3 levels", "Piece 1", Tokenizer.from_pretrained(run).hash,
                 "3 for training, 1 held out", "CREDITS.md", "torch", recipe):  # fmt: skip
        assert text in unescape(html), text
    assert "<script>alert" not in html
    links = Links()
    links.feed(html)
    assert len(links.found) > 7
    assert all(link.startswith(("data:", "#")) for link in links.found)
    policy = re.search(r'content="(default-src[^"]*)"', html)
    assert policy is not None
    assert "unsafe" not in policy[1]
    for name in ("style", "script type=.module."):
        text = re.search(f"<{name}>(.*?)</{name.split()[0]}>", html, re.DOTALL)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"{name.split()[0]}-src 'sha256-{digest}'" in unescape(policy[1])
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
    random = np.random.default_rng(0)
    clips = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", random.uniform(-0.5, 0.5, 6 * 16000), 16000)
        clips.append(Clip(f"noise {i}", tmp_path / f"{i}.wav"))
    room = 9_000_000
    for kind, is_excerpt, share in (("flac", False, 0.9), ("mp3", False, 0.8), ("mp3", True, 0.0)):
        rendered, found = render([Group("noise", "generated", clips)], room)
        assert found == kind
        n_bytes = sum(len(c["audio"]) for c in rendered)
        assert n_bytes <= room
        assert all(clip["is_excerpt"] == is_excerpt for clip in rendered)
        assert all(c["seconds"] == 6 or 3 <= c["seconds"] < 5.5 for c in rendered)
        room = int(share * n_bytes)
    many = [Group("", "generated", clips * 9)] * 5
    assert choose(many) == (many[:1], 4 * 27)
    assert len(choose([Group("", "pieces", clips * 20)])[0][0].clips) == MAX_CLIPS


def test_excerpts_begin_where_something_happens(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", tones(60, 8000), 8000)
    for start, expected in ((0.0, 0.0), (20.0, 20.0), (50.0, 30.0)):
        clip = render([Group("", "pieces", [Clip("x", tmp_path / "long.wav", start=start)])], 10**7)[0][0]
        assert (clip["start"], clip["seconds"], clip["is_excerpt"]) == (expected, 30.0, True)


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


def test_names_that_are_not_utf_8(run: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.wav"))
    soundfile.write(tmp_path / "a.wav", tones(40, 8000), 8000)
    os.rename(tmp_path / "a.wav", path)
    report_pieces(tmp_path / "x.html", run, Tokenizer.from_pretrained(run).network, {"piece": path}, source=path)
    html = (tmp_path / "x.html").read_text()
    assert len(audios(html)) == 2
    assert "%E9.wav" in html


def test_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line_error(cli("report", tmp_path), "recipe.yaml")
    assert_one_line_error(cli("report", run, "--out", tmp_path / "none" / "x.html"), "cannot be written", "--out")
    (tmp_path / "x.wav").write_text("no sound")
    network = Tokenizer.from_pretrained(run).network
    assert try_report(lambda: report_pieces(tmp_path / "x.html", run, network, {"x": tmp_path / "x.wav"})) is None
    assert not list(tmp_path.glob("*.html"))
    assert "no listening report" in capsys.readouterr().err


def test_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(run / "recipe.yaml", tmp_path / "new")
    assert report_run(tmp_path / "new")["clips"] == 0
    assert "nothing to listen to yet" in (tmp_path / "new" / "report.html").read_text()


def test_a_run_with_codes_and_without_priors(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    found = json.loads((run / "report.json").read_text())
    for level in found["levels"]:
        for name in ("bits_per_code", "bits_per_second", "n_codes"):
            level.pop(name)
    (tmp_path / "run" / "report.json").write_text(json.dumps(found))
    for folder in (tmp_path / "run").glob("prior-*"):
        shutil.rmtree(folder)
    report_run(tmp_path / "run")
    assert re.search(r"<dd>0 <small>of \d trained", (tmp_path / "run" / "report.html").read_text())


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
        let holds = false;
        for (let i = 0; i < 500 && !(holds = {condition}); i++) await new Promise((done) => setTimeout(done, 20));
        if (!holds) throw new Error("not within ten seconds");
    }}""")


def test_a_browser_plays_every_sound(page: Page) -> None:
    for i in range(7):
        page.locator(f"#clip-{i}").scroll_into_view_if_needed()
        wait(page, f"document.querySelector('#clip-{i} .player').player.transport.seconds === 0.5")
    page.click("#clip-1 .play")
    # The third goes on where the first was, which stops. One expression, because half a second of sound is soon over.
    wait(
        page,
        "document.querySelector('#clip-1 .player').player.transport.position > 0.05 && "
        "(document.querySelector('#clip-3 .play').click(), true)",
    )
    assert page.evaluate("document.querySelector('#clip-1 .player').player.transport.source") is None
    assert page.evaluate("document.querySelector('#clip-3 .player').player.transport.at") > 0.05
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_pictures_are_true_to_the_sound(browser: Browser) -> None:
    """The strongest row of the spectrogram is at the pitch of the sound; the transform is NumPy's."""
    page = browser.new_page()
    module = (ROOT / "audiovq" / "report" / "template" / "pictures.js").read_bytes()
    signal = np.random.default_rng(0).normal(size=(2, 16))
    found = page.evaluate(
        """async ([module, re, im]) => {
            const { fft, drawSpectrogram, peaksOf } = await import(`data:text/javascript;base64,${module}`);
            fft(16)(re, im);
            const buffer = new AudioBuffer({ length: 8000, sampleRate: 8000 }), data = buffer.getChannelData(0);
            for (let i = 0; i < 8000; i++) data[i] = 0.5 * Math.sin((2 * Math.PI * 1000 * i) / 8000) * (i > 4000);
            data[10] = -0.75;
            const canvas = document.createElement("canvas"), labels = document.createElement("div");
            document.body.append(canvas);
            await drawSpectrogram(canvas, buffer, [0, 1], true, labels);
            const column = (x) => canvas.getContext("2d").getImageData(Math.floor(canvas.width * x), 0, 1, 128).data;
            const bright = (pixels) => Array.from({ length: 128 }, (_, y) => pixels[4 * y] + pixels[4 * y + 1]);
            const { low, high, peak } = peaksOf(buffer);
            const [before, after] = [0.3, 0.8].map((x) => bright(column(x)));
            return [re, im, before, after, low[0], high[1], peak, [...labels.children].map((each) => each.textContent)];
        }""",
        [base64.b64encode(module).decode(), *signal.tolist()],
    )
    page.close()
    spectrum = np.fft.fft(signal[0] + 1j * signal[1])
    assert np.allclose(found[0], spectrum.real)
    assert np.allclose(found[1], spectrum.imag)
    mels = [2595 * np.log10(1 + hertz / 700) for hertz in (1000, 4000)]
    assert abs(int(np.argmax(found[3])) - 128 * (1 - mels[0] / mels[1])) <= 2
    assert max(found[2]) < max(found[3]) / 5  # silence is dark
    assert found[4:7] == [-0.75, 0, 0.75]
    assert found[7] == ["200", "500", "1k", "2k"]


def test_marks_loops_zoom_and_downloads(page: Page, tmp_path: Path) -> None:
    wait(page, "document.querySelector('#clip-0 .player').player.transport.seconds === 0.5")
    page.focus("#clip-0 .stage")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#clip-0 .stage", "aria-valuetext") == "0.1 of 0.5 seconds"
    page.keyboard.press("i")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("o")
    mark = "document.querySelector('#clip-0 .player').player.mark"
    assert page.evaluate(mark) == [pytest.approx(0.1), pytest.approx(0.3)]
    page.keyboard.press("l")
    page.keyboard.press(" ")
    for _ in range(20):  # stays within the mark
        page.wait_for_timeout(25)
        assert 0.09 < page.evaluate("document.querySelector('#clip-0 .player').player.transport.position") < 0.31
    page.keyboard.press(" ")
    page.keyboard.press("Escape")
    assert page.evaluate(mark) is None
    box = page.locator("#clip-0 .stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40, steps=3)
    page.mouse.up()
    assert page.evaluate(mark) == [pytest.approx(0.1, abs=0.01), pytest.approx(0.3, abs=0.01)]
    assert page.inner_text("#clip-0 .mark-text") == "0.1 – 0.3 s marked"
    page.locator("#clip-0").get_by_label("Zoom in").click()
    view = page.evaluate("document.querySelector('#clip-0 .player').player.view")
    assert view[1] - view[0] == pytest.approx(0.25)
    with page.expect_download() as found:
        page.locator("#clip-0 .download").click()
    found.value.save_as(tmp_path / found.value.suggested_filename)
    assert (tmp_path / "track-3-source.flac").is_file()
    assert soundfile.info(tmp_path / "track-3-source.flac").frames == 4000


def test_themes_and_curves(page: Page) -> None:
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
    truth = page.evaluate(
        "window.played === document.querySelector('#clip-0 .player').player.transport.buffer ? 'a' : 'b'"
    )
    page.click(f"[data-answer={truth if right else 'ab'.replace(truth, '')}]")
    return truth


def test_the_blind_test_counts_right(page: Page) -> None:
    page.evaluate("""() => {
        const start = AudioBufferSourceNode.prototype.start;
        AudioBufferSourceNode.prototype.start = function (...when) {
            window.played = this.buffer;
            return start.apply(this, when);
        };
    }""")
    truths = []
    for n, right in ((10, 8), (5, 5), (16, 4)):
        page.select_option("#abx-trials", str(n))
        page.click("#abx-setup button")
        page.wait_for_selector("#abx-test:not([hidden])")
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
    assert {f"audiovq/report/template/{name}" for name in ("page.html", "page.css", "page.js", "player.js")} <= set(
        names
    )
    assert "audiovq/py.typed" in names
    assert {f"audiovq/studio/assets/{name}" for name in ("index.html", "studio.css", "studio.js")} <= set(names)
    wheel.extractall(tmp_path / "installed")  # quickstart finds its music there
    recipe = load_recipe(str(tmp_path / "installed" / "audiovq" / "recipes" / "quickstart.yaml"))
    assert len(find_audio(Path(recipe.data.folder))) == 8
    assert sum(entry.compress_size for entry in wheel.infolist() if "/samples/" in entry.filename) < 5e6
