"""The commands. Each parses, calls the layers below and prints; torch is loaded only by those that need it."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from audiovq.stopping import Interrupted


class OneLineErrors(click.Group):
    """Whatever the user can mend is one line and exit code 2; `--debug` shows where it was raised."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in (kwargs.get("args") or (args[0] if args and args[0] else sys.argv[1:]))
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", 130)
        except click.ClickException as error:
            _fail(error.format_message(), 2)
        except Interrupted as error:
            if os.environ.get("RANK", "0") == "0":  # of many processes one says it
                click.echo(f"audiovq: {error}; the same command goes on from there", err=True)
            sys.exit(128 + error.signal_number)
        except (ValueError, OSError) as error:
            traceback.print_exc() if debug else None
            _fail(str(error), 2)
        except Exception as error:
            traceback.print_exc() if debug else None
            _fail(f"internal error: {type(error).__name__}: {error} (--debug shows where; please report it)", 1)


def _fail(message: str, code: int) -> None:
    click.echo("audiovq: " + " ".join(message.split()), err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error was raised.")
@click.version_option(package_name="audiovq")
def main(debug: bool) -> None:
    """Learn to make music from a folder of music."""


@main.command()
@click.argument("recipe")
@click.option("--data", metavar="DIR", help="Folder of music; replaces the recipe's.")
@click.option("--out", metavar="DIR", help="Run folder; default runs/<recipe name>.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: a.b=value (repeatable)."
)
@click.option(
    "--stage", "stages", multiple=True, metavar="STAGE", help="Only tokenizer, decoder, codes or priors (repeatable)."
)
@click.option("--gpus", type=click.IntRange(min=1), help="Use so many GPUs; default all.")
@click.option("--processes", type=click.IntRange(min=1), help="Use so many processes on the CPU, and no GPU.")
def train(recipe: str, data: str | None, out: str | None, overrides: tuple[str, ...], stages: tuple[str, ...],
          gpus: int | None, processes: int | None) -> None:  # fmt: skip
    """Train all stages of RECIPE (a file or a name); run it again to go on after an interruption."""
    from audiovq import distributed
    from audiovq.launch import run_on_several
    from audiovq.recipe import load_recipe
    from audiovq.run import STAGES, Run

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stage {unknown[0]}: expected one of {', '.join(STAGES)}")
    loaded = load_recipe(recipe, data, overrides)
    if run_on_several(sys.argv[1:], gpus, processes, useful=loaded.smallest_batch):
        return
    with distributed.processes():
        run = Run(loaded, Path(out or Path("runs") / loaded.name))
        run.go(tuple(stage for stage in STAGES if stage in stages) or STAGES)


@main.command()
@click.argument("recipe")
@click.option("--data", metavar="DIR", help="Folder of music; replaces the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe value (repeatable).")
@click.option("--gpus", type=click.IntRange(min=1), help="Predict for so many GPUs that are not here.")
@click.option("--device-memory", metavar="SIZE", help="Of each of them, such as 80GB; default 80GB.")
@click.option(
    "--device-tflops", type=click.FloatRange(min=0, min_open=True), help="Dense bfloat16; default 312 (A100)."
)
@click.option("--device-bandwidth", type=click.FloatRange(min=0, min_open=True), help="Terabytes a second; default 2.")
@click.option(
    "--utilisation", type=click.FloatRange(0, 1, min_open=True), help="Share of the TFLOPS that is used; default 0.5."
)
@click.option("--json", "json_file", metavar="FILE", help="Also write every figure as JSON; - prints it instead.")
def plan(recipe: str, data: str | None, overrides: tuple[str, ...], json_file: str | None, **device: Any) -> None:
    """Memory, hours and disk that RECIPE would take, stage by stage: here, or on GPUs that are not here."""
    from audiovq.plan import make_plan, parse_device, plan_lines
    from audiovq.recipe import load_recipe

    loaded = load_recipe(recipe, data, overrides)
    result = make_plan(loaded, *parse_device(**device))
    if json_file != "-":
        click.echo("\n".join(plan_lines(result)))
    _write_json(json_file, result)


def _number_list(kind: type) -> Any:
    """One value or one a level: `0.9` or `0.9,1,1`."""

    def parse(context: click.Context, option: click.Parameter, text: str | None) -> list[Any] | None:
        try:
            return None if text is None else [kind(part) for part in text.split(",")]
        except ValueError:
            raise click.BadParameter(f"expected one number or one a level, such as 1,0.9,0.9; found {text!r}") from None

    return parse


@main.command()
@click.option(
    "--model", metavar="MODEL", help="A run, a model folder or a hub id; default the newest run, else the bundled one."
)
@click.option("--seconds", type=float, help="Length of each piece, a prompt included; default 20.")
@click.option("--seed", type=click.IntRange(min=0), help="Same seed, same music; default a new one, which is printed.")
@click.option("--n", type=int, default=1, show_default=True, help="How many pieces.")
@click.option("--item", type=click.IntRange(min=0), help="Number of the first piece: --item 3 is the fourth of --n 8.")
@click.option(
    "--temperature",
    callback=_number_list(float),
    help="Above 1 wilder, below 1 tamer; one value or one a level: 1,0.9,0.9.",
)
@click.option(
    "--top-k", callback=_number_list(int), help="Draw from the k likeliest codes; 0 is all. One value or one a level."
)
@click.option(
    "--top-p",
    callback=_number_list(float),
    help="Draw from the likeliest codes that make up p. One value or one a level.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Such as genre=folk (repeatable).")
@click.option("--text", default="", help="A caption or lyrics, for a model that was trained with them.")
@click.option("--chroma", metavar="SONG", help="A recording whose melody and harmony are followed.")
@click.option(
    "--guidance",
    callback=_number_list(float),
    help="How strongly label, text and chroma are followed; 1 as trained. One value or one a level.",
)
@click.option("--prompt", metavar="CLIP", help="Audio or codes file to continue.")
@click.option("--edit", "--codes", "source", metavar="FILE", help="Audio or codes file to change, as the next six say.")
@click.option("--from", "start", type=float, metavar="SECONDS", help="Draw anew from here; default the beginning.")
@click.option("--to", "end", type=float, metavar="SECONDS", help="Draw anew up to here; default the end.")
@click.option("--before", type=float, default=0.0, metavar="SECONDS", help="New music before the piece.")
@click.option("--after", type=float, default=0.0, metavar="SECONDS", help="New music after the piece.")
@click.option("--keep-levels", type=int, help="Keep the first levels, draw all finer ones (within --from, --to).")
@click.option("--keep-audio", is_flag=True, help="What is kept of the file keeps its own waveform; 50 ms cross-fades.")
@click.option("--best", type=int, metavar="K", help="Of the --n pieces, keep those that the model ranks first.")
@click.option("--stream", metavar="FILE", help="WAV to write while it is generated; - is standard output.")
@click.option("--save-codes", is_flag=True, help="Write a .codes file beside each piece, for --edit.")
@click.option("--precision", default="auto", show_default=True, help="fp32, fp16, bf16 or int8: see `audiovq bench`.")
@click.option("--parallel", default=1, show_default=True, help="Segments of a finer level that are generated at once.")
@click.option("--check-copies", is_flag=True, help="Say what each piece shares with the run's training tracks.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Share the pieces among so many GPUs.")
@click.option("--processes", type=click.IntRange(min=1), help="Share them among so many processes on the CPU.")
@click.option("--out", metavar="PATH", help="A .wav or .flac file, or a folder; default music-<seed>.wav here.")
def sample(model: str | None, labels: tuple[str, ...], **options: Any) -> None:
    """Make new music, or change some. Interrupted, the same command with the same seed goes on."""
    from audiovq.sample_command import SampleOptions
    from audiovq.sample_command import sample as run

    for line in run(SampleOptions(model=model, labels=_pairs(labels), **options), sys.argv[1:], lambda: _model(model)):
        click.echo(line, err=options["stream"] == "-")  # standard output may be the music


def _pairs(labels: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for label in labels:
        name, equals, value = label.partition("=")
        if not (name and equals):
            raise ValueError(f"--label {label}: expected NAME=VALUE, such as genre=folk")
        pairs[name] = value
    return pairs


def _model(name: str | None, prior: bool = True) -> Path:
    """The model asked for, or the default; says which."""
    from audiovq import api
    from audiovq.terminal import say

    if name is not None:
        return api.resolve_model(name)
    folder, which = api.default_model(prior=prior)
    say(f"model: {which}")
    return folder


@main.command()
@click.argument("source", metavar="AUDIO")
@click.option(
    "-o", "--out", required=True, metavar="FILE", help="Codes file to write, such as song.codes; or a folder."
)
@click.option("--compress", is_flag=True, help="Code losslessly, to about half the size; slower to write and read.")
@click.option(
    "--model", metavar="MODEL", help="A run, a model folder or a hub id; default the newest run, else the bundled one."
)
def encode(source: str, out: str, compress: bool, model: str | None) -> None:
    """Turn an AUDIO file, or all of them below a folder, into codes."""
    from audiovq import api
    from audiovq.convert import Encoding, convert_file, convert_folder
    from audiovq.data import audio

    convert = convert_folder if Path(source).is_dir() else convert_file
    if convert is convert_file:
        audio.check_folder(Path(out).parent)
        audio.audio_info(Path(source))  # what cannot be read fails at once
    tokenizer = api.Tokenizer.from_pretrained(_model(model, prior=False))
    click.echo(convert(Encoding(tokenizer, compress), Path(source), Path(out)))


@main.command()
@click.argument("source", metavar="CODES")
@click.option("-o", "--out", required=True, metavar="FILE", help="WAV or FLAC file to write; or a folder.")
@click.option("--levels", type=int, help="Decode only the first levels.")
@click.option("--format", "suffix", type=click.Choice(["wav", "flac"]), default="wav", help="Of the files in a folder.")
@click.option(
    "--model", metavar="MODEL", help="A run, a model folder or a hub id; default the newest run, else the bundled one."
)
def decode(source: str, out: str, levels: int | None, suffix: str, model: str | None) -> None:
    """Turn a CODES file, or all of them below a folder, back into audio, as long as what was encoded."""
    from audiovq import api
    from audiovq.convert import Decoding, convert_file, convert_folder
    from audiovq.data import audio
    from audiovq.data.codes import read_header

    convert = convert_folder if Path(source).is_dir() else convert_file
    if convert is convert_file:
        audio.check_writable(Path(out))
        read_header(Path(source))
    tokenizer = api.Tokenizer.from_pretrained(_model(model, prior=False))
    click.echo(convert(Decoding(tokenizer, levels, f".{suffix}"), Path(source), Path(out)))


@main.command()
@click.argument("place")
def info(place: str) -> None:
    """Say what PLACE is: an audio file, a codes file, a model folder or a run folder."""
    from audiovq.info import describe

    click.echo(json.dumps(describe(Path(place)), indent=2, ensure_ascii=False))


@main.command("eval")
@click.argument("model")
@click.argument("data", required=False)
@click.option("--json", "json_file", metavar="FILE", help="Also write the report as JSON; - prints it instead.")
@click.option("--perceptual", is_flag=True, help="Add a mean opinion score; needs the extra audiovq[perceptual].")
@click.option("--generated", type=int, metavar="N", help="Judge N generated pieces beside real music instead.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Length of each generated piece.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the generated pieces.")
def evaluate(model: str, data: str | None, json_file: str | None, perceptual: bool, generated: int | None, seconds: float,
             seed: int) -> None:  # fmt: skip
    """How well MODEL reconstructs the music in DATA (default: what its run holds out), or how like it MODEL generates."""
    from audiovq import generation_report, test_set

    if generated is None:
        report = test_set.evaluate_model(model, data, perceptual)
    else:
        report = generation_report.evaluate_generated(model, data, generated, seconds, seed)
    if json_file != "-":
        (test_set if generated is None else generation_report).print_tables(report)
    _write_json(json_file, report)


def _write_json(file: str | None, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if file == "-":
        click.echo(text)
    elif file:
        Path(file).write_text(text + "\n", encoding="utf-8")


@main.command()
@click.argument("piece")
@click.argument("run")
@click.option("--json", "json_file", metavar="FILE", help="Also write the report as JSON; - prints it instead.")
def copies(piece: str, run: str, json_file: str | None) -> None:
    """Find the longest runs of codes that PIECE (audio or codes) shares with the training tracks of RUN."""
    from audiovq import api
    from audiovq.data.codes import Shards
    from audiovq.evaluation.copies import copy_reports, report_lines
    from audiovq.sample_command import read_piece

    tokenizer = api.Tokenizer.from_pretrained(run)
    report = copy_reports([read_piece(tokenizer, piece)], Shards(api.resolve_model(run) / "codes"))[0]
    if json_file != "-":
        click.echo("\n".join(report_lines(report)))
    _write_json(json_file, report)


@main.command()
@click.argument("model", required=False)
@click.option("--batch", callback=_number_list(int), default="1,8", show_default=True, help="Pieces at once.")
@click.option(
    "--precision", default="auto", show_default=True, help="fp32, fp16, bf16, int8, auto, or all; or several."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU; default all.")
@click.option("--json", "json_file", metavar="FILE", help="Also write every figure as JSON; - prints it instead.")
def bench(model: str | None, batch: list[int], precision: str, threads: int | None, json_file: str | None) -> None:
    """Codes and seconds of audio that MODEL generates a second, against what the memory allows."""
    import torch

    from audiovq import api
    from audiovq.evaluation.bench import bench_priors, bench_table

    generator = api.Generator.from_pretrained(_model(model))
    torch.set_num_threads(threads or torch.get_num_threads())
    result = bench_priors(generator.priors, batch, precision.split(","))
    if json_file != "-":
        click.echo("\n".join(bench_table(result)))
    _write_json(json_file, result)


@main.command()
def recipes() -> None:
    """List the recipes that come with audiovq, with the purpose of each."""
    from audiovq.recipe import header, recipe_folders

    for path in sorted({p.stem: p for folder in reversed(recipe_folders()) for p in folder.glob("*.yaml")}.values()):
        click.echo(f"{path.stem:12} {header(path).get('purpose', '')}")


if __name__ == "__main__":
    main()
