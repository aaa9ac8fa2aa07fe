"""`audiovq report`: a page to listen to."""

from __future__ import annotations

from pathlib import Path

import click

from audiovq.cli.group import main
from audiovq.cli.options import FILE, FOLDER, json_option, pick_model, write_json


@main.command("report")
@click.argument("run", type=FOLDER, required=False)
@click.option("--out", type=FILE, metavar="FILE", help="HTML file to write; default report.html in the run.")
@json_option
def listening_report(run: str | None, out: str | None, json_file: str | None) -> None:
    """Write one HTML page that says and plays what RUN (default: the newest) has reached: sounds, blind test, curves."""
    from audiovq.report import report_run

    facts = report_run(pick_model(None, prior=False) if run is None else Path(run), Path(out) if out else None)
    if json_file != "-":
        click.echo(facts["report"])
    write_json(json_file, facts)
