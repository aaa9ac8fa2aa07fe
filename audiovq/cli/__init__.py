"""The commands, one file each. A command parses its options, calls the layers below and prints.

The layers below are imported within the commands, so that `audiovq --help` does not load torch.
"""

from audiovq.cli.main import main

__all__ = ["main"]
