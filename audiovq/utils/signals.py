"""Being asked to stop (Ctrl-C, SIGTERM, preemption): remembered, and obeyed where nothing is lost by it.

Within `deferred()` a signal only raises a flag. Long loops call `poll()` between two items; the training loop asks
`received()` and saves first. Outside of it, `poll` does nothing and signals do what they always do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

REPEAT_SECONDS = 1.0  # a launcher passes on a signal that its processes may have got, too: that is not a second one


class Interrupted(Exception):
    """A signal asked to stop; what was finished is kept."""

    def __init__(self, signal_number: int, when: str = ""):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}{when}")
        self.signal_number = signal_number


class _Heard:
    listening = False
    signal_number: int | None = None
    at = 0.0


def received() -> int | None:
    """The signal that asked to stop, if one did."""
    return _Heard.signal_number


def poll() -> None:
    """Raises `Interrupted` if a signal asked to stop."""
    if _Heard.signal_number is not None:
        raise Interrupted(_Heard.signal_number)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within `with`, the first SIGINT or SIGTERM is only remembered; a second one stops at once.

    Within another one, or in a thread that can hear no signals, it changes nothing.
    """
    if _Heard.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, _hear) for number in (signal.SIGINT, signal.SIGTERM)}
    _Heard.listening, _Heard.signal_number = True, None
    try:
        yield
    except RuntimeError as error:  # what a collective raises when another process has stopped already
        if _Heard.signal_number is None:
            raise
        raise Interrupted(_Heard.signal_number) from error
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        _Heard.listening, _Heard.signal_number = False, None


def _hear(number: int, frame: FrameType | None) -> None:
    if _Heard.signal_number is None:
        _Heard.signal_number, _Heard.at = number, time.monotonic()
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write("stopping after what is being done; once more stops at once\n")
    elif time.monotonic() - _Heard.at > REPEAT_SECONDS:
        raise KeyboardInterrupt


def ignore_in_worker(worker: int = 0) -> None:
    """For helper processes: signals are their parent's business, which needs them to finish what it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
