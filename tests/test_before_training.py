"""`audiovq train` without --data chooses its music, and prints the hours of a long training before it begins."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from click.testing import Result
from conftest import ROOT, TINY, assert_one_line_error, cli, tones

from audiovq.pipeline.before_training import find_music, with_music
from audiovq.planning.estimate import STAGES, make_plan
from audiovq.recipe import load_recipe, load_saved_recipe
from audiovq.utils.progress import listed


def write_music(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", tones(1.5, 8000, seed=i), 8000)
    return folder


def test_music_comes_from_here_then_the_environment_then_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUDIOVQ_MUSIC", raising=False)
    assert find_music("music") == ROOT / "samples" / "recordings"
    elsewhere = write_music(tmp_path / "elsewhere")
    monkeypatch.setenv("AUDIOVQ_MUSIC", str(elsewhere))
    assert find_music("music") == elsewhere
    (tmp_path / "music").mkdir()
    assert find_music("music") == elsewhere  # an empty folder has no music
    (tmp_path / "music").rmdir()
    write_music(tmp_path / "music")
    assert find_music("music") == Path("music")
    monkeypatch.setenv("AUDIOVQ_MUSIC", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="expected a folder of music, found no folder"):
        find_music("music")


def test_a_resumed_run_uses_the_same_music(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    music = write_music(tmp_path / "music")
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder="x").replace("folder: x, ", ""))
    train = ("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--stage", "tokenizer")
    result = cli(*train)
    assert result.exit_code == 0, result.output
    assert "no --data: the music is music" in result.output
    assert "no --data: the music is music" in cli("plan", tmp_path / "tiny.yaml").output  # plans for the same music
    assert load_saved_recipe(tmp_path / "run" / "recipe.yaml").data.folder == str(music)
    saved = load_saved_recipe(tmp_path / "run" / "recipe.yaml")
    for place in ("s3://bucket/music", "datasets://me/music?split=train"):  # a resumed run keeps its source as it is
        data = saved.data.model_copy(update={"folder": place})
        (tmp_path / "far").mkdir(exist_ok=True)
        (tmp_path / "far" / "recipe.yaml").write_text(saved.model_copy(update={"data": data}).to_yaml())
        recipe = load_recipe(str(tmp_path / "tiny.yaml"))
        assert with_music(recipe, tmp_path / "far").data.folder == place
    shutil.move(music, tmp_path / "moved")
    again = cli(*train)  # a finished run needs no music
    assert again.exit_code == 0, again.output
    other = cli("train", tmp_path / "tiny.yaml", "--out", tmp_path / "other", "--data", tmp_path / "nothing")
    assert_one_line_error(other, "nothing")


def test_the_command_of_the_readme_prints_the_hours_begins_and_stops(tmp_path: Path) -> None:
    """`audiovq train recipes/music.yaml` in a clone, with a smaller batch."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    environment = {k: v for k, v in os.environ.items() if k != "AUDIOVQ_MUSIC"}
    command = [sys.executable, "-m", "audiovq", "train", "recipes/music.yaml", "--set", "data.workers=0"]
    command += ["--set", "tokenizer.training.batch_size=1"]  # a step of 64 crops takes a minute on 2 cores
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    errors = ""
    deadline = time.monotonic() + 60
    while "training and" not in errors and time.monotonic() < deadline:
        errors += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    errors += process.communicate(timeout=120)[1]
    assert process.returncode == 130, errors
    assert f"no --data: the music is {ROOT / 'samples' / 'recordings'}" in errors
    assert "music takes roughly" in errors
    assert "audiovq train recipes/finetune.yaml --data" in errors
    assert "the same command resumes" in errors
    assert (tmp_path / "runs" / "music" / "recipe.yaml").is_file()


def test_a_run_goes_on_with_a_renamed_recipe_and_moved_music(tmp_path: Path) -> None:
    music = write_music(tmp_path / "music")
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=music))

    def train(recipe: str, stage: str, *more: object) -> Result:
        return cli("train", tmp_path / recipe, "--out", tmp_path / "run", "--stage", stage, *more)

    assert train("tiny.yaml", "tokenizer").exit_code == 0
    shutil.move(music, tmp_path / "moved")
    shutil.copy(tmp_path / "tiny.yaml", tmp_path / "copy.yaml")
    assert_one_line_error(train("copy.yaml", "codes"), "3 of the 3 tracks", "missing", "--data")
    other = write_music(tmp_path / "other")
    soundfile.write(other / "2.wav", tones(1.5, 8000, seed=9), 8000)
    assert_one_line_error(
        train("tiny.yaml", "codes", "--data", other),
        "began with other music",
        "2.wav",
        f"leave --data out to go on with {music}",
    )
    moved = train("copy.yaml", "codes", "--data", tmp_path / "moved")
    assert moved.exit_code == 0, moved.output
    saved = load_saved_recipe(tmp_path / "run" / "recipe.yaml")
    assert (saved.name, saved.data.folder) == ("copy", str(tmp_path / "moved"))
    shutil.rmtree(tmp_path / "moved")  # the priors need only the codes
    assert_one_line_error(train("tiny.yaml", "priors", "--data", tmp_path / "typing-error"), "no such folder", "--data")
    priors = train("tiny.yaml", "priors", "--data", tmp_path / "moved")
    assert priors.exit_code == 0, priors.output


