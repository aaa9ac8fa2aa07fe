"""The commands, one file each. A command parses its options, calls the layers below and prints.

Only the body of a command imports what needs torch, so `audiovq --help` is quick.
"""

from audiovq.cli import (
    bench,
    completion,
    copies,
    decode,
    doctor,
    encode,
    eval,
    export,
    info,
    plan,
    push,
    recipes,
    report,
    sample,
    studio,
    train,
)
from audiovq.cli.group import main

__all__ = [
    "bench",
    "completion",
    "copies",
    "decode",
    "doctor",
    "encode",
    "eval",
    "export",
    "info",
    "main",
    "plan",
    "push",
    "recipes",
    "report",
    "sample",
    "studio",
    "train",
]
