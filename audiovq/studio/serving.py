"""A server on a thread, with a port that is free, and the model that loads meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from audiovq.studio.projects import Library
from audiovq.studio.requests import Limits
from audiovq.studio.security import Access
from audiovq.studio.server import Studio, make_app

if TYPE_CHECKING:
    from audiovq.studio.engine import Engine

FIRST_PORT, N_PORTS = 7860, 40
Load = Callable[[Library, Limits, Path], "Engine"]


@contextlib.contextmanager
def open_studio(
    load: Load, projects: Path, limits: Limits | None = None, access: Access | None = None, port: int | None = None
) -> Iterator[tuple[str, Studio]]:
    """Serve a studio within the block, at a port or the first free one from 7860 on; gives its address and
    the studio, for which `load` loads the model in a thread. Raises ValueError if the port is taken, or
    the address is not this machine's."""
    limits, access = limits or Limits(), access or Access("127.0.0.1")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(access.host, port))
        sounds = stack.enter_context(tempfile.TemporaryDirectory(prefix="audiovq-studio-"))
        library = Library(projects, limits)
        studio = Studio(library, limits, access)
        stack.callback(studio.queue.close)
        config = uvicorn.Config(
            make_app(studio),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=30,
            limit_concurrency=500,
            ws="none",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        studio.loading = ThreadPoolExecutor(1, "model").submit(load, library, limits, Path(sounds))
        try:
            yield f"http://{_written(access.host)}:{listening.getsockname()[1]}", studio
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def _written(host: str) -> str:
    """As in an address that a browser on this machine opens."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int | None) -> socket.socket:
    """A socket on a port, or on the first free one. Raises ValueError if there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [port] if port else range(FIRST_PORT, FIRST_PORT + N_PORTS):
        try:
            return socket.create_server((host, number), family=family)
        except socket.gaierror:
            raise ValueError(f"--host {host}: no such address; 127.0.0.1 is this machine alone") from None
        except OSError as error:
            reason = error
    where = f"port {port}" if port else f"the ports {FIRST_PORT} to {FIRST_PORT + N_PORTS - 1}"
    raise ValueError(f"{where} of {host} cannot be used ({os.strerror(reason.errno or 0)}); choose another with --port")
