"""Docstrings on the reference pages: examples (`>>>` lines) as code, and a line for each of several arguments.

In the code, arguments of the same meaning share a line (`start, end: seconds`), which the parser of docstrings does not know.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(\n(>>>|\.\.\.) .*)*", re.MULTILINE)
SHARED_LINE = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8,}.*)*)$", re.MULTILINE)


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
            obj.docstring.value = SHARED_LINE.sub(line_for_each, text)


def line_for_each(match: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {match[2]}" for name in match[1].split(", "))
