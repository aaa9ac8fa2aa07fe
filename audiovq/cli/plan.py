"""`audiovq plan`: what a recipe would take."""

from click import FloatRange, IntRange, command, option

from audiovq.cli.options import POSITIVE, data_option, json_option, recipe_argument, set_option, show

SHARE = FloatRange(0, 1, min_open=True)


@command()
@recipe_argument
@data_option
@set_option
@option("--gpus", type=IntRange(min=1), help="Estimate for this many GPUs that are not here.")
@option("--device-memory", metavar="SIZE", help="Memory of each GPU, such as 80GB; default 80GB.")
@option("--device-tflops", type=POSITIVE, help="Dense bfloat16 TFLOPS of each; default 312 (A100).")
@option("--utilisation", type=SHARE, help="Share of the TFLOPS that training reaches; default 0.3.")
@json_option
def plan(
    recipe: str, data: str | None, overrides: tuple[str, ...], gpus: int | None, device_memory: str | None,
    device_tflops: float | None, utilisation: float | None, json_file: str | None,
) -> None:  # fmt: skip
    """Estimate memory and hours of each stage of RECIPE: here, or on GPUs that are not here."""
    from audiovq.pipeline.before_training import with_music
    from audiovq.planning.estimate import far_device, make_plan, music_seconds, plan_lines
    from audiovq.pretrained.adopt import adopt_pretrained
    from audiovq.recipe import load_recipe

    elsewhere = gpus or device_memory or device_tflops or utilisation
    device = far_device(device_memory, device_tflops, utilisation) if elsewhere else None
    loaded = with_music(adopt_pretrained(load_recipe(recipe, data, overrides)))
    result = make_plan(loaded, music_seconds(loaded), device=device, n_devices=gpus or 1)
    show(plan_lines(result), result, json_file)
