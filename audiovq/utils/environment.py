"""What libraries need of the user's account, where there is none, as in many containers."""

import contextlib
import getpass
import os
import tempfile

_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the program ends


def prepare() -> None:
    """Give the user a name, and caches a place, if the account or its home folder is missing or cannot be written.

    torch asks for the name, and numba and matplotlib for the place, when they are imported. What the user has set stays.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.access(caches if os.path.isdir(caches) else os.path.dirname(caches), os.W_OK):
        return
    with contextlib.suppress(OSError):  # a library names what it misses
        _kept.append(tempfile.TemporaryDirectory(prefix="audiovq-"))
        names = ["NUMBA_CACHE_DIR", "MPLCONFIGDIR", *(["XDG_CACHE_HOME"] if caches.startswith("~") else [])]
        for name in names:
            os.environ.setdefault(name, _kept[-1].name)
