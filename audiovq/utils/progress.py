"""Messages, lists in them, and progress: a bar on a terminal, plain lines in a log."""

import difflib
import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from audiovq.utils import signals
from audiovq.utils.environment import printable

T = TypeVar("T")
console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
LOG_SECONDS = 10.0  # between two plain lines
MOST = 10  # values in a list


def say(message: str) -> None:
    """One line to standard error, above any running progress bar."""
    console.print(printable(message), markup=False)


say_once = functools.cache(say)  # each message


class _NotedProgress(Progress):
    """A bar with a one-line note below it."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.note:
            yield Text(f"  {self.note}", style="dim", no_wrap=True, overflow="ellipsis")


class ProgressBar:
    """`with ProgressBar("encode", total) as bar: bar.advance(n, note)`. Steps before `start` do not count for
    the speed, which is also shown in units, such as 2.5 "audio-s" `per_step`."""

    def __init__(
        self, title: str, total: int, start: int = 0, unit: str = "", per_step: float = 1.0, hidden: bool = False
    ):
        self.title, self.total, self.hidden = title, total, hidden
        self.unit, self.per_step = unit, per_step
        self.note = ""
        self.began = self.printed = time.monotonic()
        self.first = self.done = self.shown = float(start)
        self.rich: _NotedProgress | None = None

    def __enter__(self) -> "ProgressBar":
        if console.is_terminal and not self.hidden:
            times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[rate]}")
            title = TextColumn("{task.description}", markup=False)
            self.rich = _NotedProgress(title, BarColumn(24), MofNCompleteColumn(), *times, console=console)
            self.rich.start()
            self.task = self.rich.add_task(self.title, total=self.total, completed=int(self.done), rate="")
        return self

    def advance(self, n: float = 1, note: str | None = None) -> None:
        self.done += n
        self.note = self.note if note is None else note
        if self.rich is not None:
            self.rich.note = self.note
            self.rich.update(self.task, completed=self.done, rate=self.rate)
        elif not self.hidden and time.monotonic() - self.printed >= LOG_SECONDS:
            self._line()

    @property
    def steps_per_second(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    @property
    def rate(self) -> str:
        """Such as "12.3 audio-s/s"; empty without a unit, and before the first step."""
        rate = self.steps_per_second * self.per_step
        return f"{rate:.1f} {self.unit}/s" if self.unit and rate else ""

    def _line(self) -> None:
        self.printed, self.shown = time.monotonic(), self.done
        left = max(0.0, self.total - self.done) / self.steps_per_second if self.done > self.first else 0.0
        facts = [f"{int(self.done)}/{self.total}", f"{duration(left)} left", self.rate]
        say(f"{self.title}: {', '.join(filter(None, facts))} {self.note}".rstrip())

    def __exit__(self, *exception: object) -> None:
        if self.rich is not None:
            self.rich.stop()
        elif not self.hidden and self.printed > self.began and self.done > self.shown:
            self._line()


def duration(seconds: float) -> str:
    """In the unit that people would use: 90 s, 15 min, 30 h, 12 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Iterate with a progress bar; a signal to stop takes effect between two items."""
    with ProgressBar(title, total) as bar:
        for item in items:
            signals.poll()
            yield item
            bar.advance()


def listed(values: Sequence[str], wanted: str = "") -> str:
    """`a, b, c and 1,497 more`: at most ten values, those like `wanted` first, none of them long."""
    first = difflib.get_close_matches(wanted, values, n=MOST) if wanted else []
    shown = [*first, *(value for value in values[: 2 * MOST] if value not in first)][:MOST]
    more = f" and {len(values) - len(shown):,} more" if len(values) > len(shown) else ""
    return ", ".join(value if len(value) < 60 else f"{value[:60]}…" for value in shown) + more or "none"
