"""Real music from samples/, and one tiny run that many tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # tests run in parallel, one process per core
# librosa's compiled functions are cached on disk; two processes that write one cache at once leave one that crashes.
os.environ["NUMBA_CACHE_DIR"] = str(
    Path(__file__).parent.parent / ".pytest_cache" / f"numba-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
)
os.environ["AUDIOVQ_REPORT"] = "0"  # tests of the page ask for it

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from playwright.sync_api import Browser, Error, sync_playwright

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
TRACK = SAMPLES / "recordings" / "highland-mist-a.opus"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

TINY = """
data: {{folder: {folder}, valid_fraction: 0.25, min_seconds: 0.5}}
precision: fp32
tokenizer:
  model:
    sample_rate: 8000
    hop_lengths: [256, 128, 64]
    dim: 16
    whiten_latents: true
    encoder: {{n_blocks: 1}}
    decoder: {{kind: istft, dim: 16, n_blocks: 1}}
    quantizer: {{kind: ema, codebook_size: 16, codebook_dim: 4}}
  losses: {{mel_windows: [256, 512]}}
  crop_seconds: 0.25
  vq_start_step: 1
  training: {{steps: 4, batch_size: 2, log_steps: 1, evaluate_steps: 4, evaluate_batches: 1, warmup_steps: 2}}
priors:
  - model:
      transformer: {{dim: 16, n_layers: 1, n_heads: 2, context: 32, attention_window: 16}}
      conditioners: [{{kind: label, name: genre}}, {{kind: timing}}]
    training: {{steps: 3, batch_size: 2, log_steps: 1, evaluate_steps: 3, evaluate_batches: 1, warmup_steps: 1}}
samples: {{seconds: 0.5, n: 1}}
trackers: []
"""


def tones(seconds: float, rate: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """A little tune of decaying sines, float32 [samples, channels]."""
    random = np.random.default_rng(seed)
    n = int(seconds * rate)
    wave = np.zeros(n)
    for start in range(0, n, rate // 4):
        t = np.arange(n - start) / rate
        wave[start:] += np.sin(2 * np.pi * 220 * 2 ** (random.integers(0, 12) / 12) * t) * np.exp(-4 * t)
    return np.repeat((0.3 * wave / np.abs(wave).max()).astype(np.float32)[:, None], channels, axis=1)


collect_ignore = [] if find_spec("mido") and find_spec("pythonosc") else ["test_live_command.py"]  # need the extra live


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short tracks of two genres."""
    folder = tmp_path_factory.mktemp("music")
    for i in range(4):
        genre = "folk" if i % 2 else "rock"
        soundfile.write(folder / f"track-{i}.wav", tones(2.5, 8000, seed=i), 8000)
        (folder / f"track-{i}.json").write_text(f'{{"genre": "{genre}", "split": "{"valid" if i == 3 else "train"}"}}')
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory, music: Path) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(TINY.format(folder=music))
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """All stages of the tiny recipe, done once."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    result = cli("train", tiny_recipe, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    required = os.environ.get("AUDIOVQ_REQUIRE_BROWSER") == "1"
    if path is None and not required:
        pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error:
            if required:
                raise
            pytest.skip(f"{path} does not start here")
        yield chromium
        chromium.close()


def cli(*arguments: object) -> Result:
    """Run a command in this process."""
    from audiovq.cli import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line_error(result: Result, *words: str) -> None:
    """Exit code 2, one line, no traceback, and the words that help."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = [line for line in result.output.splitlines() if line.startswith("audiovq: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0], f"{word!r} not in {lines[0]!r}"


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
