"""One writer for each run folder, also on a disk that several machines share.

The file `.lock` in the run names its writer, which renews the file's time every few seconds. It stays behind if the
writer is killed. On the same machine the process itself shows whether it is alive. A writer on another machine is taken
for dead if the file is not renewed for a while; clocks need not agree. There is no `flock`: some shared disks ignore it.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from audiovq.utils import signals
from audiovq.utils.files import check_folder
from audiovq.utils.progress import say

RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a renewal, as seen from another machine
CLOSING_SECONDS = 20.0  # for a living writer to end, such as one that has just been asked to stop
POLL_SECONDS = 0.5


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Within `with`, no other process trains this run.

    Raises:
        ValueError: another process trains it, and does not end.
    """
    check_folder(run)
    path, mine = run / ".lock", _this_process()
    _acquire(path, mine)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, mine, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _read(path)[0] == mine:
            path.unlink(missing_ok=True)


def _acquire(path: Path, mine: dict[str, Any]) -> None:
    began = changed = time.monotonic()
    first = last = None
    while True:
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(mine))
            return
        found, now = _read(path), time.monotonic()
        writer = found[0]
        who = f"process {writer.get('pid', '?')} on {writer.get('host', '?')}"
        if first is None:
            first = last = found
            if not _has_ended(writer, mine):
                say(f"{path.parent}: waits for {who}, which trains this run")
        if found != last:
            last, changed = found, now
        if _has_ended(writer, mine) or now - changed > STALE_SECONDS:
            temporary = path.with_name(f".lock-{mine['token']}")
            temporary.write_text(json.dumps(mine), encoding="utf-8")
            temporary.replace(path)
            time.sleep(2 * POLL_SECONDS)  # if several processes take it over at once, the last one has it
            if _read(path)[0] == mine:
                return
        is_alive = last != first or writer.get("machine") == mine["machine"]
        if is_alive and now - began > CLOSING_SECONDS:
            raise ValueError(
                f"{path.parent}: {who} trains this run; wait for its end, stop it, or choose another --out"
            )
        signals.poll()
        time.sleep(POLL_SECONDS)


def _renew(path: Path, mine: dict[str, Any], ended: threading.Event) -> None:
    """Renew the lock until `ended`; end the process if another machine has taken it over."""
    while not ended.wait(RENEW_SECONDS):
        writer = _read(path)[0]
        if writer and writer != mine:  # this process was suspended, or its disk was away
            say(f"{path.parent}: process {writer.get('pid')} on {writer.get('host')} has taken over this run")
            os._exit(2)
        with contextlib.suppress(OSError):
            os.utime(path)


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The writer that a lock names, {} if there is none or it is damaged, and the time of the last renewal."""
    try:
        with path.open(encoding="utf-8") as file:  # opened anew, because shared disks cache the facts of files
            content, renewed = json.loads(file.read()), os.fstat(file.fileno()).st_mtime_ns
    except (OSError, ValueError):
        return {}, 0
    return (content if isinstance(content, dict) else {}), renewed


def _this_process() -> dict[str, Any]:
    machine = platform.node()
    with contextlib.suppress(OSError):  # containers may share a name; process numbers mean nothing outside
        machine += Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    process = psutil.Process()
    facts = {"host": platform.node(), "machine": machine, "token": uuid.uuid4().hex}
    return {**facts, "pid": process.pid, "started": process.create_time()}


def _has_ended(writer: dict[str, Any], mine: dict[str, Any]) -> bool:
    """True if the writer was a process of this machine that is not there any more."""
    if writer.get("machine") != mine["machine"]:
        return False
    try:
        process = psutil.Process(writer["pid"])
        # The number may have been given to a new process. A clock that is set moves the time a little.
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - writer["started"]) > 5
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True
