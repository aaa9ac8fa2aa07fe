"""`audiovq push`: a model folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from audiovq.cli.group import main


@main.command()
@click.argument("folder", metavar="DIR")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Only for you, if it is made now.")
@click.option("--revision", metavar="BRANCH", help="Default the main branch.")
@click.option("--dry-run", is_flag=True, help="Only list what would be sent.")
def push(folder: str, repo_id: str, **options: Any) -> None:
    """Send DIR, which `export` wrote, to the Hugging Face hub as OWNER/NAME."""
    from audiovq import api

    click.echo("\n".join(api.push_folder(Path(folder), repo_id, **options)))
