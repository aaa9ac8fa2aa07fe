"""Each command on real input; wrong input gives an error of one line and exit code 2."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, TRACK, assert_one_line_error, cli, tones
from test_audio import bad_file

from audiovq.data.codes import Codes
from audiovq.utils.files import writing

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_help_does_not_load_torch_and_lists_the_commands() -> None:
    code = "import sys; from audiovq.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'fastapi'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    for command in ("train", "sample", "encode", "decode", "info", "eval", "copies", "recipes", "studio"):
        assert f"  {command} " in result.stdout


def test_encode_decode_info_and_eval_on_a_real_track(tiny_run: Path, tmp_path: Path) -> None:
    codes, wave = tmp_path / "song.codes", tmp_path / "song.flac"
    assert cli("encode", TRACK, "-o", codes, "--model", tiny_run).exit_code == 0
    assert cli("decode", codes, "-o", wave, "--model", tiny_run).exit_code == 0
    assert soundfile.info(wave).frames == Codes.load(codes).n_samples
    assert cli("decode", codes, "-o", tmp_path / "top.wav", "--levels", 1, "--model", tiny_run).exit_code == 0
    for place, key in (
        (TRACK, "audio"),
        (codes, "codes"),
        (tiny_run, "run"),
        (tiny_run / "tokenizer", "model"),
        (wave, "audio"),
    ):
        result = cli("info", place)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)[key] == str(place)
    assert json.loads(cli("info", codes).output)["source_sha256"]
    (tmp_path / "test-set").mkdir()
    soundfile.write(tmp_path / "test-set" / "a.wav", tones(2, 8000, seed=9), 8000)
    result = cli("eval", tiny_run, tmp_path / "test-set", "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert "low cqt distance" in result.output
    assert [row["levels"] for row in json.loads((tmp_path / "report.json").read_text())["tracks"]] == [1, 2, 3]
    assert cli("eval", tiny_run).exit_code == 0  # the held-out track of the run


def test_sample_writes_exact_lengths_and_is_reproducible(tiny_run: Path, tmp_path: Path) -> None:
    result = cli(
        "sample",
        "--model",
        tiny_run,
        "--seconds",
        1.5,
        "--seed",
        3,
        "--num",
        2,
        "--out",
        tmp_path / "a.wav",
        "--top-p",
        "0.9,1,1",
    )
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "a-0.wav").frames == soundfile.info(tmp_path / "a-1.wav").frames == 12000
    cli(
        "sample", "--model", tiny_run, "--seconds", 1.5, "--seed", 3, "--out", tmp_path / "b.flac", "--top-p", "0.9,1,1"
    )
    a, b = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a-0.wav", "b.flac"))
    assert np.array_equal(a, b)
    soundfile.write(tmp_path / "clip.wav", tones(1, 22050), 22050)
    options = ("--seconds", 2, "--prompt", tmp_path / "clip.wav", "--label", "genre=folk", "--temperature", "0.9")
    result = cli("sample", "--model", tiny_run, *options, "--seed", 1, "--out", tmp_path / "folder")
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "folder" / "music-1.wav").frames == 16000


@pytest.mark.parametrize(
    ("seconds", "word"), [("0", "above 0"), ("-1", "above 0"), ("nan", "above 0"), ("much", "valid float")]
)
def test_wrong_lengths(tiny_run: Path, seconds: str, word: str) -> None:
    assert_one_line_error(cli("sample", "--model", tiny_run, "--seconds", seconds), word)


@pytest.mark.parametrize("kind", ["text", "empty", "nan", "truncated flac", "noise bytes", "truncated mp3"])
def test_bad_audio(tiny_run: Path, tmp_path: Path, kind: str) -> None:
    path = bad_file(tmp_path, kind)
    assert_one_line_error(cli("encode", path, "-o", tmp_path / "x.codes", "--model", tiny_run), path.name)
    assert not (tmp_path / "x.codes").exists()


def test_one_sample_and_silence_are_encoded(tiny_run: Path, tmp_path: Path) -> None:
    for name, samples in (("one.wav", np.ones(1)), ("silence.wav", np.zeros(9000))):
        soundfile.write(tmp_path / name, samples, 8000)
        assert cli("encode", tmp_path / name, "-o", tmp_path / "x.codes", "--model", tiny_run).exit_code == 0
        assert cli("decode", tmp_path / "x.codes", "-o", tmp_path / "x.wav", "--model", tiny_run).exit_code == 0
        assert soundfile.info(tmp_path / "x.wav").frames == len(samples)


def test_wrong_codes_models_and_paths(tiny_run: Path, tmp_path: Path) -> None:
    codes = tmp_path / "x.codes"
    assert cli("encode", TRACK, "-o", codes, "--model", tiny_run).exit_code == 0
    other = Codes.load(codes)
    other.tokenizer_hash = "0" * 64
    other.save(tmp_path / "other.codes")
    out = tmp_path / "x.wav"
    assert_one_line_error(cli("decode", tmp_path / "other.codes", "-o", out, "--model", tiny_run), "another", "--model")
    assert_one_line_error(
        cli("sample", "--model", tiny_run, "--prompt", tmp_path / "other.codes", "--out", out), "another"
    )
    (tmp_path / "cut.codes").write_bytes(codes.read_bytes()[:200])
    assert_one_line_error(cli("decode", tmp_path / "cut.codes", "-o", out, "--model", tiny_run), "damaged")
    assert_one_line_error(cli("info", tmp_path / "cut.codes"), "cut.codes")
    assert_one_line_error(cli("decode", TRACK, "-o", out, "--model", tiny_run), "not a codes file")
    assert_one_line_error(cli("decode", codes, "-o", tmp_path / "x.aac", "--model", tiny_run), "ends in .wav, .flac")
    assert_one_line_error(
        cli("decode", codes, "-o", out, "--model", tiny_run, "--levels", 9), "expected 1 to 3, found 9"
    )
    assert_one_line_error(cli("encode", tmp_path / "none.wav", "-o", codes, "--model", tiny_run), "no such file")
    assert_one_line_error(cli("sample", "--model", tmp_path / "none"), "no such model")
    assert_one_line_error(cli("info", tmp_path / "none"), "no such file or folder")
    assert_one_line_error(cli("info", tmp_path), "neither recipe.yaml nor config.json")
    assert_one_line_error(cli("eval", tiny_run / "tokenizer"), "no held-out tracks")
    (tmp_path / "file").write_text("")
    assert_one_line_error(
        cli("sample", "--model", tiny_run, "--out", tmp_path / "file" / "x.wav"), "cannot write there"
    )
    assert_one_line_error(cli("sample", "--model", tiny_run, "--label", "folk", "--out", out), "NAME=VALUE")
    assert_one_line_error(
        cli("sample", "--model", tiny_run, "--top-k", "a", "--out", out), "one number or one per level"
    )


def test_wrong_recipes_and_data(tiny_recipe: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert_one_line_error(cli("train", "quickstrat", *out), "no such recipe", "quickstart")
    assert_one_line_error(cli("train", tiny_recipe, *out, "--set", "tokeniser.x=1"), "did you mean 'tokenizer'")
    assert_one_line_error(cli("train", tiny_recipe, *out, "--data", tmp_path / "none"), "no such folder", "--data")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(
        cli("train", tiny_recipe, "--out", tmp_path / "run2", "--data", tmp_path / "empty"), "no audio found"
    )
    assert not (tmp_path / "run" / "recipe.yaml").exists()  # with wrong data, no run folder is made
    assert_one_line_error(
        cli("train", tiny_recipe, *out, "--stage", "prior"), "'tokenizer', 'decoder', 'codes', 'priors'"
    )
    assert_one_line_error(cli("train", tiny_recipe, *out, "--nonsense"), "--nonsense")


def test_train_uses_the_good_files_among_bad_ones(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(2):
        soundfile.write(folder / f"good-{i}.wav", tones(2, 8000, seed=i), 8000)
    for kind in ("text", "truncated flac", "truncated mp3"):
        bad_file(folder, kind)
    result = cli("train", tiny_recipe, "--data", folder, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "3 files set aside" in result.output
    quarantine = (tmp_path / "run" / "data" / "quarantine.jsonl").read_text()
    assert all(name in quarantine for name in ("bad.wav", "bad.flac", "bad.mp3"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tiny_run: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_one_line_error(cli("sample", "--model", tiny_run, "--out", tmp_path / "x.wav"), "cannot write there")


SMALL = (
    "tokenizer.training.steps=3", "tokenizer.training.batch_size=2", "tokenizer.training.evaluate_steps=3",
    "tokenizer.training.evaluate_batches=1", "tokenizer.crop_seconds=0.25", "tokenizer.model.dim=16", "tokenizer.vq_start_step=1",
    "tokenizer.losses.mel_windows=[512, 1024]", "samples.seconds=0.3", "samples.n=1", "data.workers=0", "codes.shifts=1",
    "codes.only=[]", "tokenizer.only=[]", "precision=fp32",
)  # fmt: skip


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "base"], ids=lambda p: p.stem)
def test_every_recipe_runs_a_few_steps_at_reduced_size(path: Path, tmp_path: Path, music: Path) -> None:
    from audiovq.recipe import load_recipe

    recipe = load_recipe(str(path), data=str(music))
    small: list[str] = list(SMALL)
    if recipe.tokenizer.from_pretrained is None:
        width = "base_dim" if recipe.tokenizer.model.decoder.kind == "conv" else "dim"
        small.append(f"tokenizer.model.decoder.{width}=16")
    else:  # the size is that of the pretrained model
        small = [override for override in small if override.startswith(("samples", "data", "codes", "precision"))]
    if recipe.tokenizer.model.quantizer.kind == "gumbel":
        small.append("tokenizer.model.quantizer.temperature_steps=2")
    if recipe.tokenizer.sound_start_step:
        small.append("tokenizer.sound_start_step=1")
    if recipe.tokenizer.losses.waveform_warmup_steps:
        small.append("tokenizer.losses.waveform_warmup_steps=1")
    for i, prior in enumerate(recipe.priors):
        heads = prior.model.transformer.n_heads
        small += [] if prior.from_pretrained else [
            f"priors.{i}.model.transformer.dim={max(8, 4 * heads)}", f"priors.{i}.model.transformer.n_layers=1",
            f"priors.{i}.model.transformer.context=32", f"priors.{i}.model.transformer.attention_window=16",
        ]  # fmt: skip
        small += [
            f"priors.{i}.training.steps=2", f"priors.{i}.training.batch_size=2", f"priors.{i}.training.evaluate_steps=2",
            f"priors.{i}.training.evaluate_batches=1",
        ]  # fmt: skip
    if recipe.decoder_tuning:
        small += [
            "decoder_tuning.adversarial.discriminators=[{kind: multi_period, dims: [4]}, {kind: multi_resolution, dim: 4}]",
            "decoder_tuning.training={steps: 2, batch_size: 2, discriminator_steps: 1}",
        ]
    options = [part for override in small for part in ("--set", override)]
    result = cli("train", path, "--data", music, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    sampled = cli("sample", "--model", tmp_path / "run", "--seconds", 0.25, "--seed", 0, "--out", tmp_path / "x.wav")
    if not recipe.priors:
        assert (
            cli("train", path, "--data", music, "--out", tmp_path / "run", *options).output.count("nothing to do") == 1
        )
        assert_one_line_error(sampled, "no trained prior there")
        codes = tmp_path / "x.codes"
        assert cli("encode", next(music.rglob("*.wav")), "-o", codes, "--model", tmp_path / "run").exit_code == 0
        assert cli("decode", codes, "-o", tmp_path / "x.wav", "--model", tmp_path / "run").exit_code == 0
        return
    assert sampled.exit_code == 0, sampled.output
    written = soundfile.info(tmp_path / "x.wav")
    assert written.frames == round(0.25 * written.samplerate)
    assert recipe.tokenizer.from_pretrained or written.samplerate == recipe.tokenizer.model.sample_rate


@pytest.mark.parametrize(
    ("broken", "words"), [("import ctypes; ctypes.CDLL('{}/libtorchaudio.so')", "libtorchaudio.so"), ("import missing_part", "missing_part")]
)  # fmt: skip
def test_a_package_that_does_not_load(tmp_path: Path, broken: str, words: str) -> None:
    """As a torchaudio for CUDA beside a torch for the CPU."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(broken.format(tmp_path))
    (tmp_path / "libtorchaudio.so").write_text("no library")
    command = [sys.executable, "-m", "audiovq", "encode", str(TRACK), "-o", str(tmp_path / "x.codes")]
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr
    assert "`audiovq doctor` finds" in result.stderr
    if words == "libtorchaudio.so":
        code = "from audiovq.pipeline.doctor import check_packages; print(*[f.line for f in check_packages()])"
        command = [sys.executable, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
        assert "torchaudio   does not load beside torch" in found.stdout, found
        assert "both from the same index" in found.stdout


def test_a_log_gets_plain_lines(tmp_path: Path) -> None:
    code = (
        "import time, audiovq.utils.progress as t\nt.LOG_SECONDS = 0.01\n"
        "with t.ProgressBar('work', 3) as bar:\n"
        "    for i in range(3): time.sleep(0.02); bar.advance(1, f'note {i}')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stderr.splitlines()[0].startswith("work: 1/3, 0 s left note 0")
    assert "\x1b" not in result.stderr


@pytest.mark.slow
def test_help_is_quick() -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "audiovq", "--help"], capture_output=True, check=True, cwd=ROOT)
    assert time.monotonic() - began < 2  # a limit for any machine; measurements are in benchmarks/


def test_messages_say_what_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(cli("report"), "there is no run in runs/", "audiovq report DIR")
    result = cli("info", "default")
    assert result.exit_code == 0, result.output
    assert_one_line_error(cli("sample", "--model", "runs/mine"), "runs/mine: no such model")
    error = soundfile.LibsndfileError(2, "Error opening 'a.wav': ")
    with pytest.raises(ValueError, match="such as a full disk"), writing(tmp_path / "a.wav", type(error)):
        raise error
