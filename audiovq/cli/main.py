"""The command `audiovq`: a group of commands whose errors are one line each."""

import os
import re
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

from audiovq.cli.options import arrange
from audiovq.utils import compat
from audiovq.utils.environment import print_anything, printable
from audiovq.utils.signals import Interrupted

# Each is a function in the module of its name.
COMMANDS = (
    *("codes", "copies", "decode", "doctor", "encode", "evaluate", "export", "info"),
    *("live", "plan", "push", "recipes", "report", "sample", "studio", "train"),
)
COMPILED_LIBRARY = re.compile(r"\.(so|dylib|pyd|dll)\b")  # its name is in the OSError if it cannot load


class OneLineErrors(click.Group):
    """Errors that the user can correct are one line and exit code 2; `--debug` adds the traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        print_anything()
        given = kwargs.pop("args", None) or (args[0] if args else None)
        arguments = arrange(sys.argv[1:] if given is None else given)
        debug = "--debug" in arguments
        try:
            os.getcwd()
        except OSError:  # otherwise libraries fail without naming the cause
            _fail("the current folder does not exist any more; change to another one", 2)
        try:
            arguments = compat.current_options(arguments)
            return super().main(arguments, *args[1:], **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", 130)
        except click.ClickException as error:
            _fail(error.format_message(), 2)
        except Interrupted as error:
            if os.environ.get("RANK", "0") == "0":  # one of several processes prints it
                click.echo(f"audiovq: {error}; give the same command again", err=True)
            sys.exit(128 + error.signal_number)
        except BrokenPipeError:  # the reader of the output closed it, as `audiovq … | head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except Exception as error:
            if debug:
                traceback.print_exc()
            cannot_load = isinstance(error, OSError) and COMPILED_LIBRARY.search(str(error))
            if isinstance(error, ImportError) or cannot_load:
                _fail(f"{error}; `audiovq doctor` finds the broken package", 2)
            if isinstance(error, (ValueError, OSError)):
                _fail(str(error), 2)
            advice = "please report it with the output of this command with --debug and of `audiovq doctor`"
            _fail(f"internal error: {type(error).__name__}: {error}; {advice}", 1)


def _fail(message: str, code: int) -> NoReturn:
    click.echo("audiovq: " + printable(" ".join(message.split())), err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
@click.version_option(package_name="audiovq")
def main(debug: bool) -> None:
    """Learn to make music from a folder of music."""


for name in COMMANDS:
    main.add_command(getattr(import_module(f"audiovq.cli.{name}"), name))
