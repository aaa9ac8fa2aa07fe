"""`audiovq bench`: how fast a model generates."""

from click import IntRange, argument, command, option

from audiovq.cli.options import FOLDER, json_option, number_list, pick_model, show

PRECISION_HELP = "fp32, fp16 (CPU) or bf16 (GPU), auto, or all; several are separated by commas."


@command()
@argument("model", type=FOLDER, required=False)
@option("--batch", callback=number_list(int), default="1,8", show_default=True, help="Pieces at once.")
@option("--precision", default="auto", show_default=True, help=PRECISION_HELP)
@option("--threads", type=IntRange(min=1), help="CPU threads; default all.")
@json_option
def bench(model: str | None, batch: list[int], precision: str, threads: int | None, json_file: str | None) -> None:
    """Measure how fast MODEL generates, in codes and seconds of audio, and compare with memory bandwidth."""
    import torch

    from audiovq import api
    from audiovq.evaluation.bench import bench_priors, bench_table

    generator = api.Generator.from_pretrained(pick_model(model))
    torch.set_num_threads(threads or torch.get_num_threads())
    result = bench_priors(generator.priors, batch, precision.split(","))
    show(bench_table(result), result, json_file)
