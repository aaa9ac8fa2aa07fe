"""Runs a command on several processes: by torch's elastic launcher on this machine, or as srun started them. A process
that torchrun, `accelerate launch` or this launcher started has the environment variable WORLD_SIZE."""

import contextlib
import datetime
import importlib
import logging
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from audiovq.distributed import collectives
from audiovq.utils import signals
from audiovq.utils.environment import cpu_count
from audiovq.utils.progress import console, say

STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes after a signal to stop
SAY_SECONDS = 5.0  # within which processes that wait for the same one find out
# How long processes wait for one that does not answer, except for `collectives.barrier`.
TIMEOUT = datetime.timedelta(minutes=float(os.environ.get("AUDIOVQ_TIMEOUT_MINUTES", "20")))


@contextlib.contextmanager
def processes(folder: Path = Path()) -> Iterator[None]:
    """Within `with`, this process is one of those that a launcher or srun started. Each takes its own GPU if
    there are any, and only rank 0 prints. If GPUs wait for each other in vain, torch writes what they exchanged
    to `folder`. On a single process this does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        record_collectives(folder, os.environ)
    collectives.start(TIMEOUT)
    console.quiet = dist.get_rank() > 0
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        say("torchrun: restarts need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, else they meet old addresses")
    try:
        yield
    except RuntimeError as error:
        if "by peer" in str(error):
            problem = f"{_culprits()} has ended, or its machine or network has"
            reason = "perhaps because memory ran out; its message, or that of the launcher or scheduler, says why"
        elif "Timed out" in str(error) or "timeout" in str(error).lower():
            problem = f"{_culprits()} has not answered for {TIMEOUT.total_seconds() / 60:g} minutes"
            reason = "it hangs, perhaps in a disk or network that does not answer, or was suspended"
        else:
            raise
        raise ValueError(f"process {dist.get_rank()}: {problem}: {reason}; the same command resumes") from error
    finally:
        console.quiet = False
        collectives.stop()


def record_collectives(folder: Path, given: MutableMapping[str, str]) -> None:
    """Turn on NCCL's flight recorder, unless the user has set its variables by their present or earlier names."""
    prefix = f"{folder.absolute()}/nccl-rank-"
    given.setdefault("TORCH_FR_BUFFER_SIZE", given.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"))
    given.setdefault("TORCH_FR_DUMP_TEMP_FILE", given.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", prefix))
    given.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


@signals.deferred()  # the launcher may already stop this process
def _culprits() -> str:
    """The processes that do not say, soon after this one, that they, too, met an error: those of them that show
    no sign of life, if there are any."""
    try:
        heartbeat = collectives.heartbeats[0]
        before = heartbeat.signs()
        heartbeat.store.set(f"met/{dist.get_rank()}", "")
        time.sleep(SAY_SECONDS)
        signs = heartbeat.signs()
        others = [rank for rank in range(len(signs)) if not heartbeat.store.check([f"met/{rank}"])]
    except RuntimeError:  # the store has ended; it is on the machine of process 0
        return f"process 0 on {os.environ.get('MASTER_ADDR')}"
    others = [rank for rank in others if signs[rank] == before[rank]] or others
    names = ", ".join(f"{rank} on {signs[rank].split()[1].decode()}" for rank in others)
    return f"process {names}" if others else "another process"


def run_on_several(
    arguments: Sequence[str], gpus: int | None, processes: int | None, limit: tuple[int, str] | None = None
) -> bool:
    """Run this command on several processes and wait for them, unless one is enough or this is one of them:
    on so many `gpus` (None: all that are visible), or `processes` on the CPU, but no more than the `limit`,
    which has its reason. True if they did the work; False if this process has to do it. Raises ValueError if
    there are too few GPUs or a process failed, `Interrupted` if a signal stopped them."""
    join_slurm_step(os.environ)
    if "WORLD_SIZE" in os.environ:
        return False
    n = count(gpus, processes)
    if limit and n > limit[0]:
        say(f"using {max(limit[0], 1)} of {n} {'processes' if processes else 'GPUs'}: {limit[1]}")
        n = max(limit[0], 1)
    if processes:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if n < 2:
        return False
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // n)))
    _launch(n, arguments)
    return True


def count(gpus: int | None, processes: int | None) -> int:
    if processes is not None:
        if gpus is not None:
            raise ValueError("--gpus and --processes: expected only one of them")
        return processes
    visible = torch.cuda.device_count()
    if gpus is not None and gpus > max(visible, 1):
        expected = f"expected at most the {visible} GPUs of this machine"
        raise ValueError(f"--gpus {gpus}: {expected}; --processes {gpus} runs on the CPU")
    return gpus or max(visible, 1)


def _launch(n: int, arguments: Sequence[str]) -> None:
    # The launcher's own reports are long; the errors below are one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    meeting: Any = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    elastic = importlib.import_module("torch.distributed.launcher.api")  # not at the top: it takes 0.15 s to load
    config = elastic.LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=n, max_restarts=0, **meeting)
    try:
        elastic.elastic_launch(config, sys.executable)("-m", "audiovq", *arguments)
    except elastic.SignalException as stop:  # the launcher passed it on and waited up to 30 seconds
        raise signals.Interrupted(stop.sigval) from None
    except elastic.ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        rank = culprit(codes)
        code, process = codes[rank], f"process {rank} of {n}"
        if code in STOPPED:
            raise signals.Interrupted(code - 128) from None
        if code < 0:  # a signal
            causes = {signal.SIGKILL: "memory ran out", signal.SIGABRT: "a GPU or another process did not answer"}
            number = signal.Signals(-code)
            cause = f"perhaps because of this: {causes.get(number, 'a fault in a driver or library')}"
            raise ValueError(f"{process} was ended by {number.name}, {cause}; the same command resumes") from None
        resumes = "" if code == 2 else "; the same command resumes from what is saved"  # 2 is a mistake of the user
        raise ValueError(f"{process} failed with exit code {code}; its message is above{resumes}") from None


def culprit(codes: Mapping[int, int]) -> int:
    """The rank that a signal ended, else that failed, by exit codes. Others come last: the launcher stops them."""
    return min(codes, key=lambda r: (codes[r] == -signal.SIGTERM, codes[r] in STOPPED, codes[r] > 0, r))


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
