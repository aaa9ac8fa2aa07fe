"""`audiovq eval`: how good a tokenizer, or generated music, is."""

from typing import Any

from click import IntRange, argument, command, option

from audiovq.cli.options import FILE, FOLDER, json_option, write_json


@command("eval")
@argument("model", type=FOLDER)
@argument("data", type=FILE, required=False)
@json_option
@option("--generated", type=int, metavar="N", help="Compare N generated pieces with real music instead.")
@option("--notes", is_flag=True, help="Also compare transcribed notes; needs audiovq[notes].")
@option("--seconds", type=float, default=20.0, show_default=True, help="Length of each generated piece.")
@option("--seed", type=IntRange(min=0), default=0, show_default=True, help="Seed of the generated pieces.")
def evaluate(
    model: str, data: str | None, json_file: str | None, generated: int | None, notes: bool, **pieces: Any
) -> None:
    """Measure how well MODEL reconstructs the music in DATA, or how similar music MODEL generates.

    Default of DATA: the held-out tracks of the run.
    """
    from audiovq.evaluation import evaluate_generator, evaluate_tokenizer

    if generated is None:
        report = evaluate_tokenizer.evaluate_model(model, data, notes)
    else:
        report = evaluate_generator.evaluate_generated(model, data, generated, notes=notes, **pieces)
    if json_file != "-":
        (evaluate_tokenizer if generated is None else evaluate_generator).print_tables(report)
    write_json(json_file, report)
