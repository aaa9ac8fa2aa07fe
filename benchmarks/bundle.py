"""Export a finished run, in half precision, to where the bundled model lies: weights, configs and its card.

    python benchmarks/bundle.py runs/default audiovq/models/default --credits music/CARD.md

Rounding the tokenizer changes its hash, so the priors are told the new one. What lies there is replaced. Prints the size.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from audiovq.pretrained.export import export_model


@click.command()
@click.argument("run")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--credits", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of the music, for the card."
)
def main(run: str, target: Path, credits: Path | None) -> None:
    """Replace TARGET by the models of RUN."""
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / "model"
        lines = export_model(run, made, half=True, license="mit", credits=credits, repo_id="default")
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    click.echo("\n".join(lines).replace(str(made), str(target)))


if __name__ == "__main__":
    main()
