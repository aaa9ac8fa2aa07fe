"""Learning curves of a run: held-out metrics of each stage, and its priors next to untrained ones.

    python benchmarks/learning_curves.py runs/default
    python benchmarks/learning_curves.py runs/default --other runs/again   # another run of the recipe

For a prior: bits per second of audio on held-out windows at each evaluation, then on all held-out codes, next to
an untrained network and a unigram model. For a tokenizer: loss and mel term of held-out crops.
`--other` compares the training losses of the steps that both runs logged.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from audiovq import api
from audiovq.data.shards import Shards
from audiovq.evaluation.code_statistics import held_out_bits
from audiovq.pretrained import checkpoint
from audiovq.prior.prior import Prior
from audiovq.recipe import codes_place


def rows(run: Path, stage: str) -> dict[int, dict[str, float]]:
    """The metrics of a stage, by step."""
    found: dict[int, dict[str, float]] = {}
    path = run / "training" / stage / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        found.setdefault(row["step"], {}).update(row)
    return found


def stages(run: Path) -> list[str]:
    return ["tokenizer", *(folder.name for folder in api.prior_folders(run))]


def curve(run: Path, stage: str) -> str:
    names = ("valid_loss", "valid_mel") if stage == "tokenizer" else ("valid_bits_per_second", "bits_per_second")
    held_out = {step: row for step, row in rows(run, stage).items() if names[0] in row}
    points = [
        f"{step}: {' / '.join(f'{row[name]:.4g}' for name in names if name in row)}" for step, row in held_out.items()
    ]
    return f"{stage}, {' / '.join(names)} at step " + ", ".join(points)


def untrained(prior: Prior, seed: int) -> Prior:
    torch.manual_seed(seed)
    return Prior(prior.config, prior.spec).eval()


def priors(run: Path) -> str:
    shards = Shards(codes_place(run))
    report = json.loads((run / "report.json").read_text())
    lines = [
        "| level | parameters, M | untrained | unigram | prior | of unigram |",
        "|---|---|---|---|---|---|",
    ]
    total: dict[str, float] = {}
    for level, folder in enumerate(api.prior_folders(run)):
        prior, _ = checkpoint.load_prior(folder)
        statistics, rate = report["levels"][level], prior.spec.code_rate
        found = {
            "untrained": held_out_bits(untrained(prior, 0), shards, report["split"], limit=256)["bits_per_second"],
            "unigram": statistics["unigram_bits_per_code"] * rate,
            "prior": statistics["bits_per_second"],
        }
        total = {name: total.get(name, 0.0) + value for name, value in found.items()}
        size = sum(p.numel() for p in prior.parameters()) / 1e6
        lines.append(line(str(level), f"{size:.1f}", found))
    return "\n".join([*lines, line("together", "", total)])


def line(name: str, size: str, found: dict[str, float]) -> str:
    cells = " | ".join(f"{value:.0f}" for value in found.values())
    return f"| {name} | {size} | {cells} | {found['prior'] / found['unigram']:.0%} |"


def compare(run: Path, other: Path) -> str:
    lines = []
    for stage in stages(run):
        a, b = rows(run, stage), rows(other, stage)
        for step in sorted(set(a) & set(b)):
            if "loss" in a[step] and "loss" in b[step]:
                x, y = a[step]["loss"], b[step]["loss"]
                lines.append(f"| {stage} | {step} | {x:.4f} | {y:.4f} | {abs(x - y) / x:.2%} |")
    head = [f"| stage | step | loss, {run.name} | {other.name} | apart |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines])


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--other", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another run of the same recipe."
)
def main(run: Path, other: Path | None) -> None:
    """Learning curves of RUN."""
    if other is not None:
        click.echo(compare(run, other))
        return
    for stage in stages(run):
        click.echo(curve(run, stage))
    click.echo("\nbits per second of audio on held-out tracks\n\n" + priors(run))


if __name__ == "__main__":
    main()
