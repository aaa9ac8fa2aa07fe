"""All commands: options anywhere, only JSON on standard output, errors of one line, completion, progress; the doctor."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from click.shell_completion import BashComplete, CompletionItem
from conftest import ROOT, assert_one_line_error, cli, tones
from rich.console import Console

from audiovq.cli import main
from audiovq.cli.options import arrange
from audiovq.pipeline import doctor
from audiovq.utils import progress


def test_json_and_debug_can_stand_anywhere() -> None:
    assert arrange(["info", "--json", "x.wav"]) == ["info", "--json=-", "x.wav"]
    assert arrange(["info", "x.wav", "--json"]) == ["info", "x.wav", "--json=-"]
    assert arrange(["eval", "run", "--json", "-"]) == ["eval", "run", "--json", "-"]
    assert arrange(["eval", "--json", "r.json", "run"]) == ["eval", "--json", "r.json", "run"]
    assert arrange(["info", "x", "--debug"]) == ["--debug", "info", "x"]
    assert arrange(["info", "--", "--debug", "--json"]) == ["info", "--", "--debug", "--json"]


def test_old_options_of_sample(tiny_run: Path, tmp_path: Path) -> None:
    new = ("--num", 2, "--index", 3)
    old = ("--n", 2, "--item=3")
    for name, words in (("new", new), ("old", old)):
        options = ("--model", tiny_run, "--seconds", 0.5, "--seed", 1, "--out", tmp_path / name / "x.wav")
        result = cli("sample", *options, *words)
        assert result.exit_code == 0, result.output
        notices = [line for line in result.output.splitlines() if "is now called" in line]
        assert len(notices) == (2 if name == "old" else 0)
    files = [sorted(path.name for path in (tmp_path / name).glob("*.wav")) for name in ("new", "old")]
    assert files == [["x-3.wav", "x-4.wav"]] * 2
    for file in files[0]:
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "old" / file).read_bytes()
    assert_one_line_error(cli("sample", "--codes", "piece.codes"), "--codes no longer exists; use --edit")
    for words in (("--segments", 2), ("--parallel=2",)):
        assert_one_line_error(cli("sample", *words), "no longer exists; use the command without it")


def test_an_old_precision_of_sample(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("int8", "auto"):
        options = ("--model", tiny_run, "--seconds", 0.5, "--seed", 1, "--out", tmp_path / f"{name}.wav")
        result = cli("sample", *options, "--precision", name)
        assert result.exit_code == 0, result.output
        assert ("int8 no longer exists on this device; auto is used instead" in result.output) == (name == "int8")
    one, other = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("int8", "auto"))
    assert np.array_equal(one, other)


def test_only_json_on_standard_output(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tones(1, 8000), 8000)
    codes = tmp_path / "a.codes"
    commands = [
        ("encode", folder / "a.wav", "-o", codes, "--model", tiny_run),
        ("encode", folder, "-o", tmp_path / "codes", "--model", tiny_run),
        ("decode", codes, "-o", tmp_path / "b.wav", "--model", tiny_run),
        ("info", codes),
        ("eval", tiny_run, folder),
        ("copies", codes, tiny_run),
        ("recipes",),
        ("sample", "--model", tiny_run, "--seconds", 0.5, "--seed", 1, "--out", tmp_path / "c.wav"),
    ]
    found = {}
    for command in commands:
        result = cli(*command[:1], "--json", *command[1:])
        assert result.exit_code == 0, result.output
        found[command[:2]] = json.loads(result.stdout)
    assert found["encode", folder / "a.wav"]["seconds"] == 1
    assert [file["file"] for file in found["encode", folder]["files"]] == [str(tmp_path / "codes" / "a.codes")]
    assert found["decode", codes]["samples"] == 8000
    assert found["info", codes]["codes"] == str(codes)
    assert "quickstart" in [recipe["name"] for recipe in found[("recipes",)]]
    assert found["sample", "--model"]["pieces"][0]["file"] == str(tmp_path / "c.wav")
    assert "report" not in found["sample", "--model"]
    result = cli("recipes", "--json", tmp_path / "r.json")
    assert result.stdout.splitlines()[0].startswith("base")
    assert json.loads((tmp_path / "r.json").read_text()) == found[("recipes",)]
    stream = ("--json", "--stream", "-", "--seconds", 1)
    assert_one_line_error(cli("sample", "--model", tiny_run, *stream), "standard output")


def test_a_folder_with_a_broken_file_gives_json_and_exit_code_2(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "bad.wav").write_text("no sound")
    soundfile.write(tmp_path / "music" / "good.wav", tones(1, 8000), 8000)
    result = cli("encode", tmp_path / "music", "-o", tmp_path / "codes", "--model", tiny_run, "--json")
    assert result.exit_code == 2
    facts = json.loads(result.stdout)
    assert (len(facts["files"]), len(facts["set_aside"])) == (1, 1)
    assert "bad.wav" in facts["set_aside"][0]


def test_an_internal_error_is_one_line_without_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("audiovq.report.describe.describe", fail)
    result = cli("info", "x")
    assert result.exit_code == 1
    assert result.output.startswith("audiovq: internal error: RuntimeError: two lines; please report it")
    assert "--debug" in result.output
    assert len(result.output.splitlines()) == 1
    for arguments in (("--debug", "info", "x"), ("info", "x", "--debug")):
        result = cli(*arguments)
        assert result.exit_code == 1
    assert_one_line_error(cli("info"), "Missing argument")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m audiovq recipes | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr == ""


def completions(words: list[str], incomplete: str) -> list[tuple[str, str]]:
    found: list[CompletionItem] = BashComplete(main, {}, "audiovq", "_AUDIOVQ_COMPLETE").get_completions(
        words, incomplete
    )
    return [(item.type, item.value) for item in found]


def test_completion_of_commands_recipes_stages_and_paths() -> None:
    assert completions([], "tr") == [("plain", "train")]
    assert completions(["train"], "qu") == [("file", "qu"), ("plain", "quickstart")]
    names = [value for kind, value in completions(["train"], "") if kind == "plain"]
    assert names == sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml") if p.stem != "base")
    assert ("plain", "priors") in completions(["train", "x", "--stage"], "p")
    assert completions(["sample", "--model"], "runs/") == [("dir", "runs/")]
    assert completions(["encode"], "song") == [("file", "song")]
    assert ("plain", "--guidance") in completions(["sample"], "--gui")


def test_completion_by_the_shell(tmp_path: Path) -> None:
    program = tmp_path / "audiovq"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.argv[0] = \'audiovq\'; import audiovq.cli as c; c.main()" "$@"\n'
    )
    program.chmod(0o755)
    lines = 'eval "$(_AUDIOVQ_COMPLETE=bash_source audiovq)"; COMP_WORDS=(audiovq train quick); COMP_CWORD=2; _audiovq_completion audiovq; echo "<${COMPREPLY[@]}>"'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "<quickstart>" in result.stdout, (result.stdout, result.stderr)
    assert_one_line_error(cli("completion", "bash"), "no longer exists", "_AUDIOVQ_COMPLETE=bash_source audiovq")


def test_the_doctor_finds_that_audiovq_works(tmp_path: Path) -> None:
    result = cli("doctor", "--json")
    report = json.loads(result.stdout)
    broken = [finding for finding in report["findings"] if finding["status"] == doctor.BROKEN]
    assert (result.exit_code, report["works"]) == ((1, False) if broken else (0, True))
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["self-test"]["status"] == doctor.OK, found["self-test"]
    assert found["audio files"]["status"] == doctor.OK
    assert {"CPU", "disk here", "ffmpeg", "packages"} <= set(found)


def test_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise ImportError("libtorch.so: not there")

    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["torch>=99", "no-such-package>=1", "x; extra == 't'"]
    )
    monkeypatch.setattr(doctor, "CHECKS", {"packages": doctor.check_packages, "devices": crash})
    findings = {finding.name: finding for finding in doctor.examine()}
    assert "needs >=99" in findings["torch"].found
    assert findings["no-such-package"].line.startswith("BAD ")
    assert "pip install 'no-such-package>=1'" in findings["no-such-package"].line
    assert "x" not in findings
    assert (findings["devices"].status, findings["devices"].found) == (
        doctor.BROKEN,
        "ImportError: libtorch.so: not there",
    )
    result = cli("doctor")
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_the_doctor_checks_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((50e9, doctor.OK), (1e9, doctor.WARNING), (1e6, doctor.BROKEN)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        assert {finding.status for finding in doctor.check_disk()} == {status}


def test_a_terminal_shows_the_rate_and_the_note_on_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=80, color_system=None))
    with progress.ProgressBar("tokenizer", 10, start=4, unit="audio-s", per_step=800.0) as bar:
        bar.began -= 200.0
        bar.advance(3, "loss 1.5 " * 30)
        assert bar.steps_per_second == pytest.approx(0.015, rel=0.01)
        assert float(bar.rate.removesuffix(" audio-s/s")) == pytest.approx(12, abs=0.15)
    lines = screen.getvalue().splitlines()
    assert any("tokenizer" in line and "7/10" in line and " audio-s/s" in line for line in lines)
    assert any(line.strip().startswith("loss 1.5") and line.rstrip().endswith("…") for line in lines)


def test_a_log_has_the_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.ProgressBar("sample", 4, unit="audio-s", per_step=0.5) as bar:
        bar.began -= 1.0
        bar.advance(2, "level 0")
    assert lines[0] == "sample: 2/4, 1 s left, 1.0 audio-s/s level 0"
