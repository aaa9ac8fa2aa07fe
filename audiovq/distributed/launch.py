"""Runs a command on several processes: by torch's elastic launcher on this machine, or as srun started them.

A process that torchrun, `accelerate launch` or this launcher started has the environment variable WORLD_SIZE.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator, MutableMapping, Sequence

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from audiovq.utils.progress import console, say
from audiovq.utils.signals import Interrupted

TIMEOUT = datetime.timedelta(days=1)  # one rank may scan a large data set while the others wait


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Within `with`, this process is one of those that a launcher or srun started.

    Each takes its own GPU if there are any, and only rank 0 prints. On a single process this does nothing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    console.quiet = dist.get_rank() > 0
    try:
        yield
    except RuntimeError as error:
        if "by peer" in str(error):
            raise ValueError("another process stopped; its message says why") from error
        raise
    finally:
        console.quiet = False
        dist.destroy_process_group()


def run_on_several(arguments: Sequence[str], gpus: int | None, processes: int | None, useful: int) -> bool:
    """Run this command on several processes and wait for them, unless one is enough or this is one of them.

    Args:
        arguments: the command's arguments.
        gpus: number of GPUs; None uses all that are visible.
        processes: number of processes on the CPU, instead of GPUs.
        useful: the largest number of processes that have something to do.
    Returns:
        True if the processes did the work; False if this process has to do it.
    Raises:
        ValueError: more GPUs than there are, or a process failed.
        Interrupted: a signal stopped them.
    """
    join_slurm_step(os.environ)
    if "WORLD_SIZE" in os.environ:
        return False
    n, useful = count(gpus, processes), max(useful, 1)
    if n > useful:
        kind = "processes" if processes else "GPUs"
        say(f"using {useful} of {n} {kind}: there is no work for more (batch_size or --num)")
        n = useful
    if processes:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if n < 2:
        return False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    _launch(n, arguments)
    return True


def count(gpus: int | None, processes: int | None) -> int:
    """The requested number of processes."""
    if processes is not None:
        if gpus is not None:
            raise ValueError("--gpus and --processes: expected only one of them")
        return processes
    visible = torch.cuda.device_count()
    if gpus is not None and gpus > max(visible, 1):
        advice = f"--processes {gpus} runs on the CPU"
        raise ValueError(f"--gpus {gpus}: expected at most the {visible} GPUs of this machine; {advice}")
    return gpus or max(visible, 1)


def _launch(n: int, arguments: Sequence[str]) -> None:
    # The launcher's own reports are long; the errors below are one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=n, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "audiovq", *arguments)
    except SignalException as stop:  # the launcher passed it on and waited up to 30 seconds
        raise Interrupted(stop.sigval) from None
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        for number in (signal.SIGTERM, signal.SIGINT):
            if 128 + number in codes:
                raise Interrupted(number) from None
        raise ValueError(_failure(n, codes - {-signal.SIGTERM} or codes)) from None  # the launcher ends the others so


def _failure(n: int, codes: set[int]) -> str:
    """The message for exit codes of failed processes; negative ones are signals, and 2 is a mistake of the user."""
    if -signal.SIGKILL in codes:
        return f"one of {n} processes was killed, perhaps because memory ran out; the same command resumes"
    message = f"one of {n} processes failed with exit code {min(codes)}; its message is above"
    return message if 2 in codes else f"{message}; the same command resumes from what is saved"


def join_slurm_step(environment: MutableMapping[str, str]) -> None:
    """If srun started this process as one of several, set the variables that torchrun would set."""
    n = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if n < 2 or "WORLD_SIZE" in environment:
        return
    job, step = int(environment.get("SLURM_JOB_ID", "0")), int(environment.get("SLURM_STEP_ID", "0"))
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "localhost")))
    environment.setdefault("MASTER_PORT", str(20000 + (7919 * job + step) % 20000))
    rank, local_rank = environment["SLURM_PROCID"], environment["SLURM_LOCALID"]
    environment.update(RANK=rank, LOCAL_RANK=local_rank, WORLD_SIZE=str(n))


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: `gpu[003-005,9],login` -> gpu003."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?", nodes)
    assert match is not None, "the pattern matches every text"
    return "".join(part or "" for part in match.groups())
