"""`audiovq sample`: new music."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from audiovq.cli.group import main
from audiovq.cli.options import (
    FILE,
    json_option,
    label_pairs,
    model_option,
    number_list,
    pick_model,
    report_option,
    write_json,
)


@main.command()
@model_option
@click.option("--seconds", type=float, help="Length of each piece, a prompt included; default 20.")
@click.option("--seed", type=click.IntRange(min=0), help="Same seed, same music; default a new one, which is printed.")
@click.option("--num", type=int, default=1, show_default=True, help="How many pieces.")
@click.option(
    "--index", type=click.IntRange(min=0), help="Number of the first piece: --index 3 is the fourth of --num 8."
)
@click.option(
    "--temperature",
    callback=number_list(float),
    help="Above 1 wilder, below 1 tamer; one value or one a level: 1,0.9,0.9.",
)
@click.option(
    "--top-k", callback=number_list(int), help="Draw from the k likeliest codes; 0 is all. One value or one a level."
)
@click.option(
    "--top-p",
    callback=number_list(float),
    help="Draw from the likeliest codes that make up p. One value or one a level.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Such as genre=folk (repeatable).")
@click.option("--text", default="", help="A caption or lyrics, for a model that was trained with them.")
@click.option("--chroma", type=FILE, metavar="SONG", help="A recording whose melody and harmony are followed.")
@click.option(
    "--guidance",
    callback=number_list(float),
    help="How strongly label, text and chroma are followed; 1 as trained. One value or one a level.",
)
@click.option("--prompt", type=FILE, metavar="CLIP", help="Audio or codes file to continue.")
@click.option("--edit", "source", type=FILE, metavar="FILE", help="Audio or codes file to change, as the next six say.")
@click.option("--from", "start", type=float, metavar="SECONDS", help="Draw anew from here; default the beginning.")
@click.option("--to", "end", type=float, metavar="SECONDS", help="Draw anew up to here; default the end.")
@click.option("--before", type=float, default=0.0, metavar="SECONDS", help="New music before the piece.")
@click.option("--after", type=float, default=0.0, metavar="SECONDS", help="New music after the piece.")
@click.option("--keep-levels", type=int, help="Keep the first levels, draw all finer ones (within --from, --to).")
@click.option("--keep-audio", is_flag=True, help="What is kept of the file keeps its own waveform; 50 ms cross-fades.")
@click.option("--best", type=int, metavar="K", help="Of the --num pieces, keep those that the model ranks first.")
@click.option("--stream", type=FILE, metavar="FILE", help="WAV to write while it is generated; - is standard output.")
@click.option("--save-codes", is_flag=True, help="Write a .codes file beside each piece, for --edit.")
@click.option("--precision", default="auto", show_default=True, help="fp32, fp16, bf16 or int8: see `audiovq bench`.")
@click.option(
    "--segments",
    default=1,
    type=click.IntRange(min=1),
    show_default=True,
    help="Segments of a finer level that are generated at once.",
)
@click.option("--check-copies", is_flag=True, help="Say what each piece shares with the run's training tracks.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Share the pieces among so many GPUs.")
@click.option("--processes", type=click.IntRange(min=1), help="Share them among so many processes on the CPU.")
@click.option(
    "--out", type=FILE, metavar="PATH", help="A .wav or .flac file, or a folder; default music-<seed>.wav here."
)
@report_option
@json_option
def sample(model: str | None, labels: tuple[str, ...], page: bool, json_file: str | None, **options: Any) -> None:
    """Make new music, or change some. Interrupted, the same command with the same seed goes on."""
    from audiovq.pipeline.sample import Sampled, SampleOptions
    from audiovq.pipeline.sample import sample as run

    if json_file == "-" and options["stream"] == "-":
        raise ValueError("--json, --stream: standard output can be one of them; name a file for the other")
    several = options["gpus"] > 1 or (options["processes"] or 1) > 1 or os.environ.get("WORLD_SIZE", "1") != "1"
    if json_file and options["check_copies"] and several:
        raise ValueError("--json, --check-copies: expected one process; leave out one, or ask `audiovq copies` later")

    if page and not options["stream"]:
        import audiovq.pipeline.sample_page  # noqa: F401  # loading what draws takes a second: now, so that the page follows the codes

    def finished(sampled: Sampled) -> None:
        facts = sampled.facts
        if page:
            from audiovq.pipeline.sample_page import write_page

            facts["report"] = write_page(sampled)
        write_json(json_file, facts)

    chosen = SampleOptions(model=model, labels=label_pairs(labels), **options)
    for line in run(chosen, sys.argv[1:], lambda: pick_model(model), finished):
        if json_file != "-":
            click.echo(line, err=options["stream"] == "-")  # standard output may be the music
