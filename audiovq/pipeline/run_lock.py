"""One writer for each run folder, also on a disk that several machines share. The file `.lock` in the run names its
writer, which renews the file's time every few seconds. If the writer is killed, it is taken over: on the same machine
at once, elsewhere after a while. (Some shared disks have no locks.)"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from audiovq.distributed import collectives
from audiovq.utils import signals
from audiovq.utils.files import check_folder, fences
from audiovq.utils.progress import console, say

RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a renewal, as seen from another machine
WAIT_SECONDS = 80.0  # for a writer to end that has just been asked to stop, or to be taken for dead
POLL_SECONDS = 0.5


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Within `with`, no other training writes into this run. All ranks call it, and rank 0 takes their lock. Raises
    ValueError if another training has it, and does not end. A process whose lock was taken over, because it was
    suspended or left behind, or its disk was away, ends before it writes."""
    path = run / ".lock"

    def end(_: object) -> None:
        console.quiet = False  # any rank says this
        say(f"{run}: {_writer(lock)} has taken over this run")
        os._exit(2)

    def check() -> None:
        for pause in (POLL_SECONDS, RENEW_SECONDS, 0.0):  # a shared disk may show the lock late
            with contextlib.suppress(OSError):
                if mark in path.read_text():
                    return
            time.sleep(pause)
        end(None)

    lock = SoftFileLease(path, lease_duration=STALE_SECONDS, heartbeat_interval=RENEW_SECONDS, on_compromise=end)
    if collectives.rank() == 0:
        check_folder(run)
        if _is_empty(path):  # left by a machine that lost its power; filelock never takes it over
            time.sleep(POLL_SECONDS)  # unless it is being written
            if _is_empty(path):
                path.unlink(missing_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{run}: waits for {_writer(lock)}, which trains this run")
            try:
                is_stopped = lambda: signals.received() is not None  # noqa: E731
                lock.acquire(WAIT_SECONDS, poll_interval=POLL_SECONDS, cancel_check=is_stopped)
            except Timeout:
                signals.poll()
                advice = "wait for its end, stop it, or choose another --out"
                raise ValueError(f"{run}: {_writer(lock)} trains this run; {advice}") from None
    mark = f"token={collectives.from_rank_0(int((lock.token or '0')[:15], 16)):015x}"  # its first digits
    fences.append(check)
    try:
        yield
    finally:
        fences.remove(check)
        lock.release()


def _is_empty(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def _writer(lock: SoftFileLease) -> str:
    owner = lock.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
