"""`audiovq plan`: what a recipe takes."""

from __future__ import annotations

from typing import Any

import click

from audiovq.cli.group import main
from audiovq.cli.options import FOLDER, Name, json_option, recipe_names, write_json


@main.command()
@click.argument("recipe", type=Name(recipe_names))
@click.option("--data", type=FOLDER, metavar="DIR", help="Folder of music; replaces the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe value (repeatable).")
@click.option("--gpus", type=click.IntRange(min=1), help="Predict for so many GPUs that are not here.")
@click.option("--device-memory", metavar="SIZE", help="Of each of them, such as 80GB; default 80GB.")
@click.option(
    "--device-tflops", type=click.FloatRange(min=0, min_open=True), help="Dense bfloat16; default 312 (A100)."
)
@click.option("--device-bandwidth", type=click.FloatRange(min=0, min_open=True), help="Terabytes a second; default 2.")
@click.option(
    "--utilisation", type=click.FloatRange(0, 1, min_open=True), help="Share of the TFLOPS that is used; default 0.5."
)
@json_option
def plan(recipe: str, data: str | None, overrides: tuple[str, ...], json_file: str | None, **device: Any) -> None:
    """Memory, hours and disk that RECIPE would take, stage by stage: here, or on GPUs that are not here."""
    from audiovq.planning.estimate import make_plan, parse_device, plan_lines
    from audiovq.recipe import load_recipe

    loaded = load_recipe(recipe, data, overrides)
    result = make_plan(loaded, *parse_device(**device))
    if json_file != "-":
        click.echo("\n".join(plan_lines(result)))
    write_json(json_file, result)
