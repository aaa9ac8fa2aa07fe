"""`audiovq info`: what a file or folder is."""

from __future__ import annotations

from pathlib import Path

import click

from audiovq.cli.group import main
from audiovq.cli.options import FILE, json_option, write_json


@main.command()
@click.argument("place", type=FILE)
@json_option
def info(place: str, json_file: str | None) -> None:
    """Say what PLACE is: an audio file, a codes file, a model folder or a run folder; always as JSON."""
    from audiovq.report.describe import describe

    facts = describe(Path(place))
    for file in {"-", json_file or "-"}:
        write_json(file, facts)
