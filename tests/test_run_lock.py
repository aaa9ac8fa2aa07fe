"""One writer for each run: two trainings into one folder, killed writers, and writers on other machines."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from audiovq.pipeline import run_lock
from audiovq.pipeline.run_lock import only_writer

HOLD = "import sys, time, pathlib\nfrom audiovq.pipeline import run_lock\nrun_lock.RENEW_SECONDS = 0.5\n" \
       "with run_lock.only_writer(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(float(sys.argv[2]))"  # fmt: skip


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
    duration = run_lock.STALE_SECONDS
    lock.write_text(f"filelock/2\npid=1\nhost=node7\nmode=lease\ntoken=x\nduration={duration!r}\n")
    return lock


def is_mine(lock: Path) -> bool:
    return f"pid={os.getpid()}\n" in lock.read_text()


def test_a_second_training_waits_and_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 1.0)
    process = hold(tmp_path, 60)
    with pytest.raises(ValueError, match=f"process {process.pid} on .* trains this run"), only_writer(tmp_path):
        pass
    assert f"pid={process.pid}\n" in (tmp_path / ".lock").read_text()  # it is still the first one's
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    with only_writer(tmp_path):  # the lock of a killed process is stale at once
        assert is_mine(tmp_path / ".lock")
    assert time.monotonic() - began < 5
    assert not (tmp_path / ".lock").exists()


def test_a_requeued_job_begins_when_the_old_one_has_closed(tmp_path: Path) -> None:
    process = hold(tmp_path, 2)
    with only_writer(tmp_path):
        assert process.wait(30) == 0


def test_the_number_of_a_dead_process_that_another_one_has_now(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        mine = (tmp_path / ".lock").read_text()
    start = re.search(r"start=(\d+)", mine)
    assert start
    (tmp_path / ".lock").write_text(mine.replace(start[0], f"start={int(start[1]) - 1000}"))
    with only_writer(tmp_path):
        pass


OLD = '{"host": "node7", "pid": 1, "started": 0.0, "machine": "other", "token": "x"}'  # as earlier versions wrote it


@pytest.mark.parametrize("content", [None, "", "filelock/2\npid=", OLD])  # complete; killed while it was written; old
def test_a_machine_that_is_gone_loses_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.2)
    lock = elsewhere(tmp_path)
    if content is not None:
        lock.write_text(content)
    os.utime(lock, (4e9, 4e9))  # the other machine's clock is wrong
    with only_writer(tmp_path):
        assert is_mine(lock)


def test_a_machine_that_renews_its_lock_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 2.0)
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 5.0)
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.2)
    lock, ended = elsewhere(tmp_path), threading.Event()
    content = lock.read_text()

    def renew() -> None:
        while not ended.wait(0.2):
            os.utime(lock)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(ValueError, match="process 1 on node7 trains this run"), only_writer(tmp_path):
        pass
    ended.set()
    thread.join()
    assert lock.read_text() == content


def test_a_writer_whose_lock_was_taken_over_ends(tmp_path: Path) -> None:
    process = hold(tmp_path, 60)
    (tmp_path / ".lock").unlink()
    elsewhere(tmp_path)
    assert process.wait(20) == 2


WRITE = """
import json, os, pathlib, signal, sys, time
from audiovq.distributed import collectives, launch
from audiovq.pipeline import run_lock
from audiovq.utils import files
run_lock.RENEW_SECONDS, run = 3.0, pathlib.Path(sys.argv[1])
with launch.processes(), run_lock.only_writer(run):
    files.write_text(run / f"before-{collectives.rank()}", "")
    if sys.argv[2] == "folder":
        with files.atomic_folder(run / "late") as temporary:
            (temporary / "part").write_text("")
            print("ready", flush=True)
            sys.stdin.readline()
    else:
        print("ready", flush=True)
        sys.stdin.readline()
        files.append_jsonl(run / "late", {}) if sys.argv[2] == "line" else files.write_text(run / "late", "")
"""


def writer(run: Path, kind: str, **variables: str) -> subprocess.Popen[str]:
    """A process that holds the run, alone or as one of several ranks, and writes on request."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", WRITE, str(run), kind], text=True, env=environment, **pipes)


def assert_writes_nothing(process: subprocess.Popen[str], run: Path, owner: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    _, errors = process.communicate("now\n", timeout=100)
    assert process.returncode == 2, errors
    assert f"{owner} has taken over this run" in errors
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before
    assert not (run / "late").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "line"])
def test_a_writer_that_lost_its_lock_writes_nothing(tmp_path: Path, kind: str) -> None:
    process = writer(tmp_path, kind)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)  # as a suspended machine
    (tmp_path / ".lock").unlink()
    elsewhere(tmp_path)
    process.send_signal(signal.SIGCONT)
    assert_writes_nothing(process, tmp_path, "process 1 on node7")


def test_a_rank_that_outlives_its_training_writes_nothing(tmp_path: Path) -> None:
    """Rank 0, which has the lock of both, is killed, and another training takes over."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    zero, one = (writer(tmp_path, "file", RANK=str(rank), **place) for rank in range(2))
    for process in (zero, one):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    zero.kill()
    zero.communicate()
    with only_writer(tmp_path):
        assert_writes_nothing(one, tmp_path, f"process {os.getpid()} on {socket.gethostname()}")


@pytest.mark.slow
def test_two_trainings_into_one_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    """The second waits for the first, and each step is logged once."""
    words = [sys.executable, "-m", "audiovq", "train", str(tiny_recipe), "--out", str(tmp_path / "run")]
    # So many steps that the second comes before the first is done, and so few that it need not wait too long.
    words += ["--stage", "tokenizer", "--set", "tokenizer.training.checkpoint_seconds=0"]
    words += ["--set", "tokenizer.training.steps=100", "--set", "tokenizer.training.log_steps=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert {process.returncode for process in both} <= {0, 2}, errors  # 2: the first one is slow
    assert "".join(errors).count("which trains this run") == 1, errors
    lines = (tmp_path / "run" / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == list(range(1, 101))
