"""One writer for each run: two trainings into one folder, killed writers, and writers on other machines."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from audiovq.pipeline import run_lock
from audiovq.pipeline.run_lock import only_writer

HOLD = "import sys, time, pathlib\nfrom audiovq.pipeline.run_lock import only_writer\n" \
       "with only_writer(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(float(sys.argv[2]))"  # fmt: skip


def hold(run: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that trains the run for a while."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(run), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def elsewhere(run: Path) -> Path:
    """The lock of a writer on another machine."""
    lock = run / ".lock"
    lock.write_text(json.dumps({"host": "node7", "pid": 1, "started": 0.0, "machine": "other", "token": "x"}))
    return lock


def test_a_second_training_waits_and_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "CLOSING_SECONDS", 1.0)
    process = hold(tmp_path, 60)
    with pytest.raises(ValueError, match=f"process {process.pid} on .* trains this run"), only_writer(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()  # it is still the first one's
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    with only_writer(tmp_path):  # the lock of a killed process is stale at once
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < 5
    assert not (tmp_path / ".lock").exists()


def test_a_requeued_job_begins_when_the_old_one_has_closed(tmp_path: Path) -> None:
    process = hold(tmp_path, 2)
    with only_writer(tmp_path):
        assert process.wait(1) == 0


def test_the_number_of_a_dead_process_that_another_one_has_now(tmp_path: Path) -> None:
    facts = run_lock._this_process()
    (tmp_path / ".lock").write_text(json.dumps({**facts, "started": facts["started"] - 1000, "token": "old"}))
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize("content", [None, "", "{", "[]"])  # None: complete; others: killed while it was written
def test_a_machine_that_is_gone_loses_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1.0)
    lock = elsewhere(tmp_path)
    os.utime(lock, (4e9, 4e9))  # the other machine's clock is wrong
    if content is not None:
        lock.write_text(content)
    with only_writer(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_machine_that_renews_its_lock_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 2.0)
    monkeypatch.setattr(run_lock, "CLOSING_SECONDS", 3.0)
    lock, ended = elsewhere(tmp_path), threading.Event()
    mine = json.loads(lock.read_text())
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.2)
    thread = threading.Thread(target=run_lock._renew, args=(lock, mine, ended))
    thread.start()
    with pytest.raises(ValueError, match="process 1 on node7 trains this run"), only_writer(tmp_path):
        pass
    ended.set()
    thread.join()
    assert json.loads(lock.read_text()) == mine


def test_a_writer_whose_lock_was_taken_over_ends(tmp_path: Path) -> None:
    process = hold(tmp_path, 60)
    elsewhere(tmp_path)
    assert process.wait(20) == 2


def test_two_trainings_into_one_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    """The second waits for the first, and each step is logged once."""
    words = [sys.executable, "-m", "audiovq", "train", str(tiny_recipe), "--out", str(tmp_path / "run")]
    words += ["--stage", "tokenizer", "--set", "tokenizer.training.checkpoint_seconds=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert {process.returncode for process in both} <= {0, 2}, errors  # 2: the first one is slow
    assert "".join(errors).count("which trains this run") == 1, errors
    lines = (tmp_path / "run" / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == [1, 2, 3, 4]
