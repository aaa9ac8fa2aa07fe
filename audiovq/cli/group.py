"""The command `audiovq`: errors in one line, and what its commands have in common."""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Any

import click

from audiovq.cli.options import arrange
from audiovq.utils import compat
from audiovq.utils.signals import Interrupted

LIBRARY = re.compile(r"\.(so|dylib|pyd|dll)\b")  # in what the loader says if a package's compiled part does not load


class OneLineErrors(click.Group):
    """Whatever the user can mend is one line and exit code 2; `--debug` shows where it was raised."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop("args", None) or (args[0] if args else None)
        arguments = compat.current_options(arrange(sys.argv[1:] if given is None else given))
        debug = "--debug" in arguments
        try:
            return super().main(arguments, *args[1:], **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", 130)
        except click.ClickException as error:
            _fail(error.format_message(), 2)
        except Interrupted as error:
            if os.environ.get("RANK", "0") == "0":  # of many processes one says it
                click.echo(f"audiovq: {error}; the same command goes on from there", err=True)
            sys.exit(128 + error.signal_number)
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (ValueError, OSError, ImportError) as error:
            traceback.print_exc() if debug else None
            advice = "; `audiovq doctor` says which package is at fault and what to do" if _does_not_load(error) else ""
            _fail(f"{error}{advice}", 2)
        except Exception as error:
            traceback.print_exc() if debug else None
            how = "please report it with what the same command with --debug and `audiovq doctor` print"
            _fail(f"internal error: {type(error).__name__}: {error}; {how}", 1)


def _does_not_load(error: Exception) -> bool:
    """Whether a package is missing or broken, not what the user gave."""
    return isinstance(error, ImportError) or (isinstance(error, OSError) and bool(LIBRARY.search(str(error))))


def _fail(message: str, code: int) -> None:
    click.echo("audiovq: " + " ".join(message.split()), err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error was raised.")
@click.version_option(package_name="audiovq")
def main(debug: bool) -> None:
    """Learn to make music from a folder of music."""
