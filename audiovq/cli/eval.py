"""`audiovq eval`: how good a model is."""

from __future__ import annotations

import click

from audiovq.cli.group import main
from audiovq.cli.options import FOLDER, json_option, write_json


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
