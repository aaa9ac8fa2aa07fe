"""`audiovq export`: a model folder to share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from audiovq.cli.group import main


@main.command()
@click.argument("run")
@click.argument("folder", metavar="DIR")
@click.option("--fp16", "half", is_flag=True, help="Half-precision weights: half the size, and codes of their own.")
@click.option("--onnx", is_flag=True, help="Also the tokenizer as ONNX files; needs the extra audiovq[onnx].")
@click.option("--license", metavar="ID", help="Of the weights, as the hub names it: mit, cc-by-4.0, …")
@click.option("--credits", "credits_file", metavar="FILE", help="For the model card; default CREDITS beside the music.")
@click.option("--name", "repo_id", metavar="OWNER/NAME", help="On the hub, for the examples in the model card.")
def export(run: str, folder: str, credits_file: str | None, **options: Any) -> None:
    """Write the models of RUN into the new folder DIR, to share: weights, configs and a model card."""
    from audiovq.pretrained.export import export_model

    credits_path = Path(credits_file) if credits_file else None
    click.echo("\n".join(export_model(run, Path(folder), credits=credits_path, **options)))
