"""Jobs: one runs at a time, the others wait in a queue and know their place."""

import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from audiovq.studio.requests import MANY, Limits, Refused, sentence
from audiovq.utils.progress import say

MOST_FINISHED = 50  # jobs that are remembered
KEYS = ("id", "project", "kind", "title", "state", "progress", "message", "error", "versions")


class Stopped(Exception):
    """The user stopped the work."""


@dataclass(eq=False)
class Job:
    """A request for work. `work` gets the job and returns the numbers of new versions."""

    project: str
    owner: str
    kind: str
    title: str
    work: Callable[["Job"], list[int]]
    discard: Callable[[], object] = lambda: None  # called if it ends without being done
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "waiting"  # running, done, stopped or failed
    progress: float = 0.0
    message: str = ""
    error: str | None = None
    versions: list[int] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = 0.0

    def report(self, progress: float, message: str) -> None:
        """Raises Stopped if the user stopped it."""
        if self.stop.is_set():
            raise Stopped
        self.progress, self.message = progress, message

    @property
    def is_finished(self) -> bool:
        return self.state not in ("waiting", "running")

    @property
    def seconds_left(self) -> float | None:
        """None before there is a pace."""
        if self.state != "running" or self.progress < 0.02:
            return None
        return round((time.monotonic() - self.began) * (1 / self.progress - 1), 1)


class Queue:
    """Runs jobs in a thread of its own."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._jobs: dict[str, Job] = {}  # in the order of their arrival
        self._arrived: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> Job:
        """Raises Refused if the visitor has too many jobs that wait."""
        with self._lock:
            most, unfinished = self.limits.max_waiting, self._unfinished()
            if sum(other.owner == job.owner for other in unfinished) > most:
                raise Refused(f"{most} of your requests wait already; let them finish first", 429)
            if len(unfinished) > MANY * most:
                raise Refused("too many people wait already; try it again later", 429)
            self._jobs[job.id] = job
            self._arrived.put(job)
        return job

    def get(self, name: str, owner: str) -> Job:
        """Raises Refused for a job that does not exist, is forgotten or somebody else's."""
        job = self._jobs.get(name)
        if job is None or job.owner != owner:
            raise Refused("there is no such job; it may have ended long ago", 404)
        return job

    def of_project(self, project: str) -> list[Job]:
        """Also those that have ended, as long as they are remembered."""
        with self._lock:
            return [job for job in self._jobs.values() if job.project == project]

    def place(self, job: Job) -> int:
        """0 is the one that runs."""
        with self._lock:
            waiting = [other for other in self._unfinished() if other.state == "waiting"]
            return waiting.index(job) + 1 if job in waiting else 0

    def describe(self, job: Job) -> dict[str, Any]:
        return {key: getattr(job, key) for key in KEYS} | {"place": self.place(job), "seconds_left": job.seconds_left}

    def stop(self, job: Job) -> None:
        """Stop a job; one that waits is stopped at once, one that runs after its present code."""
        job.stop.set()
        with self._lock:
            if job.state == "waiting":
                job.state = "stopped"
                job.discard()

    def close(self) -> None:
        with self._lock:
            for job in self._unfinished():
                job.stop.set()
            self._arrived.put(None)
        self._thread.join(timeout=5)

    def _unfinished(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.is_finished]

    def _run(self) -> None:
        for job in iter(self._arrived.get, None):
            with self._lock:
                if job.is_finished:  # stopped while it waited
                    continue
                job.state, job.began = "running", time.monotonic()
            if (state := self._finish(job)) != "done":
                job.discard()
            with self._lock:
                job.state = state
                finished = [name for name, other in self._jobs.items() if other.is_finished]
                for name in finished[:-MOST_FINISHED]:
                    del self._jobs[name]

    def _finish(self, job: Job) -> str:
        """Run a job to its end; returns its last state."""
        try:
            job.report(0.0, "")
            job.versions = job.work(job)
            job.progress = 1.0
            return "done"
        except Stopped:
            return "stopped"
        except (ValueError, OSError) as error:
            job.error = sentence(error)
        except Exception as error:
            job.error = f"internal error: {type(error).__name__}: {error}"
            say(f"{job.error}\n{traceback.format_exc()}")
        return "failed"
