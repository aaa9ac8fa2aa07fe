"""One writer for each run folder, also on a disk that several machines share.

The file `.lock` in the run names its writer, which renews the file's time every few seconds. If the writer is
killed, it is taken over: on the same machine at once, elsewhere after a while. (Some shared disks have no
locks.)
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from audiovq.utils import signals
from audiovq.utils.files import check_folder
from audiovq.utils.progress import say

RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a renewal, as seen from another machine
CLOSING_SECONDS = 20.0  # for a living writer to end, such as one that has just been asked to stop
POLL_SECONDS = 0.5


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Within `with`, no other process trains this run. Raises ValueError if one does, and does not end."""
    check_folder(run)
    path = run / ".lock"

    def end(_: object) -> None:
        """Another machine has the lock now: this process was suspended, or its disk was away."""
        say(f"{run}: {_writer(lock)} has taken over this run")
        os._exit(2)

    if _is_empty(path):  # left by a machine that lost its power; filelock never takes it over
        time.sleep(POLL_SECONDS)  # unless it is being written
        if _is_empty(path):
            path.unlink(missing_ok=True)
    lock = SoftFileLease(path, lease_duration=STALE_SECONDS, heartbeat_interval=RENEW_SECONDS, on_compromise=end)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{run}: waits for {_writer(lock)}, which trains this run")
        _wait(lock, path)
    try:
        yield
    finally:
        lock.release()


def _wait(lock: SoftFileLease, path: Path) -> None:
    began, renewed = time.monotonic(), _renewed(path)

    def is_alive_for_long() -> bool:
        signals.poll()
        return time.monotonic() - began > CLOSING_SECONDS and _renewed(path) != renewed

    try:
        timeout = STALE_SECONDS + CLOSING_SECONDS
        lock.acquire(timeout, poll_interval=POLL_SECONDS, cancel_check=is_alive_for_long)
    except Timeout:
        advice = "wait for its end, stop it, or choose another --out"
        raise ValueError(f"{path.parent}: {_writer(lock)} trains this run; {advice}") from None


def _is_empty(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def _renewed(path: Path) -> float:
    """When the lock was renewed; 0 if it is not there."""
    return path.stat().st_mtime if path.is_file() else 0.0


def _writer(lock: SoftFileLease) -> str:
    owner = lock.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
