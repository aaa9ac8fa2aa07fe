"""Server-sent events: who listens to a project learns of its changes, at most ten times a second."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

PAUSE_SECONDS, SILENCE_SECONDS = 0.1, 15.0


class Listener:
    def __init__(self) -> None:
        self.loop, self.wake = asyncio.get_running_loop(), asyncio.Event()
        self.changed: dict[str, None] = {}  # what changed since the last event, in order


class Events:
    """Listeners by project. `tell` may be called by any thread."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}
        self._lock = threading.Lock()

    def tell(self, project: str, what: str) -> None:
        """`what` changed: "project", or the id of a job."""
        with self._lock:
            for listener in self._listeners.get(project, []):
                listener.changed[what] = None
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    listener.loop.call_soon_threadsafe(listener.wake.set)

    async def listen(
        self, project: str, describe: Callable[[str], tuple[str, dict[str, Any]] | None]
    ) -> AsyncIterator[bytes]:
        """The stream of events, with the project first.

        Args:
            describe: gives the name and the data of an event for what changed; None for nothing.
        """
        listener = Listener()
        listener.changed["project"] = None
        with self._lock:
            self._listeners.setdefault(project, []).append(listener)
        try:
            while True:
                with self._lock:
                    changed, listener.changed = list(listener.changed), {}
                    listener.wake.clear()
                for what in sorted(changed, key=lambda what: what != "project"):  # before the job that changed it
                    event = describe(what)
                    if event:
                        yield f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n".encode()
                await asyncio.sleep(PAUSE_SECONDS)
                try:
                    await asyncio.wait_for(listener.wake.wait(), SILENCE_SECONDS)
                except asyncio.TimeoutError:
                    yield b": still here\n\n"
        finally:
            with self._lock:
                self._listeners[project].remove(listener)
                if not self._listeners[project]:
                    del self._listeners[project]