def test_a_deleted_track_and_another_recipe_name_the_option(tmp_path: Path) -> None:
    music = write_music(tmp_path / "music")
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=music))
    train = ("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    assert cli(*train, "--stage", "tokenizer").exit_code == 0
    other = cli(*train, "--set", "tokenizer.crop_seconds=0.3")
    assert_one_line_error(other, "--set tokenizer.crop_seconds=0.25", "another --out")
    (music / "1.wav").unlink()
    result = cli(*train, "--stage", "codes")
    assert_one_line_error(result, "1 of the 3 tracks", "the first: 1.wav", "--data")


@pytest.mark.parametrize(("settings", "words"), [
    (("tokenizer.losses={mel: 1, mel_windows: [2]}",), "mel_windows.0: expected greater than or equal to 8, found 2"),
    (("tokenizer.losses={mel: 1, mel_windows: []}",), "mel_windows"),
    (("tokenizer.model.decoder.overlap=64",), "tokenizer.crop_seconds: expected at least 4096 samples"),
    (("tokenizer.model.topology=independent", "tokenizer.model.decoder.overlap=16"), "expected at least 4096 samples"),
    (("tokenizer.losses={mel: 1, mel_windows: [4096]}",), "tokenizer.crop_seconds: expected at least 4096 samples"),
    (("decoder_tuning={training: {steps: 2}, adversarial: {discriminators: [{kind: mel, windows: [4]}]}}",), "windows.0"),
    (("priors.0.model.transformer={dim: 65536, n_layers: 1000, n_heads: 2}",), "prior-0: "),
    (("tokenizer.model.dim=65536", "tokenizer.model.encoder.n_blocks=250"), "tokenizer: "),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_the_first_stage(
    tiny_recipe: Path, tmp_path: Path, settings: tuple[str, ...], words: str
) -> None:
    began = time.monotonic()
    result = cli("train", tiny_recipe, "--out", tmp_path / "run", *(word for s in settings for word in ("--set", s)))
    assert_one_line_error(result, words)
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert time.monotonic() - began < 20


def test_batches_of_all_stages_are_compared_with_the_processes(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides=("priors.0.training.batch_size=1",))
    with pytest.raises(ValueError, match=r"prior-0: .*batch_size: expected at least one example for each of the 2"):
        make_plan(recipe, 60, n_devices=2)


def test_only_stages_that_are_trained_limit_the_processes(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe("finetune")
    assert recipe.batch_sizes(STAGES) == {"priors.0.training.batch_size": 4}
    assert load_recipe("finetune", overrides=("priors.0.training.batch_size=16",)).batch_sizes(("priors",)) == {
        "priors.0.training.batch_size": 16
    }
    tiny = load_recipe(str(tiny_recipe))
    assert set(tiny.batch_sizes(STAGES)) == {"tokenizer.training.batch_size", "priors.0.training.batch_size"}
    assert tiny.batch_sizes(("codes",)) == {}
    words = (sys.executable, "-m", "audiovq", "train", tiny_recipe, "--processes", "5", "--out", tmp_path / "run")
    command = [*map(str, words), "--stage", "tokenizer"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    assert "using 2 of 5 processes: tokenizer.training.batch_size is 2" in result.stderr


def test_one_track_is_not_called_held_out_and_missing_labels_are_named(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "only.wav", tones(3, 8000), 8000)
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path / "music"))
    result = cli("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "held out:" not in result.output
    assert "on held-out" not in result.output
    assert "tokenizer: step 4, training tracks (none is held out): loss" in result.output
    assert "bits per code on the training tracks (none is held out)" in result.output
    assert "labels: no training track has a genre" in result.output


def test_lists_of_values_are_short_and_show_the_likely_ones() -> None:
    values = [f"artist {i}" for i in range(1500)]
    text = listed(values, "artst 777")
    assert text.startswith("artist 777, ")
    assert text.endswith(" and 1,490 more")
    assert len(listed(["x" * 10**6], "y")) < 100
    assert (listed([]), listed(["a", "b"])) == ("none", "a, b")


def test_a_mistyped_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path / "typing-error"))
    assert_one_line_error(
        cli("train", tmp_path / "tiny.yaml", "--out", tmp_path / "run"), "typing-error: no such folder"
    )
    assert not (tmp_path / "run").exists()
