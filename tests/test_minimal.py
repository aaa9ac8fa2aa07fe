"""examples/minimal.py: the whole idea in one file runs, and its parts do what they say."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch
from conftest import ROOT, SAMPLES
from torch.nn import functional as F

SCRIPT = ROOT / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns_and_writes_a_piece_of_the_exact_length(tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    for path in sorted((SAMPLES / "chorales").glob("*.opus"))[:2]:
        wave, rate = soundfile.read(path, frames=40 * 48000)
        soundfile.write(music / f"{path.stem}.wav", wave, rate)
    options = ["--music", music, "--steps", 12, 3, 3, "--seconds", 3.5, "--out", tmp_path / "new.wav"]
    command = [sys.executable, SCRIPT, *map(str, options)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wave, rate = soundfile.read(tmp_path / "new.wav")
    assert (len(wave), rate) == (56000, 16000)
    assert abs(wave).max() > 0
    losses = [float(x) for x in re.findall(r"tokenizer: step \d+/12, loss ([\d.]+)", printed)]
    assert losses[-1] < losses[0]
    assert len(re.findall(r"held out: level \d, [\d.]+ bits per code", printed)) == 3


def test_the_codebook_gives_the_nearest_entry_and_dead_entries_restart(minimal: ModuleType) -> None:
    tokenizer = minimal.Tokenizer()
    latents = torch.randn(2, 5, minimal.CODEBOOK_DIM)
    distances = ((latents[:, :, None] - tokenizer.codebook) ** 2).sum(dim=-1)
    assert torch.equal(tokenizer.nearest(latents), distances.argmin(dim=-1))
    x = torch.randn(600, minimal.CODEBOOK_DIM)
    tokenizer.update_codebook(x, torch.zeros(600, dtype=torch.int64))  # at first all entries are dead
    assert float(torch.cdist(tokenizer.codebook[1:], x).amin(dim=1).max()) < 1e-2  # up to rounding


def test_a_prior_sees_no_code_of_its_own_level_ahead(minimal: ModuleType) -> None:
    prior = minimal.Prior(level=1).eval()
    codes = torch.randint(minimal.CODEBOOK_SIZE, (1, 2, 20))
    changed = codes.clone()
    changed[0, 1, 10] = (changed[0, 1, 10] + 1) % minimal.CODEBOOK_SIZE
    before, after = prior(codes), prior(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])
    targets = F.cross_entropy(before.flatten(0, 1), codes[:, 1].flatten())
    assert prior.loss(codes).item() == pytest.approx(targets.item())


def test_codes_of_coarse_levels_repeat(minimal: ModuleType) -> None:
    codes = minimal.Tokenizer().eval().encode(torch.randn(20000))
    assert codes.shape == (3, 40)  # whole codes of level 0: 40 frames of 512 samples
    for level, n in enumerate(minimal.FRAMES_PER_CODE):
        assert torch.equal(codes[level, ::n].repeat_interleave(n), codes[level])
