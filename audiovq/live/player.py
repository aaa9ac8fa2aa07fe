"""Plays music while it is made: a thread fills a buffer, from which a sound card takes. Or writes it."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from audiovq.api import Live
from audiovq.data.audio_writer import PIPE_BYTES, AudioWriter
from audiovq.utils.progress import say

SLOW_SECONDS = 1.0  # of work, after which it is known that a machine is too slow
ADVICE = "try --block 1 or --buffer 1, end other programs, or use a smaller model"
TOO_SLOW = "the sound pauses: this machine makes {:.2f} s of music a second; " + ADVICE
REPORT_SECONDS = 10.0  # between two reports of a machine that is too slow
NULL_SECONDS = 0.02  # of sound that the null device takes at once
WRITE_SECONDS = 0.1  # of music that is written at once

Device = Callable[["Player"], contextlib.AbstractContextManager[None]]  # takes sound from a player


class Player:
    """The producer and its buffer; `with` starts and stops it.

    Args:
        buffer_seconds: how much music is ready at most, besides the block that is being made. More survives longer
            interruptions, and makes changes audible later.
        report: called with a line for the user.

    Attributes:
        ready: the buffer, float32 [n, channels].
        underruns: how often the buffer was empty. The sound then pauses until it is full again.
        stopped: set at the end of the block, or by an error.
        error: what ended the production, in the user's words; None if nothing did.
    """

    def __init__(self, live: Live, buffer_seconds: float = 0.15, report: Callable[[str], object] = say):
        self.live, self.report = live, report
        self.channels, self.rate = live.tokenizer.config.channels, live.sample_rate
        self.n_wanted = max(1, round(buffer_seconds * self.rate))
        self.ready = np.zeros((0, self.channels), dtype=np.float32)
        self.n_played = self.n_made = self.underruns = 0
        self.seconds_of_work, self.filling = 0.0, True
        self.changed, self.stopped = threading.Condition(), threading.Event()
        self.error: str | None = None
        self.thread = threading.Thread(target=self._produce, name="audiovq-live", daemon=True)

    def __enter__(self) -> "Player":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()
        self.thread.join()

    @property
    def real_time_factor(self) -> float:
        """Seconds of music that this machine makes in a second."""
        return self.n_made / self.rate / max(self.seconds_of_work, 1e-9)

    def take(self, n: int) -> np.ndarray:
        """The next sound, float32 [n, channels]; silence while the buffer fills. It never waits or raises."""
        out = np.zeros((n, self.channels), dtype=np.float32)
        with self.changed:
            if self.filling and len(self.ready) < self.n_wanted:
                return out
            found, self.ready = self.ready[:n], self.ready[n:]
            out[: len(found)] = found
            self.n_played += len(found)
            self.filling = len(found) < n
            self.underruns += self.filling
            self.changed.notify_all()
        return out

    def _produce(self) -> None:
        reported, next_report, blocks = 0, 0.0, iter(self.live)
        try:
            while not self.stopped.is_set():
                with self.changed:
                    self.changed.wait_for(lambda: len(self.ready) < self.n_wanted or self.stopped.is_set())
                began = time.monotonic()
                block = next(blocks).T.numpy()
                self.seconds_of_work += time.monotonic() - began
                self.n_made += len(block)
                with self.changed:
                    self.ready = np.concatenate([self.ready, block])
                slow = self.seconds_of_work > SLOW_SECONDS and self.real_time_factor < 1  # perhaps no sound yet
                if (slow or self.underruns > reported) and began >= next_report:
                    reported, next_report = self.underruns, began + REPORT_SECONDS
                    self.report(TOO_SLOW.format(self.real_time_factor))
        except Exception as error:  # sound never ends with a traceback
            self.error = " ".join(f"{error}".split()) or type(error).__name__
        self.stopped.set()


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


def play(live: Live, device: Device, buffer_seconds: float, seconds: float | None, ended: Callable[[], bool]) -> None:
    """Play until the seconds are over, if any, or `ended`. ValueError for music that cannot be made."""
    n_samples = math.inf if seconds is None else live.generator.n_samples(seconds)
    with Player(live, buffer_seconds) as player, device(player):
        ahead = live.latency_seconds
        parts = f"{ahead:.1f} s that the model looks ahead, and the buffer (Ctrl-C stops)"
        say(f"playing; a change is heard after about {ahead + buffer_seconds:.1f} s: {parts}")
        while not ended() and not player.stopped.is_set() and player.n_played < n_samples:
            time.sleep(0.02)
    if player.error:
        raise ValueError(f"live: {player.error}")
    say(f"{player.n_played / player.rate:.1f} s played, {player.underruns} pauses because the buffer was empty")


def write(live: Live, out: str, seconds: float | None, ended: Callable[[], bool]) -> None:
    """Write a sound file, or WAV to standard output (`-`), until the seconds are over or `ended`.
    Raises ValueError for a file without an end, or one that cannot be written."""
    if out != "-" and seconds is None:
        raise ValueError(f"--out {out}: a file needs an end; add --seconds")
    n_samples = PIPE_BYTES if seconds is None else live.generator.n_samples(seconds)
    left = math.inf if seconds is None else n_samples
    made = worked = 0.0
    next_report = SLOW_SECONDS if out == "-" else math.inf  # a player may listen, but not to a file
    target = sys.stdout.buffer if out == "-" else out
    try:
        with AudioWriter(target, live.sample_rate, live.tokenizer.config.channels, n_samples) as file:
            while not ended() and left > 0:
                n = int(min(left, round(WRITE_SECONDS * live.sample_rate)))
                began = time.monotonic()
                block = live.read(n / live.sample_rate)
                made, worked = made + n / live.sample_rate, worked + time.monotonic() - began
                if worked > max(made, next_report):
                    say(TOO_SLOW.format(made / worked))
                    next_report = worked + REPORT_SECONDS
                file.write(block)
                left -= n
    except ValueError:
        if out != "-" or not ended():  # Ctrl-C also stops the program that reads the pipe
            raise
