"""`audiovq train`: from a folder of music to models."""

import sys
from pathlib import Path

from click import Choice, IntRange, command, option

from audiovq.cli import options

STAGES = ("tokenizer", "decoder", "codes", "priors")
CODES_HELP = "Codes of another run, a folder or URL: only the priors are trained."
STAGE_HELP = "Only this stage: tokenizer, decoder, codes or priors (repeatable)."


@command()
@options.recipe_argument
@options.data_option
@option("--codes", metavar="URL", help=CODES_HELP)
@option("--out", type=options.FOLDER, metavar="DIR", help="Run folder; default runs/<recipe name>.")
@options.set_option
@option("--stage", "stages", type=Choice(STAGES), multiple=True, metavar="STAGE", help=STAGE_HELP)
@option("--gpus", type=IntRange(min=1), help="Use this many GPUs; default all.")
@option("--processes", type=IntRange(min=1), help="Use this many processes on the CPU, and no GPU.")
@options.report_option
@option("--profile", is_flag=True, help="Record the time of everything in a few steps of each stage.")
@options.json_option
def train(
    recipe: str, data: str | None, codes: str | None, out: str | None, overrides: tuple[str, ...],
    stages: tuple[str, ...], gpus: int | None, processes: int | None, page: bool, profile: bool, json_file: str | None,
) -> None:  # fmt: skip
    """Train all stages of RECIPE (a file or a name). After an interruption the same command resumes the run."""
    from audiovq.distributed import collectives, launch
    from audiovq.pipeline.before_training import announce_duration, with_music
    from audiovq.pipeline.run import Run
    from audiovq.pipeline.run_folder import RunFolder
    from audiovq.recipe import load_recipe, load_saved_recipe
    from audiovq.report.describe import describe_run

    loaded = load_recipe(recipe, data, overrides, codes)
    folder, wanted = Path(out or Path("runs") / loaded.name), tuple(s for s in STAGES if s in stages) or STAGES
    saved = folder / "recipe.yaml"  # which has the levels of a pretrained tokenizer
    done = RunFolder(folder, load_saved_recipe(saved) if saved.is_file() else loaded)
    batches = loaded.batch_sizes([stage for stage in wanted if not done.is_done(stage)])
    key = min(batches, key=lambda key: batches[key], default=None)
    limit = (batches[key], f"{key} is {batches[key]}") if key else None
    if launch.run_on_several(sys.argv[1:], gpus, processes, limit):
        return
    with launch.processes(folder):
        run = Run(with_music(loaded, folder), folder, page, profile)
        missing = [stage for stage in wanted if not run.files.is_done(stage)]
        run.flops = announce_duration(run.files, missing, collectives.world_size())
        run.go(wanted)
        if json_file and run.main:
            options.write_json(json_file, describe_run(run.folder))
