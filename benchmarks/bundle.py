"""Export a finished run, in half precision, as the model that comes with audiovq: weights, configs and model card.

    python benchmarks/bundle.py runs/default audiovq/models/default --credits music/CARD.md

Rounding changes the tokenizer's hash, so the priors get the new one. A model that is there is replaced.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from audiovq.pretrained.export import export_model

LICENCES = Path(__file__).parent.parent / "recipes" / "default" / "LICENCES.md"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("run")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--credits", type=FILE, help="Of the music, for the card.")
@click.option("--license", default="other", show_default=True, help="As the Hugging Face hub names it.")
@click.option("--license-name", default="see-model-card", show_default=True, help="With the license `other`.")
@click.option("--license-text", type=FILE, default=LICENCES, help="Markdown; default recipes/default/LICENCES.md.")
def main(run: str, target: Path, credits: Path | None, license: str, license_name: str, license_text: Path) -> None:
    """Replace TARGET by the models of RUN."""
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / "model"
        lines = export_model(
            run,
            made,
            half=True,
            repo_id="default",
            credits=credits,
            license=license,
            license_name=license_name if license == "other" else None,
            license_text=license_text.read_text(encoding="utf-8"),
        )
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    click.echo("\n".join(lines).replace(str(made), str(target)))


if __name__ == "__main__":
    main()
