"""The command itself on several processes: our launcher, torchrun on two nodes, srun, `accelerate launch`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, cli

from audiovq.data.shards import Shards
from audiovq.distributed.launch import culprit, record_collectives
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.training.checkpoints import newest

TOKENIZER = ("steps=40", "batch_size=3", "evaluate_steps=20", "learning_rate=1e-4", "checkpoint_seconds=1e6")
OPTIONS = [*(word for value in TOKENIZER for word in ("--set", f"tokenizer.training.{value}")),
           "--set", "priors.0.training.sharded=true", "--set", "data.workers=1"]  # fmt: skip
LAUNCHERS = [sys.executable, "-m", "torch.distributed.run"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "", **more}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(run: Path) -> dict[int, float]:
    lines = (run / "training" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


@pytest.fixture(scope="module")
def stopped(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, float]:
    """A run on two processes whose launcher got a SIGTERM; its exit code, errors, and seconds until it ended."""
    run = tmp_path_factory.mktemp("launch") / "run"
    words = ["train", str(tiny_recipe), "--out", str(run), *OPTIONS, "--processes", "2"]
    command = [sys.executable, "-m", "audiovq", *words]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    metrics, deadline = run / "training" / "tokenizer" / "metrics.jsonl", time.monotonic() + 100
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return run, process.returncode, errors, time.monotonic() - began


@pytest.mark.slow
def test_sigterm_to_the_launcher_leaves_a_checkpoint(stopped: tuple[Path, int, str, float]) -> None:
    run, code, errors, seconds = stopped
    assert code == 128 + signal.SIGTERM, errors
    assert seconds < 30
    assert len(re.findall(r"stopped by SIGTERM after step \d+ of tokenizer; give the same command again", errors)) == 1
    assert "Traceback" not in errors
    saved = newest(run / "training" / "tokenizer" / "checkpoints")
    assert saved is not None
    assert 3 < int(saved.name.removeprefix("step-")) < 40
    shares = sorted((run / "data").glob("scan_cache-*.jsonl"))  # each process has scanned its share
    assert [path.read_text().count("\n") for path in shares] == [2, 2]


@pytest.mark.slow
def test_two_nodes_go_on_and_end_near_one_process(
    stopped: tuple[Path, int, str, float], tiny_recipe: Path, tmp_path: Path
) -> None:
    """torchrun's line from the README, on two "nodes" of this machine, all stages, with a sharded prior."""
    run, port = stopped[0], free_port()
    node = [*LAUNCHERS, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "music", "-m", "audiovq", "train", str(tiny_recipe), "--out", str(run),
            *OPTIONS]  # fmt: skip
    nodes = [subprocess.Popen(node, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], errors
    assert sum("continues from step" in text for text in errors) == 1  # only rank 0 prints
    alone = cli("train", tiny_recipe, "--out", tmp_path / "one", *OPTIONS, "--stage", "tokenizer", "--stage", "codes")
    assert alone.exit_code == 0, alone.output
    two, one = losses(run), losses(tmp_path / "one")
    assert list(two) == list(one)
    assert [two[step] for step in two] == pytest.approx(list(one.values()), rel=0.02)
    assert list(two.values())[:10] == pytest.approx(list(one.values())[:10], rel=1e-4)
    entries = [[t.path for t in Shards(folder / "codes").index.tracks] for folder in (run, tmp_path / "one")]
    assert entries[0] == entries[1]  # the split over processes changes nothing
    shards = Shards(run / "codes")
    assert shards.index.tokenizer_hash == tokenizer_hash(checkpoint.load_tokenizer(run / "tokenizer"))
    assert json.loads((run / "report.json").read_text())["levels"][2]["bits_per_code"] > 0
    assert checkpoint.load_prior(run / "prior-2")[0].config.transformer.dim == 16


@pytest.mark.slow
def test_srun_and_accelerate_launch(tiny_recipe: Path, tmp_path: Path) -> None:
    """The same command; srun is imitated by its environment variables."""
    options = ["--set", "tokenizer.training.batch_size=3", "--stage", "tokenizer", "--out"]
    command = ["-m", "audiovq", "train", str(tiny_recipe), *options]
    step = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, *command, str(tmp_path / "srun")],
            env=environment(**step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in range(2)
    ]
    assert [task.wait(200) for task in tasks] == [0, 0]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                  "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]  # fmt: skip
    subprocess.run([*accelerate, *command, str(tmp_path / "accelerate")], env=environment(), check=True, timeout=200)
    for name in ("srun", "accelerate"):  # each has had two processes
        assert (tmp_path / name / "data" / "scan_cache-1.jsonl").is_file()
    assert losses(tmp_path / "srun") == pytest.approx(losses(tmp_path / "accelerate"), rel=1e-4)  # threads may differ


