"""Signals stop work between two items, so that none is lost; launching processes."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, cli

from audiovq.distributed import collectives, launch
from audiovq.sampling.engine import PackedEngine
from audiovq.utils import signals
from audiovq.utils.progress import duration, track
from audiovq.utils.signals import Interrupted, deferred, poll, received


def test_a_signal_stops_between_two_items_and_a_second_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    done: list[int] = []

    def work() -> None:
        with deferred(), deferred():
            poll()
            for item in track(range(5), "work", 5):
                signal.raise_signal(signal.SIGTERM) if item == 2 else None
                signal.raise_signal(signal.SIGTERM) if item == 2 else None  # a launcher passes it on: not a second one
                done.append(item)

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM$"):
        work()
    assert done == [0, 1, 2]
    assert received() is None
    assert signal.getsignal(signal.SIGTERM) is before
    poll()
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)

    def twice() -> None:
        with deferred():
            signal.raise_signal(signal.SIGINT)
            assert received() == signal.SIGINT
            time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_a_lost_connection_after_a_signal_is_the_signal() -> None:
    def lose(after: signal.Signals | None) -> None:
        with deferred():
            signal.raise_signal(after) if after else None
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="closed by peer"):
        lose(None)
    with pytest.raises(Interrupted, match="SIGINT"):
        lose(signal.SIGINT)


def test_other_threads_are_not_affected() -> None:
    finished = []

    def work() -> None:
        with deferred():
            poll()
            finished.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert finished == [True]


@pytest.mark.parametrize(("nodes", "first"), [
    ("localhost", "localhost"), ("a,b", "a"), ("gpu[003-005,9],login", "gpu003"), ("n[7,9-11]-ib", "n7-ib"), ("n12", "n12"),
])  # fmt: skip
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert launch.first_host(nodes) == first


def test_a_task_of_srun_knows_its_place() -> None:
    step = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9",
            "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[1-2]"}  # fmt: skip
    task = dict(step)
    launch.join_slurm_step(task)
    assert {key: task[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "gpu1",
    }  # fmt: skip
    other = {**step, "SLURM_PROCID": "3"}
    launch.join_slurm_step(other)
    assert other["MASTER_PORT"] == task["MASTER_PORT"]
    for alone in (
        {**step, "SLURM_STEP_NUM_TASKS": "1"},
        {**step, "WORLD_SIZE": "4", "RANK": "0"},
    ):  # the latter is torchrun's
        assert launch.join_slurm_step(changed := dict(alone)) is None
        assert changed == alone


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert launch.count(None, None) == 4  # all that are visible
    assert launch.count(2, None) == 2
    assert launch.count(None, 3) == 3
    for gpus, processes, message in ((8, None, "expected at most the 4 GPUs"), (1, 1, "expected only one of them")):
        with pytest.raises(ValueError, match=message):
            launch.count(gpus, processes)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert launch.count(None, None) == launch.count(1, None) == 1


def test_rows_of_the_pool_are_those_of_its_parts() -> None:
    parts = [torch.arange(6.0).reshape(3, 2), torch.arange(10.0, 14.0).reshape(2, 2)]
    pool = collectives.Pool(parts)
    assert int(pool.size) == 5
    index = torch.tensor([4, 0, 2, 3, 4])
    assert torch.equal(pool.rows(index), torch.cat(parts)[index])


def test_killed_sampling_leaves_no_half_file_and_is_made_again(tiny_run: Path, tmp_path: Path) -> None:
    """18 pieces are two groups: the first 16 are written while the others are still to be drawn."""
    options = ["sample", "--model", tiny_run, "--seconds", 0.5, "--seed", 7, "--num", 18, "--save-codes", "--no-report"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli(*options, "--out", whole).exit_code == 0
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert len(expected) == 36
    command = [sys.executable, "-m", "audiovq", *map(str, options), "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while not list(killed.glob("*.wav")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    left = {path.name: path.read_bytes() for path in killed.iterdir() if path.suffix in {".wav", ".codes"}}
    assert 1 <= len(left) < 36
    assert left.items() <= expected.items()
    (killed / f".{hashlib.sha256(b'music-7-17.wav').hexdigest()[:16]}.tmp").mkdir()  # of a kill within a file
    assert cli(*options, "--out", killed).exit_code == 0
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sampling_stops_when_it_is_asked_to(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step, count = PackedEngine.step, []

    def stop(*arguments: object) -> torch.Tensor:
        count.append(1)
        os.kill(os.getpid(), number) if len(count) == 100 else None
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedEngine, "step", stop)
    result = cli("sample", "--model", tiny_run, "--seconds", 2, "--seed", 1, "--out", tmp_path / "x.wav")
    assert result.exit_code == 128 + number
    assert f"audiovq: stopped by {number.name}; give the same command again" in result.output
    assert (len(count), list(tmp_path.iterdir())) == (100, [])


def test_durations_are_in_the_unit_that_people_use() -> None:
    found = [duration(seconds) for seconds in (0, 90.4, 120, 5400, 7200, 172799, 172800, 864000 * 10)]
    assert found == ["0 s", "90 s", "2 min", "90 min", "2 h", "48 h", "2 days", "100 days"]
