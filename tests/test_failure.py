"""Processes and nodes that are killed or hang, on two real nodes: network namespaces with a cable between them, host
names of their own and one disk. torchrun starts the processes again, and the run ends as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
STAGES = ("tokenizer", "prior-0", "prior-1", "prior-2")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = [str(ROOT / "tests" / "dying.py"), "train"]
SETTINGS = [word for key in ("tokenizer", "priors.0") for word in ("--set", f"{key}.training.checkpoint_seconds=0")]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "", "AUDIOVQ_REPORT": "0", "DEATHS": "", **more}  # fmt: skip


class Cluster:
    """Nodes `node1` and `node2` with the addresses 10.87.0.1 and 10.87.0.2."""

    def __init__(self) -> None:
        self.names = [f"audiovq{os.getpid()}-{i}" for i in (1, 2)]
        self.files = [Path("/etc/netns") / name for name in self.names]  # `ip netns exec` puts them over /etc

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def build(self) -> None:
        for name, files in zip(self.names, self.files, strict=True):
            self.ip("netns", "add", name)
            files.mkdir(parents=True)
            (files / "hosts").write_text("127.0.0.1 localhost\n10.87.0.1 node1\n10.87.0.2 node2\n")
            (files / "nsswitch.conf").write_text("hosts: files\n")  # there is no name server to wait for
        one, two = self.names
        self.ip("-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two)
        for i, name in enumerate(self.names, start=1):
            self.ip("-n", name, "addr", "add", f"10.87.0.{i}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self.ip("-n", name, "link", "set", device, "up")
        self.start(2, ["true"], environment()).wait(30)

    def remove(self) -> None:
        for name, files in zip(self.names, self.files, strict=True):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            shutil.rmtree(files, ignore_errors=True)

    def start(self, node: int, command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command on a node, in a process group of its own."""
        own_name = ["unshare", "--uts", "sh", "-c", f'hostname node{node} && exec "$@"', "sh"]
        words = ["ip", "netns", "exec", self.names[node - 1], *own_name, *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(words, env=variables, start_new_session=True, **pipes)  # type: ignore[call-overload]

    def torchrun(self, node: int, words: list[str], **variables: str) -> subprocess.Popen[str]:
        """The command of docs/how-to/scale.md."""
        options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "5", "--rdzv-backend", "c10d"]
        options += ["--rdzv-endpoint", "node1:29500", "--rdzv-id", "music"]
        more = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **variables}
        return self.start(node, [*TORCHRUN, *options, *TRAIN, *words], environment(**more))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.build()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        reason = str(getattr(error, "stderr", b"") or error)
        pytest.skip(f"network namespaces cannot be made here: {reason}")
    yield made
    made.remove()


def run_words(recipe: Path, run: Path) -> list[str]:
    return [str(recipe), "--out", str(run), *SETTINGS]


