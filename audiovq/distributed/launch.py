"""One command, several processes: on this machine by torch's elastic launcher, or as srun has started them.

A process that torchrun, `accelerate launch` or this launcher started has WORLD_SIZE set and works as one of many; see
`processes`.
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

TIMEOUT = datetime.timedelta(days=1)  # one rank may look at a large data set while the others wait


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that our launcher, torchrun, `accelerate launch` or srun started, for as long as the block
    lasts; each takes its own GPU if there are any, and the first one speaks. Nothing on a single process."""
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
            raise ValueError("another process stopped, and says why") from error
        raise
    finally:
        console.quiet = False
        dist.destroy_process_group()


def run_on_several(arguments: Sequence[str], gpus: int | None, processes: int | None, useful: int) -> bool:
    """Run this command on several processes if it should and is not one of them already; returns True when that is done.

    Args:
        arguments: of this command.
        gpus: None takes all that are visible.
        processes: so many on the CPU instead.
        useful: more processes than this would have nothing to do.
    Raises:
        ValueError: more GPUs than there are, or a process failed.
        Interrupted: a signal stopped them.
    """
    join_slurm_step(os.environ)
    if "WORLD_SIZE" in os.environ:
        return False
    n, useful = count(gpus, processes), max(useful, 1)
    if n > useful:
        say(f"{useful} of {n} {'processes' if processes else 'GPUs'}: there is no work for more (batch_size, --n)")
        n = useful
    if processes:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if n < 2:
        return False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    _launch(n, arguments)
    return True


def count(gpus: int | None, processes: int | None) -> int:
    """How many processes were asked for."""
    if processes is not None:
        if gpus is not None:
            raise ValueError("--gpus and --processes: expected one of them")
        return processes
    visible = torch.cuda.device_count()
    if gpus is not None and gpus > max(visible, 1):
        raise ValueError(
            f"--gpus {gpus}: expected at most the {visible} that are here; --processes {gpus} runs on the CPU"
        )
    return gpus or max(visible, 1)


def _launch(n: int, arguments: Sequence[str]) -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # what happened is said below, in one line
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=n, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "audiovq", *arguments)
    except SignalException as stop:  # it was passed on to the processes, which had 30 seconds
        raise Interrupted(stop.sigval) from None
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        for number in (signal.SIGTERM, signal.SIGINT):
            if 128 + number in codes:
                raise Interrupted(number) from None
        raise ValueError(
            f"one of {n} processes failed (exit code {', '.join(map(str, sorted(codes)))}), as it says above; "
            "the same command goes on from what is saved"
        ) from None


def join_slurm_step(environment: MutableMapping[str, str]) -> None:
    """If srun started this process as one of several, say so in the variables that torchrun would set."""
    n = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if n < 2 or "WORLD_SIZE" in environment:
        return
    job, step = int(environment.get("SLURM_JOB_ID", "0")), int(environment.get("SLURM_STEP_ID", "0"))
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "localhost")))
    environment.setdefault("MASTER_PORT", str(20000 + (7919 * job + step) % 20000))
    environment.update(
        RANK=environment["SLURM_PROCID"], LOCAL_RANK=environment["SLURM_LOCALID"], WORLD_SIZE=str(n)
    )  # fmt: skip


def first_host(nodes: str) -> str:
    """Of a list as Slurm writes it: `gpu[003-005,9],login` -> gpu003."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?", nodes)
    assert match is not None, "it matches the empty text, too"
    return "".join(part or "" for part in match.groups())
