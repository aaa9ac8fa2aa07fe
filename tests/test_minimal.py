"""examples/minimal.py learns, samples and decodes; its codebook and its prior keep their contracts."""

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SAMPLES

SCRIPT = ROOT / "examples" / "minimal.py"
RUN_TWICE = """
import runpy, sys
script, *options = sys.argv[1:]
for out in ("first.wav", "second.wav"):
    sys.argv = [script, *options, "--out", out]
    runpy.run_path(script, run_name="__main__")
"""  # in one process: the imports take longer than the training


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_learns_and_writes_a_piece_that_the_seed_determines(minimal: ModuleType, tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    for path, seconds in zip(sorted((SAMPLES / "chorales").glob("*.opus")), (8, 17), strict=False):
        waveform, rate = soundfile.read(path, frames=seconds * 48000)
        soundfile.write(music / f"{path.stem}.wav", waveform, rate)

    options = ["--music", music, "--steps", 6, 3, 3, "--seconds", 1.7, "--seed", 3]
    command = [sys.executable, "-c", RUN_TWICE, SCRIPT, *options]
    result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, rate = soundfile.read(tmp_path / "first.wav")
    second, _ = soundfile.read(tmp_path / "second.wav")
    assert (first.shape, rate) == ((27200,), 16000)  # 1.7 s, which is not a whole number of codes
    assert np.isfinite(first).all()
    assert abs(first).max() > 0
    assert np.array_equal(first, second)

    printed = result.stdout[: result.stdout.index("first.wav")]
    for name, n in (("tokenizer", 6), ("level 0", 3), ("level 1", 3), ("level 2", 3)):
        losses = [float(loss) for loss in re.findall(rf"{name}: step \d+/{n}, loss ([\d.]+)", printed)]
        assert losses[-1] < losses[0], printed
    bits = [float(figure) for figure in re.findall(r"held out: level \d, ([\d.]+) bits per code", printed)]
    assert len(bits) == 3
    assert max(bits) < math.log2(minimal.CODEBOOK_SIZE) + 0.5


def test_too_few_files_are_a_message(
    minimal: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--music", str(tmp_path)])
    with pytest.raises(SystemExit):
        minimal.main()
    assert "expected at least two audio files" in capsys.readouterr().err


def test_each_level_quantizes_what_coarser_levels_leave_to_the_nearest_entry(minimal: ModuleType) -> None:
    tokenizer = minimal.Tokenizer().eval()
    latents = torch.randn(2, minimal.CODEBOOK_DIM, 8)
    codes, total = tokenizer.quantize(latents)
    assert codes.shape == (2, 3, 8)
    rest = latents
    for level, n in enumerate(minimal.FRAMES_PER_CODE):
        means = rest.unflatten(2, (-1, n)).mean(dim=3).transpose(1, 2)  # [b, codes, d]
        distances = (means[:, :, None] - tokenizer.codebook).square().sum(dim=-1)
        assert torch.equal(codes[:, level], distances.argmin(dim=-1).repeat_interleave(n, dim=1))
        rest = rest - tokenizer.codebook[codes[:, level]].transpose(1, 2)
    assert torch.allclose(total, latents - rest, atol=1e-5)


def test_dead_entries_restart_at_latents_and_used_ones_move_to_their_mean(minimal: ModuleType) -> None:
    tokenizer = minimal.Tokenizer()
    latents = torch.randn(600, minimal.CODEBOOK_DIM)
    codes = torch.zeros(600, dtype=torch.int64)
    tokenizer.update_codebook(latents, codes)
    assert torch.allclose(tokenizer.codebook[0], latents.mean(dim=0), atol=1e-5)
    assert torch.cdist(tokenizer.codebook[1:], latents).amin(dim=1).max() < 1e-2  # up to rounding


def test_a_prior_sees_no_present_or_later_code_of_its_level_but_all_coarser_ones(minimal: ModuleType) -> None:
    prior = minimal.Prior(level=1).eval()
    codes = torch.randint(minimal.CODEBOOK_SIZE, (1, 2, 20))
    own, coarser = codes.clone(), codes.clone()
    own[0, 1, 10] = (own[0, 1, 10] + 1) % minimal.CODEBOOK_SIZE
    coarser[0, 0, 12] = (coarser[0, 0, 12] + 1) % minimal.CODEBOOK_SIZE
    with torch.no_grad():
        logits, after_own, after_coarser = prior(codes), prior(own), prior(coarser)
    assert torch.equal(logits[:, :11], after_own[:, :11])
    assert not torch.allclose(logits[:, 11], after_own[:, 11])
    assert not torch.allclose(logits[:, 10], after_coarser[:, 10])


def test_sampling_goes_beyond_the_context(minimal: ModuleType) -> None:
    prior = minimal.Prior(level=1).eval().requires_grad_(False)
    n = minimal.CONTEXT + 3
    coarser = torch.randint(minimal.CODEBOOK_SIZE, (1, n))
    torch.manual_seed(0)
    codes = prior.sample(coarser)
    torch.manual_seed(0)
    assert torch.equal(codes, prior.sample(coarser))
    assert codes.shape == (n,)
    assert codes.min() >= 0
    assert codes.max() < minimal.CODEBOOK_SIZE


def test_codes_of_coarse_levels_repeat(minimal: ModuleType) -> None:
    codes = minimal.Tokenizer().eval().encode(torch.randn(20000))
    assert codes.shape == (3, 40)  # whole codes of level 0: 40 frames of 512 samples
    for level, n in enumerate(minimal.FRAMES_PER_CODE):
        assert torch.equal(codes[level, ::n].repeat_interleave(n), codes[level])
