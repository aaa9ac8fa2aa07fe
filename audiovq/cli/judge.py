"""`eval`, `copies`, `bench`, `report`, `info`: what a model, a piece or a run is worth."""

from __future__ import annotations

from pathlib import Path

import click

from audiovq.cli.group import main, pick_model
from audiovq.cli.options import FILE, FOLDER, json_option, number_list, write_json


@main.command("eval")
@click.argument("model", type=FOLDER)
@click.argument("data", type=FOLDER, required=False)
@json_option
@click.option("--perceptual", is_flag=True, help="Add a mean opinion score; needs the extra audiovq[perceptual].")
@click.option("--generated", type=int, metavar="N", help="Judge N generated pieces beside real music instead.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Length of each generated piece.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the generated pieces.")
def evaluate(model: str, data: str | None, json_file: str | None, perceptual: bool, generated: int | None, seconds: float,
             seed: int) -> None:  # fmt: skip
    """How well MODEL reconstructs the music in DATA (default: what its run holds out), or how like it MODEL generates."""
    from audiovq.evaluation import evaluate_generator, evaluate_tokenizer

    if generated is None:
        report = evaluate_tokenizer.evaluate_model(model, data, perceptual)
    else:
        report = evaluate_generator.evaluate_generated(model, data, generated, seconds, seed)
    if json_file != "-":
        (evaluate_tokenizer if generated is None else evaluate_generator).print_tables(report)
    write_json(json_file, report)


@main.command()
@click.argument("piece", type=FILE)
@click.argument("run", type=FOLDER)
@json_option
def copies(piece: str, run: str, json_file: str | None) -> None:
    """Find the longest runs of codes that PIECE (audio or codes) shares with the training tracks of RUN."""
    from audiovq import api
    from audiovq.data.shards import Shards
    from audiovq.evaluation.copies import copy_reports, report_lines
    from audiovq.pipeline.sample import read_piece
    from audiovq.recipe import codes_place

    tokenizer = api.Tokenizer.from_pretrained(run)
    report = copy_reports([read_piece(tokenizer, piece)], Shards(codes_place(api.resolve_model(run))))[0]
    if json_file != "-":
        click.echo("\n".join(report_lines(report)))
    write_json(json_file, report)


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


@main.command("report")
@click.argument("run", type=FOLDER, required=False)
@click.option("--out", type=FILE, metavar="FILE", help="HTML file to write; default report.html in the run.")
@json_option
def listening_report(run: str | None, out: str | None, json_file: str | None) -> None:
    """Write one HTML page that says and plays what RUN (default: the newest) has reached: sounds, blind test, curves."""
    from audiovq.report import report_run

    facts = report_run(pick_model(None, prior=False) if run is None else Path(run), Path(out) if out else None)
    if json_file != "-":
        click.echo(facts["report"])
    write_json(json_file, facts)


@main.command()
@click.argument("place", type=FILE)
@json_option
def info(place: str, json_file: str | None) -> None:
    """Say what PLACE is: an audio file, a codes file, a model folder or a run folder; always as JSON."""
    from audiovq.report.describe import describe

    facts = describe(Path(place))
    for file in {"-", json_file or "-"}:
        write_json(file, facts)
