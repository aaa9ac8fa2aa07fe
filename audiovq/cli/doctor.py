"""`audiovq doctor`: whether audiovq works on this machine."""

from __future__ import annotations

import sys

import click

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
