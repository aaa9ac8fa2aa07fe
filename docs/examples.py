"""Shows examples in docstrings (`>>>` lines) as code on the reference pages."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            fenced = r"```pycon\n\g<0>\n```"
            obj.docstring.value = re.sub(
                r"^>>> .*(\n(>>>|\.\.\.) .*)*", fenced, obj.docstring.value, flags=re.MULTILINE
            )
