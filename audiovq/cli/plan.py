"""`audiovq plan`: what a recipe would take."""

from typing import Any

from click import FloatRange, IntRange, command, option

from audiovq.cli.options import POSITIVE, data_option, json_option, recipe_argument, set_option, show

SHARE = FloatRange(0, 1, min_open=True)
UTILISATION_HELP = "Share of the TFLOPS that training reaches; default 0.5."


@command()
@recipe_argument
@data_option
@set_option
@option("--gpus", type=IntRange(min=1), help="Predict for this many GPUs that are not here.")
@option("--device-memory", metavar="SIZE", help="Memory of each GPU, such as 80GB; default 80GB.")
@option("--device-tflops", type=POSITIVE, help="Dense bfloat16 TFLOPS of each; default 312 (A100).")
@option("--device-bandwidth", type=POSITIVE, help="Memory bandwidth of each in TB/s; default 2.")
@option("--utilisation", type=SHARE, help=UTILISATION_HELP)
@json_option
def plan(recipe: str, data: str | None, overrides: tuple[str, ...], json_file: str | None, **device: Any) -> None:
    """Estimate memory, hours and disk of each stage of RECIPE: here, or on GPUs that are not here."""
    from audiovq.planning.estimate import make_plan, parse_device, plan_lines
    from audiovq.recipe import load_recipe

    result = make_plan(load_recipe(recipe, data, overrides), *parse_device(**device))
    show(plan_lines(result), result, json_file)
