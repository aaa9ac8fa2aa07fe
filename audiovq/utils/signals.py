"""Stops on a signal (Ctrl-C, SIGTERM, preemption) at a point where no work is lost. Within `deferred()` a signal only
sets a flag. Long loops call `poll()` between two items, which raises `Interrupted`; the training loop checks
`received()` and saves first. Elsewhere signals work as usual."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

REPEAT_SECONDS = 1.0  # a signal this soon after the first is not a second one: launchers pass signals on


class Interrupted(Exception):
    """A signal stopped the work; what was finished is safe."""

    def __init__(self, signal_number: int, when: str = ""):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}{when}")
        self.signal_number = signal_number


class _State:
    deferring = False
    signal_number: int | None = None
    time = 0.0


def received() -> int | None:
    """The signal that came within `deferred()`, if any."""
    return _State.signal_number


def poll() -> None:
    """Raises `Interrupted` if a signal came within `deferred()`."""
    if _State.signal_number is not None:
        raise Interrupted(_State.signal_number)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM only sets a flag; a second one stops at once. It has no
    effect within another `deferred()`, or outside the main thread, which alone receives signals."""
    if _State.deferring or threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    _State.deferring, _State.signal_number = True, None
    try:
        yield
    except RuntimeError as error:  # a collective raises it when another process has stopped
        if _State.signal_number is None:
            raise
        raise Interrupted(_State.signal_number) from error
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _State.deferring, _State.signal_number = False, None


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.signal_number is None:
        _State.signal_number, _State.time = number, time.monotonic()
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write("stopping as soon as nothing is lost; a second signal stops at once\n")
    elif time.monotonic() - _State.time > REPEAT_SECONDS:
        raise KeyboardInterrupt


def ignore_in_worker(worker: int = 0) -> None:
    """Ignore signals in a worker process: the main process needs it until it stops the worker itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
