"""`doctor`, `completion`: audiovq on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from audiovq.cli import options
from audiovq.cli.group import main
from audiovq.cli.options import json_option, write_json


@main.command()
@json_option
def doctor(json_file: str | None) -> None:
    """Look whether audiovq can work here, and try it; says what to do about each problem. Exit code 1 if it cannot."""
    from audiovq.pipeline.doctor import examine, is_broken

    findings = []
    for finding in examine():
        findings.append(finding)
        if json_file != "-":
            click.echo(finding.line)
    write_json(json_file, {"works": not is_broken(findings), "findings": [vars(finding) for finding in findings]})
    sys.exit(1 if is_broken(findings) else 0)


@main.command()
@click.argument("name", metavar="[bash|zsh|fish]", required=False, type=click.Choice(options.SHELLS))
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
    if found not in options.SHELLS:
        raise ValueError(f"completion: expected one of {', '.join(options.SHELLS)}, found {found or 'no $SHELL'}")
    click.echo(options.completion_script(main, found))
