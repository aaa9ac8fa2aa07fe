"""Plays music while it is made: a thread fills a bounded buffer, and a sound card takes from it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from audiovq.api import Live
from audiovq.utils.progress import say

REPORT_SECONDS = 10.0  # between two reports of a machine that is too slow
NULL_SECONDS = 0.02  # of sound that the null device takes at once


class Player:
    """The producer and its buffer; `with` starts and stops it.

    Args:
        buffer_seconds: how much music is ready at most, besides the block that is being made. More survives longer
            interruptions, and makes changes audible later.
        report: called with a line for the user.

    Attributes:
        underruns: how often the buffer was empty. The sound then pauses until it is full again.
        stopped: set by `stop`, by a signal or by an error.
        error: what ended the production, in the user's words; None if nothing did.
    """

    def __init__(self, live: Live, buffer_seconds: float = 0.5, report: Callable[[str], object] = say):
        self.live, self.report = live, report
        self.channels, self.rate = live.tokenizer.config.channels, live.sample_rate
        self.n_wanted = max(1, round(buffer_seconds * self.rate))
        self.blocks: deque[np.ndarray] = deque()  # float32 [n, channels]
        self.n_ready = self.n_played = self.n_made = self.underruns = 0
        self.seconds_of_work, self.filling = 0.0, True
        self.changed, self.stopped = threading.Condition(), threading.Event()
        self.error: str | None = None
        self.thread = threading.Thread(target=self._produce, name="audiovq-live", daemon=True)

    def __enter__(self) -> Player:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.thread.join()

    def stop(self) -> None:
        """End the production; what is in the buffer is dropped."""
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()

    @property
    def real_time_factor(self) -> float:
        """Seconds of music that this machine makes in a second."""
        return self.n_made / self.rate / max(self.seconds_of_work, 1e-9)

    def take(self, n: int) -> np.ndarray:
        """The next sound, float32 [n, channels]; silence while the buffer fills. Never waits, never raises."""
        out = np.zeros((n, self.channels), dtype=np.float32)
        with self.changed:
            if self.filling and self.n_ready < self.n_wanted:
                return out
            self.filling, i = False, 0
            while i < n and self.blocks:
                block = self.blocks.popleft()
                part = block[: n - i]
                out[i : i + len(part)] = part
                i += len(part)
                if len(part) < len(block):
                    self.blocks.appendleft(block[len(part) :])
            self.n_ready, self.n_played = self.n_ready - i, self.n_played + i
            if i < n:
                self.underruns, self.filling = self.underruns + 1, True
            self.changed.notify_all()
        return out

    def _produce(self) -> None:
        reported, next_report, blocks = 0, 0.0, iter(self.live)
        try:
            while not self.stopped.is_set():
                with self.changed:
                    self.changed.wait_for(lambda: self.n_ready < self.n_wanted or self.stopped.is_set())
                began = time.monotonic()
                block = next(blocks).T.contiguous().numpy()
                self.seconds_of_work += time.monotonic() - began
                with self.changed:
                    self.blocks.append(block)
                    self.n_ready, self.n_made = self.n_ready + len(block), self.n_made + len(block)
                if self.underruns > reported and began >= next_report:
                    reported, next_report = self.underruns, began + REPORT_SECONDS
                    self.report(self._too_slow())
        except Exception as error:  # sound never ends with a traceback
            self.error = " ".join(f"{error}".split()) or type(error).__name__
        self.stopped.set()

    def _too_slow(self) -> str:
        factor = self.real_time_factor
        if factor > 1.1:
            return f"the sound paused, although this machine makes {factor:.1f} s of music a second; try --buffer 1"
        return (
            f"the sound pauses: this machine makes {factor:.2f} s of music a second; try --block 1, end other programs, "
            "or use a smaller model"
        )


@contextlib.contextmanager
def null_device(player: Player) -> Iterator[None]:
    """Takes sound in real time and drops it, like a sound card with nothing connected."""

    def run() -> None:
        n, began, taken = round(NULL_SECONDS * player.rate), time.monotonic(), 0
        while not ended.wait(max(0.0, began + taken / player.rate - time.monotonic())):
            player.take(n)
            taken += n

    ended = threading.Event()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
