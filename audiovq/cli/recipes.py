"""`audiovq recipes`: the recipes that come with the package."""

from __future__ import annotations

import click

from audiovq.cli.group import main
from audiovq.cli.options import json_option, write_json


@main.command()
@json_option
def recipes(json_file: str | None) -> None:
    """List the recipes that come with audiovq, with the purpose of each."""
    from audiovq.recipe import header, recipe_folders

    found = sorted({p.stem: p for folder in reversed(recipe_folders()) for p in folder.glob("*.yaml")}.values())
    if json_file != "-":
        click.echo("\n".join(f"{path.stem:12} {header(path).get('purpose', '')}" for path in found))
    write_json(json_file, [{"name": path.stem, "file": str(path), **header(path)} for path in found])
