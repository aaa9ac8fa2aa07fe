"""The command, in which a process stops itself once in each stage that DEATHS names, such as `tokenizer:1:SIGKILL`: a
stage, a rank and a signal. Files in DEATHS_FOLDER say who has. Only the moment is arranged; all else is real."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audiovq.cli import main
from audiovq.data.scan_cache import ScanCache
from audiovq.training import encode_stage
from audiovq.training.loop import Training


def die(stage: str) -> None:
    for name, rank, number in (word.split(":") for word in os.environ["DEATHS"].split()):
        mark = Path(os.environ["DEATHS_FOLDER"]) / stage
        if (name, rank) == (stage, os.environ.get("RANK", "0")) and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.Signals[number])


def and_then(owner: Any, name: str, stage: Callable[..., str]) -> None:
    """After a call of this function, the process may die."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        result = function(*arguments)
        die(stage(*arguments))
        return result

    setattr(owner, name, wrapped)


def second_step(training: Training, step: int, _: Any) -> str:
    if step != 1:
        return ""
    training.checkpoints.wait()  # that after the first step is whole, on a busy machine, too
    return training.task.title


if __name__ == "__main__":
    and_then(ScanCache, "add", lambda *_: "scan")
    and_then(encode_stage, "_encode_track", lambda *_: "codes")
    and_then(Training, "step", second_step)
    main()