def test_a_failed_process_is_one_line_of_the_launcher(tmp_path: Path) -> None:
    """A mistake of the user (exit code 2): its message, and the launcher's line without the advice to resume."""
    command = [sys.executable, "-m", "audiovq", "train", "quickstart", "--processes", "2", "--data", str(tmp_path)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert result.returncode == 2, result.stderr
    assert f"audiovq: {tmp_path}: no audio found" in result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch("audiovq: process [01] of 2 failed with exit code 2; its message is above", last)


@pytest.mark.parametrize(("code", "restarts", "again"), [
    (0, 0, False), (2, 0, False), (143, 99, True), (137, 0, True), (137, 4, True), (137, 5, False),
])  # fmt: skip
def test_a_slurm_job_is_requeued_if_that_helps(tmp_path: Path, code: int, restarts: int, again: bool) -> None:
    """The job script with commands of Slurm that only note their words."""
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    job = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}
    words = ["bash", str(ROOT / "recipes" / "train.sbatch"), "music", "--out", "x"]
    found = subprocess.run(words, env={**job, "SLURM_RESTART_COUNT": str(restarts)}, capture_output=True, text=True)
    expected = ["srun --kill-on-bad-exit=1 audiovq train music --out x", *(["scontrol requeue 7"] * again)]
    assert found.stdout.splitlines() == expected
    assert found.returncode == code


def test_nccl_records_what_was_exchanged_unless_the_user_says_otherwise() -> None:
    mine: dict[str, str] = {}
    record_collectives(Path("/run"), mine)
    assert mine == {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": "/run/nccl-rank-",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    users = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_FR_DUMP_TEMP_FILE": "/x", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    record_collectives(Path("/run"), both := dict(users))
    assert both == {**users, "TORCH_FR_BUFFER_SIZE": "7"}


def test_the_process_that_failed_is_named_and_not_those_that_the_launcher_stopped() -> None:
    term, interrupt = signal.SIGTERM, signal.SIGINT
    assert culprit({0: 2, 1: 128 + term, 2: -term}) == 0  # a hung one was resumed, and stopped as it was told
    assert culprit({0: 128 + term, 1: 2, 2: -signal.SIGKILL}) == 2
    assert culprit({0: -term, 1: 128 + interrupt}) == 1  # all were told to stop
    assert culprit({0: -term, 1: 1}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "n"), [(signal.SIGKILL, 2), (signal.SIGSTOP, 3)])
def test_a_killed_and_a_hung_process_are_named_within_the_limit(
    tiny_recipe: Path, tmp_path: Path, number: signal.Signals, n: int
) -> None:
    """SIGKILL is what the kernel sends if memory runs out; SIGSTOP hangs a process."""
    words = ["train", str(tiny_recipe), "--out", str(tmp_path / "run"), "--processes", str(n), "--stage", "tokenizer"]
    for value in ("steps=100000", "batch_size=3", "evaluate_steps=100000"):
        words += ["--set", f"tokenizer.training.{value}"]
    limits = environment(AUDIOVQ_TIMEOUT_MINUTES="0.1")
    process = subprocess.Popen([sys.executable, "-m", "audiovq", *words], env=limits, stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "run" / "training" / "tokenizer" / "metrics.jsonl", time.monotonic() + 100
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.05)
    ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(process.pid).children()}
    began = time.monotonic()
    ranks[1].send_signal(number)
    assert process.stderr is not None
    errors = ""
    for line in process.stderr:
        errors += line
        if "has not answered" in line:
            ranks[1].send_signal(signal.SIGCONT)  # otherwise the launcher gives it half a minute to end
    process.wait(timeout=60)
    assert process.returncode == 2, errors
    assert time.monotonic() - began < 100
    assert "Traceback" not in errors
    if number == signal.SIGKILL:
        assert "audiovq: process 1 of 2 was ended by SIGKILL, perhaps because of this: memory ran out" in errors
    else:
        assert f"audiovq: process 0: process 1 on {socket.gethostname()} has not answered for 0.1 minutes" in errors
