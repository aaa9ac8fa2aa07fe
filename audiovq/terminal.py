"""What the user sees while waiting: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from audiovq import stopping

T = TypeVar("T")
console = Console(stderr=True, highlight=False, soft_wrap=True)
LOG_SECONDS = 10.0  # between two plain lines


def say(message: str) -> None:
    """One line to standard error, above any running progress bar."""
    console.print(message, markup=False)


class ProgressBar:
    """`with ProgressBar("encode", total) as bar: bar.advance(n, note)`."""

    def __init__(self, title: str, total: int, start: int = 0, hidden: bool = False):
        self.title, self.total, self.done, self.hidden = title, total, start, hidden
        self.note = ""
        self.began = self.printed = time.monotonic()
        self.first = start
        self.rich: Progress | None = None

    def __enter__(self) -> ProgressBar:
        if console.is_terminal and not self.hidden:
            self.rich = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
            )  # fmt: skip
            self.rich.start()
            self.task = self.rich.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def advance(self, n: int = 1, note: str | None = None) -> None:
        self.done += n
        self.note = self.note if note is None else note
        if self.rich is not None:
            self.rich.update(self.task, completed=self.done, note=self.note)
        elif not self.hidden and time.monotonic() - self.printed >= LOG_SECONDS:
            self._line()

    def _line(self) -> None:
        self.printed = time.monotonic()
        rate = (self.done - self.first) / max(self.printed - self.began, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        say(f"{self.title}: {self.done}/{self.total}, {left:.0f} s left {self.note}".rstrip())

    def __exit__(self, *exception: object) -> None:
        if self.rich is not None:
            self.rich.stop()
        elif not self.hidden and self.printed > self.began:
            self._line()


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Iterate with a progress bar; between two items a signal to stop is heard."""
    with ProgressBar(title, total) as bar:
        for item in items:
            stopping.poll()
            yield item
            bar.advance()
