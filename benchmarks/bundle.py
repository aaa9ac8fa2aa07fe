"""Export a finished run, in half precision, as the model that comes with audiovq: weights, configs and model card.

    python benchmarks/bundle.py runs/default audiovq/models/default --credits music/CARD.md

Rounding changes the tokenizer's hash, so the priors get the new one. A model that is there is replaced. What the studio says
of the bundled model before it is loaded is written, too; without arguments, this alone, as after a change of its card.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import click

from audiovq.pretrained.export import export_model
from audiovq.pretrained.locate import bundled_model
from audiovq.studio.requests import Limits
from audiovq.studio.server import BUNDLED, open_studio

LICENCES = Path(__file__).parent.parent / "recipes" / "default" / "LICENCES.md"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("run", required=False)
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option("--credits", type=FILE, help="Of the music, for the card.")
@click.option("--license", default="other", show_default=True, help="As the Hugging Face hub names it.")
@click.option("--license-name", default="see-model-card", show_default=True, help="With the license `other`.")
@click.option("--license-text", type=FILE, default=LICENCES, help="Markdown; default recipes/default/LICENCES.md.")
def main(
    run: str | None, target: Path | None, credits: Path | None, license: str, license_name: str, license_text: Path
) -> None:
    """Replace TARGET by the models of RUN."""
    if run and not target:
        raise click.UsageError("expected TARGET, the folder of the bundled model, after RUN")
    if run and target:
        export(run, target, credits, license, license_name, license_text)
    with tempfile.TemporaryDirectory() as place:
        projects = Path(place)
        with open_studio(bundled_model(), "the bundled model", projects, Limits()) as (_, studio):
            studio.loading.result()
        written = json.loads((projects / "model.json").read_text())
    written["key"] = written["key"].split()[1]  # without the version
    BUNDLED.write_text(json.dumps(written, indent=1) + "\n")


def export(run: str, target: Path, credits: Path | None, license: str, license_name: str, license_text: Path) -> None:
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
