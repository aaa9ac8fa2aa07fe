"""`audiovq train`: from music to a model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from audiovq.cli.group import main
from audiovq.cli.options import FOLDER, Name, json_option, recipe_names, report_option, write_json

STAGES = ("tokenizer", "decoder", "codes", "priors")


@main.command()
@click.argument("recipe", type=Name(recipe_names))
@click.option("--data", type=FOLDER, metavar="DIR", help="Folder of music; replaces the recipe's.")
@click.option("--codes", metavar="URL", help="Codes of another run, a folder or URL: only the priors are trained.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run folder; default runs/<recipe name>.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: a.b=value (repeatable)."
)
@click.option(
    "--stage", "stages", type=Name(lambda: STAGES), multiple=True, metavar="STAGE",
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
    from audiovq.pipeline.run import Run
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
