"""The page that makes music, in Chromium, without any other host than its own."""

import functools
import http.server
import json
import os
import shutil
import sys
import tarfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, assert_one_line_error, cli
from playwright.sync_api import Browser, Page
from tiny_generator import bands_generator, export as tiny_export

from audiovq.web import export

sys.path.insert(0, str(ROOT / "player"))
from audiovq_player import Player
from audiovq_player.drawing import gumbel_noise, next_code

TINY = ROOT / "player" / "tests" / "tiny"
EXPECTED = np.load(TINY / "expected.npz")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the tiny model."""
    folder = tmp_path_factory.mktemp("page")
    try:
        export.write_page(folder)
    except ValueError:
        if os.environ.get("AUDIOVQ_REQUIRE_BROWSER") == "1":
            raise
        pytest.skip("onnxruntime-web is not here and cannot be downloaded")
    shutil.copytree(TINY, folder / "model")
    (folder / "model" / "about.txt").write_text("A tiny model.")
    return folder


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = serve(folder)
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []

    def route(route) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            problems.append(route.request.url)
            route.abort()

    context.route("**/*", route)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert problems == []


def open_page(page: Page, address: str, link: str = "") -> None:
    page.goto(address + link)
    page.wait_for_selector("#make:not([disabled])", timeout=60000)


def state(page: Page, expression: str) -> object:
    return page.evaluate(f"import('./page.js').then(({{ state }}) => {expression})")


def make(page: Page) -> list[np.ndarray]:
    """Press the button, and wait for the codes of the piece."""
    page.click("#make")
    page.wait_for_selector("#status:text-is('Done.')", timeout=60000)
    found = state(page, "state.codes.map((codes) => Array.from(codes))")
    assert isinstance(found, list)
    return [np.array(level) for level in found]


def test_the_page_makes_the_piece_that_torch_makes(page: Page, address: str, tmp_path: Path) -> None:
    open_page(page, address, "#seconds=1.25&seed=1")
    codes = make(page)
    for i, level in enumerate(codes):
        assert np.array_equal(level, EXPECTED[f"plain-{i}"])
    assert state(page, "state.firstSound > 0")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "music-1.wav"
    download.value.save_as(tmp_path / "music.wav")
    waveform, rate = soundfile.read(tmp_path / "music.wav", dtype="float32")
    assert rate == 8000
    assert len(waveform) == 10000
    assert np.abs(waveform - EXPECTED["plain-waveform"][0]).max() < 1e-4


def test_codes_are_drawn_as_in_python(page: Page, address: str) -> None:
    """Also where most codes are so unlikely that the page leaves them out, as those of other slots."""
    random, size = np.random.default_rng(0), 60
    cases = [
        (random.normal(0, spread, size).astype(np.float32), temperature, top_k, top_p)
        for spread in (1, 5, 40)
        for temperature in (0.7, 1.0, 3.0)
        for top_k, top_p in ((0, 1.0), (0, 0.9), (0, 0.3), (7, 1.0), (7, 0.8), (size, 0.999))
    ]
    for logits, *_ in cases[::2]:
        logits[20:] = -1e9
    open_page(page, address)
    drawn = page.evaluate(
        """async (cases) => {
            const { nextCode } = await import("./sampling.js"), { gumbelNoise } = await import("./noise.js");
            return cases.map(([logits, temperature, top_k, top_p], i) => [...Array(20).keys()].map((position) =>
                nextCode(Float32Array.from(logits), gumbelNoise(2 ** 40 + i, 1, 2, position, logits.length), { temperature, top_k, top_p })));
        }""",
        [(logits.tolist(), *settings) for logits, *settings in cases],
    )
    for i, (logits, temperature, top_k, top_p) in enumerate(cases):
        noise = gumbel_noise(2**40 + i, 1, 2, 0, 20, size)
        assert drawn[i] == [next_code(logits, row, temperature, top_k, top_p) for row in noise], cases[i]


def test_a_link_has_seed_and_settings(page: Page, address: str, browser: Browser) -> None:
    open_page(page, address, "#seconds=2")
    page.fill("#seed", "123456")
    page.select_option("[data-label=genre]", label="rock")
    page.fill("#text", "año")
    page.evaluate("document.getElementById('temperature').value = 1.2")
    codes = make(page)
    piece = Player(TINY).piece(2, 123456, labels={"genre": "rock"}, text="año", temperature=1.2, keep_codes=True)
    list(piece.blocks())
    for found, expected in zip(codes, piece.codes, strict=True):
        assert np.array_equal(found, expected)
    link = page.url
    assert link == f"{address}#seconds=2&seed=123456&temperature=1.2&text=a%C3%B1o&label-genre=rock"
    again = browser.new_page()
    again.goto(link)
    again.wait_for_selector("#make:not([disabled])", timeout=60000)
    for found, expected in zip(make(again), piece.codes, strict=True):
        assert np.array_equal(found, expected)
    again.close()


def test_without_end_it_plays_until_it_is_stopped(page: Page, address: str) -> None:
    open_page(page, address, "#seconds=endless&seed=1")
    page.click("#make")
    page.wait_for_selector("#made:has-text('s made')", timeout=60000)
    page.wait_for_timeout(3000)
    played = page.evaluate("document.getElementById('player').player.transport.position")
    assert played > 0.5
    made = float(page.inner_text("#made").split()[0])
    assert made < played + 30 + 10  # the worker waits for the listener
    page.click("#stop")
    assert page.inner_text("#status") == "Stopped."
    assert page.evaluate("document.getElementById('player').player.transport.source") is None
    assert page.evaluate("document.activeElement.id") == "make"
    assert page.is_enabled("#download")
    seconds = page.evaluate("document.getElementById('player').player.transport.seconds")
    assert 0 < seconds <= 60


def test_a_full_buffer_drops_its_beginning(page: Page, address: str) -> None:
    open_page(page, address)
    found = page.evaluate("""async () => {
      const { GrowingTransport } = await import("./growing.js");
      const sound = new GrowingTransport();
      sound.buffers = [new AudioBuffer({ length: 100, numberOfChannels: 1, sampleRate: 8000 })];
      sound.begin(true);
      for (let i = 0; i < 7; i++) sound.append([new Float32Array(30).fill(i)]);
      return [sound.filled, Math.round(sound.dropped * 8000), [...sound.buffer.getChannelData(0).subarray(0, sound.filled)]];
    }""")
    filled, dropped, samples = found
    assert filled + dropped == 7 * 30
    assert samples == [i for i in range(7) for _ in range(30)][dropped:]


def test_keyboard_and_screen_reader(page: Page, address: str) -> None:
    open_page(page, address, "#seconds=1.25&seed=1")
    page.focus("#seed")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status:text-is('Done.')", timeout=60000)
    assert page.get_attribute("#status", "role") == "status"
    names = ["Length", "Seed", "Temperature", "Genre", "Text"]
    assert all(page.get_by_label(name, exact=False).first.is_visible() for name in names)
    for control in page.locator("button:visible, select:visible, input:visible").all():
        assert control.evaluate("e => e.labels?.length || e.ariaLabel || e.textContent.trim()"), control
    page.wait_for_timeout(1500)
    page.focus("#player .stage")
    page.keyboard.press("Home")
    assert page.get_attribute("#player .stage", "aria-valuetext") == "0.0 of 1.3 seconds"
    page.keyboard.press("End")
    assert page.get_attribute("#player .stage", "aria-valuenow") == "1.25"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    open_page(page, address, "#seconds=1.25&seed=1")
    make(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in page.locator("button:visible, select:visible").all():
        box = control.bounding_box()
        assert box is not None
        assert box["height"] >= 43, control
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(247, 245, 250)" if scheme == "light" else "rgb(18, 16, 23)")
    context.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cut", "model/prior-1.onnx is damaged"),
        ("other", "its checksum is another one"),
        ("missing", "model/prior-1.onnx is missing on the server"),
        ("version", "the format audiovq-generator-7"),
        ("json", "model/generator.json is damaged"),
        ("runtime", "ort-wasm-simd-threaded.wasm.gz is damaged"),
    ],
)
def test_damaged_files_are_one_sentence(
    browser: Browser, folder: Path, tmp_path: Path, change: str, words: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "page")
    prior, facts, runtime = (
        copy / name for name in ("model/prior-1.onnx", "model/generator.json", f"ort/{export.WASM}.gz")
    )
    content = prior.read_bytes()
    if change == "cut":
        prior.write_bytes(content[:-9])
    elif change == "other":
        prior.write_bytes(content[:-1] + b"x")
    elif change == "missing":
        prior.unlink()
    elif change == "version":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "format": "audiovq-generator-7"}))
    elif change == "json":
        facts.write_text("{")
    else:
        runtime.write_bytes(runtime.read_bytes()[:1000])
    server, page = serve(copy), browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
    page.wait_for_selector("[data-problem] #status", timeout=60000)
    assert words in page.inner_text("#status")
    assert not page.is_enabled("#make")
    page.close()
    server.shutdown()


def test_from_a_disk_it_says_that_it_needs_a_server(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    assert "python -m http.server" in page.inner_text("#status")
    page.close()


def test_old_browsers_are_told_what_is_missing(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.add_init_script("WebAssembly.validate = () => false")
    page.goto(address)
    assert "no WebAssembly with SIMD" in page.inner_text("#status")
    page.close()


def test_onnxruntime_web_comes_from_a_folder_or_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package" / "dist"
    package.mkdir(parents=True)
    for name in (*export.MODULES, export.WASM):
        (package / name).write_text(name)
    monkeypatch.setenv(export.FOLDER, str(package.parent))
    assert export.runtime_folder() == package
    export.copy_runtime(package, tmp_path / "ort")
    assert {path.name for path in (tmp_path / "ort").iterdir()} == {*export.MODULES, f"{export.WASM}.gz", "LICENSE.txt"}
    assert "MIT License" in (tmp_path / "ort" / "LICENSE.txt").read_text()
    monkeypatch.setenv(export.FOLDER, str(tmp_path))
    with pytest.raises(ValueError, match="AUDIOVQ_ONNXRUNTIME_WEB: expected a folder with"):
        export.runtime_folder()

    monkeypatch.delenv(export.FOLDER)
    monkeypatch.setattr(export.pooch, "os_cache", lambda name: tmp_path / "cache")
    registry = tmp_path / "registry" / "onnxruntime-web" / "-"
    registry.mkdir(parents=True)
    with tarfile.open(registry / export.ARCHIVE, "w:gz") as archive:
        archive.add(tmp_path / "package", "package")
    server = serve(tmp_path / "registry")
    monkeypatch.setenv(export.REGISTRY, f"http://127.0.0.1:{server.server_address[1]}/")
    with pytest.raises(ValueError, match="cannot be downloaded"):  # another file than the pinned one
        export.runtime_folder()
    monkeypatch.setattr(export, "SHA256", export.pooch.file_hash(str(registry / export.ARCHIVE)))
    found = export.runtime_folder()
    assert (found / export.WASM).read_text() == export.WASM
    server.shutdown()
    assert export.runtime_folder() == found  # without a network


def test_two_kinds_of_export_at_once_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    assert_one_line_error(cli("export", tiny_run, tmp_path / "x", "--onnx", "--web"), "expected one of them")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert_one_line_error(cli("export", tiny_run, tmp_path / "full", "--web"), "expected a new or empty folder")


@pytest.mark.slow
def test_the_bundled_model_becomes_a_page(browser: Browser, folder: Path, tmp_path: Path) -> None:
    result = cli("export", "default", tmp_path / "page", "--web")
    assert result.exit_code == 0, result.output
    assert sum(path.stat().st_size for path in (tmp_path / "page").rglob("*") if path.is_file()) < 45e6
    about = (tmp_path / "page" / "model" / "about.txt").read_text()
    licences = (ROOT / "recipes" / "default" / "LICENCES.md").read_text()
    assert textwrap.indent(licences.strip(), "> ", lambda line: True) in about
    server, page = serve(tmp_path / "page"), browser.new_page()
    open_page(page, f"http://127.0.0.1:{server.server_address[1]}/", "#seconds=3&seed=1&label-timbre=organ")
    piece = Player(tmp_path / "page").piece(3, 1, labels={"timbre": "organ"}, keep_codes=True)
    for _ in piece.blocks():
        pass
    for found, expected in zip(make(page), piece.codes, strict=True):
        assert np.array_equal(found, expected)
    page.close()
    server.shutdown()


@pytest.mark.slow
def test_a_model_of_bands_sounds_as_by_torch(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """In several blocks, from spectra and tones."""
    copy, generator = shutil.copytree(folder, tmp_path / "page"), bands_generator()
    shutil.rmtree(copy / "model")
    tiny_export(copy / "model", generator)
    server, page = serve(copy), browser.new_page(accept_downloads=True)
    open_page(page, f"http://127.0.0.1:{server.server_address[1]}/", "#seconds=6.3&seed=1")
    found = make(page)
    codes = generator.sample_codes(6.3, seed=1, precision="fp32")[0]
    for level, expected in zip(found, codes.levels, strict=True):
        assert np.array_equal(level, expected)
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "music.wav")
    waveform, expected = soundfile.read(tmp_path / "music.wav", dtype="float32")[0], generator.tokenizer.decode(codes)
    assert len(waveform) == codes.n_samples
    assert np.abs(waveform - expected[0].numpy()).max() < 1e-4
    page.close()
    server.shutdown()


@pytest.mark.slow
def test_a_run_becomes_a_page(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    result = cli("export", tiny_run, tmp_path / "page", "--web")
    assert result.exit_code == 0, result.output
    assert "python -m http.server" in result.output
    names = {
        path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page").rglob("*") if path.is_file()
    }
    assert {path.relative_to(folder).as_posix() for path in folder.glob("*.*")} <= names
    assert {"model/about.txt", "model/generator.json", "model/prior-2.onnx", "ort/LICENSE.txt"} <= names
    assert Player(tmp_path / "page").sample(0.5, seed=1).shape == (1, 4000)