@pytest.fixture(scope="module")
def unkilled(cluster: Cluster, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unkilled") / "run"
    nodes = [cluster.torchrun(i, run_words(tiny_recipe, run)) for i in (1, 2)]
    texts = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    return run


def assert_same(run: Path, other: Path) -> None:
    """All weights, codes, figures of steps and results are those of the other run, bit for bit."""
    for name in ("tokenizer", *STAGES[1:]):
        left, right = (load_file(folder / name / "model.safetensors") for folder in (run, other))
        assert left.keys() == right.keys()
        assert all(left[key].equal(right[key]) for key in left), name
    for name in STAGES:
        left, right = (
            (folder / "training" / name / "metrics.jsonl").read_text().splitlines() for folder in (run, other)
        )
        assert list(map(json.loads, left)) == list(map(json.loads, right)), name
    codes = [path.name for path in sorted((other / "codes").iterdir())]
    assert codes == [path.name for path in sorted((run / "codes").iterdir())]
    for name in codes:
        assert (run / "codes" / name).read_bytes() == (other / "codes" / name).read_bytes(), name
    assert (run / "data" / "tracks.jsonl").read_bytes() == (other / "data" / "tracks.jsonl").read_bytes()
    assert (run / "report.json").read_bytes() == (other / "report.json").read_bytes()


def test_a_rank_killed_in_each_stage(cluster: Cluster, unkilled: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """SIGKILL, as if memory ran out, once in each stage, in turn on both nodes; no command is given again."""
    deaths = "scan:1:SIGKILL tokenizer:0:SIGKILL codes:1:SIGKILL prior-1:0:SIGKILL"
    words = run_words(tiny_recipe, tmp_path / "run")
    nodes = [cluster.torchrun(i, words, DEATHS=deaths, DEATHS_FOLDER=str(tmp_path)) for i in (1, 2)]
    texts = [node.communicate(timeout=900)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    assert all((tmp_path / death.split(":")[0]).is_file() for death in deaths.split())
    text = "".join(texts)
    assert re.search(r"tokenizer: continues from step 1\n", text), text
    assert re.search(r"prior-1: continues from step 1\n", text), text
    assert_same(tmp_path / "run", unkilled)


def wait_for(path: Path) -> int:
    """The process that has stopped itself."""
    end = time.monotonic() + 600
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.1)
    return int(path.read_text())


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_node_that_is_lost_and_comes_back(
    cluster: Cluster, unkilled: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Once torchrun alone dies and leaves a rank that hangs while it encodes, which wakes when all is over; once all
    processes of the node die in the training of a prior."""
    run, deaths = tmp_path / "run", "codes:1:SIGSTOP prior-1:1:SIGSTOP"
    words, variables = run_words(tiny_recipe, run), {"DEATHS": deaths, "DEATHS_FOLDER": str(tmp_path)}
    one, two = (cluster.torchrun(i, words, **variables) for i in (1, 2))
    hung = psutil.Process(wait_for(tmp_path / "codes"))
    two.kill()
    two = cluster.torchrun(2, words, **variables)
    dead = wait_for(tmp_path / "prior-1")
    for number in (two.pid, dead):
        os.kill(number, signal.SIGKILL)
    two = cluster.torchrun(2, words, **variables)
    texts = [node.communicate(timeout=900)[0] for node in (one, two)]
    assert [node.returncode for node in (one, two)] == [0, 0], texts
    assert_same(run, unkilled)
    before = contents(run)
    assert hung.status() == psutil.STATUS_STOPPED
    hung.send_signal(signal.SIGCONT)
    hung.wait(60)
    assert contents(run) == before


def srun(cluster: Cluster, words: list[str], restarts: int, **more: str) -> list[subprocess.Popen[str]]:
    """A job of two tasks, each on its node, with the variables that srun sets."""
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    job |= {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_LOCALID": "0", **more}
    command = [sys.executable, *TRAIN, *words]
    return [cluster.start(i + 1, command, environment(**job, SLURM_PROCID=str(i))) for i in range(2)]


def test_a_slurm_job_that_is_requeued(cluster: Cluster, unkilled: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """The other task names the killed one, and the job goes on when it is requeued."""
    words, deaths = run_words(tiny_recipe, tmp_path / "run"), "tokenizer:1:SIGKILL prior-0:0:SIGKILL"
    for restarts, killed in enumerate((1, 0, None)):
        tasks = srun(cluster, words, restarts, DEATHS=deaths, DEATHS_FOLDER=str(tmp_path))
        texts = [task.communicate(timeout=600)[0] for task in tasks]
        if killed is None:
            assert [task.returncode for task in tasks] == [0, 0], texts
        else:
            codes = {killed: -signal.SIGKILL, 1 - killed: 2}
            assert [task.returncode for task in tasks] == [codes[0], codes[1]], texts
            name = f"process {killed} on node{killed + 1} has ended, or its machine or network has"
            assert f"audiovq: process {1 - killed}: {name}" in texts[1 - killed]
    assert_same(tmp_path / "run", unkilled)
