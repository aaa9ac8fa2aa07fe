"""`audiovq completion`: commands, options and files completed by the shell."""

from __future__ import annotations

import os
from pathlib import Path

import click

from audiovq.cli.group import main
from audiovq.cli.options import SHELLS, completion_script


@main.command()
@click.argument("name", metavar="[bash|zsh|fish]", required=False, type=click.Choice(SHELLS))
def completion(name: str | None) -> None:
    """Print what makes a shell complete commands, options, recipes and files; default for the shell you are in.

    \b
    bash:  mkdir -p ~/.local/share/bash-completion/completions
           audiovq completion bash > ~/.local/share/bash-completion/completions/audiovq
    zsh:   audiovq completion zsh > "${fpath[1]}/_audiovq"    (or another folder of $fpath)
    fish:  audiovq completion fish > ~/.config/fish/completions/audiovq.fish

    Then open a new shell.
    """
    found = name or Path(os.environ.get("SHELL", "")).name
    if found not in SHELLS:
        raise ValueError(f"completion: expected one of {', '.join(SHELLS)}, found {found or 'no $SHELL'}")
    click.echo(completion_script(main, found))
