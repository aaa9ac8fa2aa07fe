"""The commands. Each parses, calls the layers below and prints; torch is loaded only by those that need it."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from audiovq import shell
from audiovq.shell import FILE, FOLDER, json_option, label_pairs, number_list, write_json
from audiovq.stopping import Interrupted


class OneLineErrors(click.Group):
    """Whatever the user can mend is one line and exit code 2; `--debug` shows where it was raised."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop("args", None) or (args[0] if args else None)
        arguments = shell.arranged(sys.argv[1:] if given is None else given)
        debug = "--debug" in arguments
        try:
            return super().main(arguments, *args[1:], **{**kwargs, "standalone_mode": False})
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
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (ValueError, OSError) as error:
            traceback.print_exc() if debug else None
            _fail(str(error), 2)
        except Exception as error:
            traceback.print_exc() if debug else None
            how = "please report it with what the same command with --debug and `audiovq doctor` print"
            _fail(f"internal error: {type(error).__name__}: {error}; {how}", 1)


def _fail(message: str, code: int) -> None:
    click.echo("audiovq: " + " ".join(message.split()), err=True)
    sys.exit(code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error was raised.")
@click.version_option(package_name="audiovq")
def main(debug: bool) -> None:
    """Learn to make music from a folder of music."""


def _recipe_names() -> list[str]:
    from audiovq.config import recipe_folders

    return sorted(
        {path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")} - {"base"}
    )  # which is there to be extended


def _stage_names() -> tuple[str, ...]:
    return "tokenizer", "decoder", "codes", "priors"


report_option = click.option(
    "--report/--no-report", "page", default=True, envvar="AUDIOVQ_REPORT",
    help="Write a page to listen to, or not; AUDIOVQ_REPORT=0 is never.",
)  # fmt: skip
model_option = click.option(
    "--model", type=FOLDER, metavar="MODEL",
    help="A run, a model folder or a hub id; default the newest run, else the bundled one.",
)  # fmt: skip


@main.command()
@click.argument("recipe", type=shell.Name(_recipe_names))
@click.option("--data", type=FOLDER, metavar="DIR", help="Folder of music; replaces the recipe's.")
@click.option("--codes", metavar="URL", help="Codes of another run, a folder or URL: only the priors are trained.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run folder; default runs/<recipe name>.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe value: a.b=value (repeatable)."
)
@click.option(
    "--stage", "stages", type=shell.Name(_stage_names), multiple=True, metavar="STAGE",
    help="Only tokenizer, decoder, codes or priors (repeatable).",
)  # fmt: skip
@click.option("--gpus", type=click.IntRange(min=1), help="Use so many GPUs; default all.")
@click.option("--processes", type=click.IntRange(min=1), help="Use so many processes on the CPU, and no GPU.")
@report_option
@json_option
def train(
    recipe: str, data: str | None, codes: str | None, out: str | None, overrides: tuple[str, ...],
    stages: tuple[str, ...], gpus: int | None, processes: int | None, page: bool, json_file: str | None,
) -> None:  # fmt: skip
    """Train all stages of RECIPE (a file or a name); run it again to go on after an interruption."""
    from audiovq import distributed
    from audiovq.launch import run_on_several
    from audiovq.recipe import load_recipe
    from audiovq.run import STAGES, Run, describe_run

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stage {unknown[0]}: expected one of {', '.join(STAGES)}")
    loaded = load_recipe(recipe, data, overrides, codes)
    if run_on_several(sys.argv[1:], gpus, processes, useful=loaded.smallest_batch):
        return
    with distributed.processes():
        run = Run(loaded, Path(out or Path("runs") / loaded.name), page)
        run.go(tuple(stage for stage in STAGES if stage in stages) or STAGES)
        if json_file and run.main:
            write_json(json_file, describe_run(run.folder))


@main.command()
@model_option
@click.option("--seconds", type=float, help="Length of each piece, a prompt included; default 20.")
@click.option("--seed", type=click.IntRange(min=0), help="Same seed, same music; default a new one, which is printed.")
@click.option("--n", type=int, default=1, show_default=True, help="How many pieces.")
@click.option("--item", type=click.IntRange(min=0), help="Number of the first piece: --item 3 is the fourth of --n 8.")
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
@click.option(
    "--edit", "--codes", "source", type=FILE, metavar="FILE", help="Audio or codes file to change, as the next six say."
)
@click.option("--from", "start", type=float, metavar="SECONDS", help="Draw anew from here; default the beginning.")
@click.option("--to", "end", type=float, metavar="SECONDS", help="Draw anew up to here; default the end.")
@click.option("--before", type=float, default=0.0, metavar="SECONDS", help="New music before the piece.")
@click.option("--after", type=float, default=0.0, metavar="SECONDS", help="New music after the piece.")
@click.option("--keep-levels", type=int, help="Keep the first levels, draw all finer ones (within --from, --to).")
@click.option("--keep-audio", is_flag=True, help="What is kept of the file keeps its own waveform; 50 ms cross-fades.")
@click.option("--best", type=int, metavar="K", help="Of the --n pieces, keep those that the model ranks first.")
@click.option("--stream", type=FILE, metavar="FILE", help="WAV to write while it is generated; - is standard output.")
@click.option("--save-codes", is_flag=True, help="Write a .codes file beside each piece, for --edit.")
@click.option("--precision", default="auto", show_default=True, help="fp32, fp16, bf16 or int8: see `audiovq bench`.")
@click.option("--parallel", default=1, show_default=True, help="Segments of a finer level that are generated at once.")
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
    from audiovq.sample_command import Sampled, SampleOptions
    from audiovq.sample_command import sample as run

    if json_file == "-" and options["stream"] == "-":
        raise ValueError("--json, --stream: standard output can be one of them; name a file for the other")
    several = options["gpus"] > 1 or (options["processes"] or 1) > 1 or os.environ.get("WORLD_SIZE", "1") != "1"
    if json_file and options["check_copies"] and several:
        raise ValueError("--json, --check-copies: expected one process; leave out one, or ask `audiovq copies` later")

    def finished(sampled: Sampled) -> None:
        facts = sampled.facts
        if page:
            from audiovq.sample_page import write_page

            facts["report"] = write_page(sampled)
        write_json(json_file, facts)

    chosen = SampleOptions(model=model, labels=label_pairs(labels), **options)
    for line in run(chosen, sys.argv[1:], lambda: _model(model), finished):
        if json_file != "-":
            click.echo(line, err=options["stream"] == "-")  # standard output may be the music


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
@click.argument("source", type=FILE, metavar="AUDIO")
@click.option(
    "-o", "--out", type=FILE, required=True, metavar="FILE",
    help="Codes file to write, such as song.codes; or a folder.",
)  # fmt: skip
@click.option("--compress", is_flag=True, help="Code losslessly, to about half the size; slower to write and read.")
@model_option
@json_option
def encode(source: str, out: str, compress: bool, model: str | None, json_file: str | None) -> None:
    """Turn an AUDIO file, or all of them below a folder, into codes."""
    from audiovq import api
    from audiovq.convert import Encoding, convert_file, convert_folder
    from audiovq.data import audio

    convert = convert_folder if Path(source).is_dir() else convert_file
    if convert is convert_file:
        audio.check_folder(Path(out).parent)
        audio.audio_info(Path(source))  # what cannot be read fails at once
    tokenizer = api.Tokenizer.from_pretrained(_model(model, prior=False))
    _converted(convert(Encoding(tokenizer, compress), Path(source), Path(out)), json_file)


def _converted(facts: dict[str, Any], json_file: str | None) -> None:
    """Tell; raises ValueError if something could not be converted."""
    write_json(json_file, facts)
    if facts.get("set_aside"):
        raise ValueError(facts["summary"])
    if json_file != "-":
        click.echo(facts["summary"])


@main.command()
@click.argument("source", type=FILE, metavar="CODES")
@click.option("-o", "--out", type=FILE, required=True, metavar="FILE", help="WAV or FLAC file to write; or a folder.")
@click.option("--levels", type=int, help="Decode only the first levels.")
@click.option("--format", "suffix", type=click.Choice(["wav", "flac"]), default="wav", help="Of the files in a folder.")
@model_option
@json_option
def decode(source: str, out: str, levels: int | None, suffix: str, model: str | None, json_file: str | None) -> None:
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
    _converted(convert(Decoding(tokenizer, levels, f".{suffix}"), Path(source), Path(out)), json_file)


@main.command()
@click.argument("place", type=FILE)
@json_option
def info(place: str, json_file: str | None) -> None:
    """Say what PLACE is: an audio file, a codes file, a model folder or a run folder; always as JSON."""
    from audiovq.info import describe

    facts = describe(Path(place))
    for file in {"-", json_file or "-"}:
        write_json(file, facts)


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
    from audiovq import generation_report, test_set

    if generated is None:
        report = test_set.evaluate_model(model, data, perceptual)
    else:
        report = generation_report.evaluate_generated(model, data, generated, seconds, seed)
    if json_file != "-":
        (test_set if generated is None else generation_report).print_tables(report)
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
    from audiovq.recipe import codes_place
    from audiovq.sample_command import read_piece

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

    generator = api.Generator.from_pretrained(_model(model))
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

    facts = report_run(_model(None, prior=False) if run is None else Path(run), Path(out) if out else None)
    if json_file != "-":
        click.echo(facts["report"])
    write_json(json_file, facts)


@main.command()
@json_option
def recipes(json_file: str | None) -> None:
    """List the recipes that come with audiovq, with the purpose of each."""
    from audiovq.recipe import header, recipe_folders

    found = sorted({p.stem: p for folder in reversed(recipe_folders()) for p in folder.glob("*.yaml")}.values())
    if json_file != "-":
        click.echo("\n".join(f"{path.stem:12} {header(path).get('purpose', '')}" for path in found))
    write_json(json_file, [{"name": path.stem, "file": str(path), **header(path)} for path in found])


@main.command()
@json_option
def doctor(json_file: str | None) -> None:
    """Look whether audiovq can work here, and try it; says what to do about each problem. Exit code 1 if it cannot."""
    from audiovq.doctor import examine, is_broken

    findings = []
    for finding in examine():
        findings.append(finding)
        if json_file != "-":
            click.echo(finding.line)
    write_json(json_file, {"works": not is_broken(findings), "findings": [vars(finding) for finding in findings]})
    sys.exit(1 if is_broken(findings) else 0)


@main.command()
@click.argument("name", metavar="[bash|zsh|fish]", required=False, type=click.Choice(shell.SHELLS))
def completion(name: str | None) -> None:
    """Print what makes a shell complete commands, options, recipes and files; default for the shell you are in.

    \b
    bash:  mkdir -p ~/.local/share/bash-completion/completions
           audiovq completion bash > ~/.local/share/bash-completion/completions/audiovq
    zsh:   audiovq completion zsh > "${fpath[1]}/_audiovq"    (or another folder of $fpath)
    fish:  audiovq completion fish > ~/.config/fish/completions/audiovq.fish

    Then open a new shell.
    """
    found = name or Path(os.environ.get("SHELL", "")).name
    if found not in shell.SHELLS:
        raise ValueError(f"completion: expected one of {', '.join(shell.SHELLS)}, found {found or 'no $SHELL'}")
    click.echo(shell.completion_script(main, found))


if __name__ == "__main__":
    main()
