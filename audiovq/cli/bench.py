"""`audiovq bench`: how fast a model generates."""

from __future__ import annotations

import click

from audiovq.cli.group import main
from audiovq.cli.options import FOLDER, json_option, number_list, pick_model, write_json


@main.command()
@click.argument("model", type=FOLDER, required=False)
@click.option("--batch", callback=number_list(int), default="1,8", show_default=True, help="Pieces at once.")
@click.option(
    "--precision", default="auto", show_default=True, help="fp32, fp16, bf16, int8, auto, or all; or several."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU; default all.")
@json_option
def bench(model: str | None, batch: list[int], precision: str, threads: int | None, json_file: str | None) -> None:
    """Codes and seconds of audio that MODEL generates a second, against what the memory allows."""
    import torch

    from audiovq import api
    from audiovq.evaluation.bench import bench_priors, bench_table

    generator = api.Generator.from_pretrained(pick_model(model))
    torch.set_num_threads(threads or torch.get_num_threads())
    result = bench_priors(generator.priors, batch, precision.split(","))
    if json_file != "-":
        click.echo("\n".join(bench_table(result)))
    write_json(json_file, result)
