"""Text that any terminal prints, and none obeys."""

import io
import sys

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    r"""Control characters, which names of files may have, as in \x1b."""
    return text.translate(_CONTROL)


def print_anything() -> None:
    r"""Let standard output and error print what their encoding lacks as in \xb1, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
