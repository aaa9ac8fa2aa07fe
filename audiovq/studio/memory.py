"""What a studio remembers of its model, so that the next start can show the page before the model is loaded."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import audiovq
from audiovq.pretrained.locate import MODEL_FILES
from audiovq.studio.requests import Limits
from audiovq.utils.files import write_text


class Memory:
    def __init__(self, path: Path):
        self.path = path

    def read(self, folder: Path, name: str, limits: Limits) -> dict[str, Any] | None:
        """The description of a model that was written last; None if it was of another model, or the model's files,
        limits or this package have changed since."""
        patterns = (*MODEL_FILES, "README.md", "report.json")
        paths = [path for pattern in patterns for path in sorted(folder.resolve().glob(pattern))]
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        facts = repr((files, name, limits, audiovq.__version__))
        self.key = hashlib.sha256(facts.encode()).hexdigest()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # there is none yet, or it is damaged
            known = json.loads(self.path.read_text("utf-8"))
            return known["model"] if known["key"] == self.key else None

    def write(self, model: dict[str, Any]) -> None:
        """Keep a description for the model that `read` was asked for."""
        with contextlib.suppress(ValueError):  # a full disk: the next start waits for the model
            write_text(self.path, json.dumps({"key": self.key, "model": model}))
