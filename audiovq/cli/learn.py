"""`train`, `plan`, `recipes`: from music to models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from audiovq.cli import options
from audiovq.cli.group import main, report_option
from audiovq.cli.options import FOLDER, json_option, write_json


def _recipe_names() -> list[str]:
    from audiovq.config import recipe_folders

    return sorted(
        {path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")} - {"base"}
    )  # which is there to be extended


def _stage_names() -> tuple[str, ...]:
    return "tokenizer", "decoder", "codes", "priors"


@main.command()
@click.argument("recipe", type=options.Name(_recipe_names))
@click.option("--data", type=FOLDER, metavar="DIR", help="Folder of music; replaces the recipe's.")
@click.option("--codes", metavar="URL", help="Codes of another run, a folder or URL: only the priors are trained.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run folder; default runs/<recipe name>.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: a.b=value (repeatable)."
)
@click.option(
    "--stage", "stages", type=options.Name(_stage_names), multiple=True, metavar="STAGE",
    help="Only tokenizer, decoder, codes or priors (repeatable).",
)  # fmt: skip
@click.option("--gpus", type=click.IntRange(min=1), help="Use so many GPUs; default all.")
@click.option("--processes", type=click.IntRange(min=1), help="Use so many processes on the CPU, and no GPU.")
@report_option
@json_option
def train(
    recipe: str, data: str | None, codes: str | None, out: str | None, overrides: tuple[str, ...],
    stages: tuple[str, ...], gpus: int | None, processes: int | None, page: bool, json_file: str | None,
) -> None:  # fmt: skip
    """Train all stages of RECIPE (a file or a name); run it again to go on after an interruption."""
    from audiovq.distributed import launch
    from audiovq.pipeline.run import STAGES, Run
    from audiovq.recipe import load_recipe
    from audiovq.report.describe import describe_run

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stage {unknown[0]}: expected one of {', '.join(STAGES)}")
    loaded = load_recipe(recipe, data, overrides, codes)
    if launch.run_on_several(sys.argv[1:], gpus, processes, useful=loaded.smallest_batch):
        return
    with launch.processes():
        run = Run(loaded, Path(out or Path("runs") / loaded.name), page)
        run.go(tuple(stage for stage in STAGES if stage in stages) or STAGES)
        if json_file and run.main:
            write_json(json_file, describe_run(run.folder))


@main.command()
@click.argument("recipe", type=options.Name(_recipe_names))
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


@main.command()
@json_option
def recipes(json_file: str | None) -> None:
    """List the recipes that come with audiovq, with the purpose of each."""
    from audiovq.recipe import header, recipe_folders

    found = sorted({p.stem: p for folder in reversed(recipe_folders()) for p in folder.glob("*.yaml")}.values())
    if json_file != "-":
        click.echo("\n".join(f"{path.stem:12} {header(path).get('purpose', '')}" for path in found))
    write_json(json_file, [{"name": path.stem, "file": str(path), **header(path)} for path in found])
