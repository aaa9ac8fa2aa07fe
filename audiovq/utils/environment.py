"""What an installation, the user's account or the terminal may lack."""

import contextlib
import getpass
import importlib.util
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the program ends


def require(feature: str, *packages: str, install: str) -> None:
    """Raises ValueError for the first package that is missing; `install` is the command that adds all of them."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{feature}: the package {name} is missing; {install}")


@contextlib.contextmanager
def errors_as(failure: str, *kinds: type[Exception], advice: str = "") -> Iterator[None]:
    """Errors of these `kinds` (default: all) as a ValueError, with their first line."""
    try:
        yield
    except kinds or (Exception,) as error:  # noqa: B030
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{failure} ({reason}){advice}") from None


def cpu_count() -> int:
    """The cores that this process may use: containers, Slurm and affinities may leave it fewer than the machine has."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000", or microseconds of each period
        quota, period = CGROUP_CPU.read_text().split()
        n = min(n, max(1, int(quota) // int(period)))
    return n


def prepare() -> None:
    """Give the user a name, and caches a place, if the account or its home folder is missing or cannot be written.

    torch asks for the name, and numba and matplotlib for the place, when they are imported. What the user has set stays.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # the last on Windows
        os.environ["USER"] = str(os.getuid()) if hasattr(os, "getuid") else "user"
    # torch warns of a CUDA toolkit without a GPU as if something were wrong.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.access(caches if os.path.isdir(caches) else os.path.dirname(caches), os.W_OK):
        return
    with contextlib.suppress(OSError):  # a library names what it misses
        _kept.append(tempfile.TemporaryDirectory(prefix="audiovq-"))
        names = ["NUMBA_CACHE_DIR", "MPLCONFIGDIR", *(["XDG_CACHE_HOME"] if caches.startswith("~") else [])]
        for name in names:
            os.environ.setdefault(name, _kept[-1].name)


def printable(text: str) -> str:
    r"""Control characters, which names of files may have, as in \x1b."""
    return text.translate(_CONTROL)


def print_anything() -> None:
    r"""Let standard output and error print what their encoding lacks as in \xb1, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
