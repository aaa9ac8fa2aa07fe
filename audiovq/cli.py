"""The commands. Each parses, calls the layers below and prints; torch is loaded only by those that need it."""

from __future__ import annotations

import json
import secrets
import sys
import traceback
from pathlib import Path
from typing import Any

import click


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
        except (ValueError, OSError) as error:
            traceback.print_exc() if debug else None
            _fail(str(error), 2)
        except Exception as error:
            if type(error).__name__ == "Interrupted":
                _fail(f"{error}; the same command goes on from there", 128 + error.signal_number)  # type: ignore[attr-defined]
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
@click.option("--stage", "stages", multiple=True, metavar="STAGE", help="Only tokenizer, codes or priors (repeatable).")
def train(recipe: str, data: str | None, out: str | None, overrides: tuple[str, ...], stages: tuple[str, ...]) -> None:
    """Train all stages of RECIPE (a file or a name); run it again to go on after an interruption."""
    from audiovq.recipe import load_recipe
    from audiovq.run import STAGES, Run

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"--stage {unknown[0]}: expected one of {', '.join(STAGES)}")
    loaded = load_recipe(recipe, data, overrides)
    run = Run(loaded, Path(out or Path("runs") / loaded.name))
    run.go(tuple(stage for stage in STAGES if stage in stages) or STAGES)


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
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Length of each piece, a prompt included.")
@click.option("--seed", type=click.IntRange(min=0), help="Same seed, same music; default a new one, which is printed.")
@click.option("--n", type=int, default=1, show_default=True, help="How many pieces.")
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
@click.option("--prompt", metavar="CLIP", help="Audio or codes file to continue.")
@click.option("--precision", default="auto", show_default=True, help="fp32, fp16, bf16, int8: see `bench`.")
@click.option("--parallel", default=1, show_default=True, help="Segments of a finer level that are generated at once.")
@click.option("--out", metavar="PATH", help="A .wav or .flac file, or a folder; default music-<seed>.wav here.")
def sample(model: str | None, seconds: float, seed: int | None, n: int, labels: tuple[str, ...], prompt: str | None,
           out: str | None, **picks: Any) -> None:  # fmt: skip
    """Make new music."""
    from audiovq import api
    from audiovq.data import audio
    from audiovq.terminal import say

    seed = secrets.randbelow(10**6) if seed is None else seed
    paths = _output_paths(out, seed, n)
    for path in paths[:1]:
        audio.check_writable(path)
    generator = api.Generator.from_pretrained(_model(model))
    begun = _prompt(generator.tokenizer, prompt) if prompt else None
    say(f"seed {seed}, {n} × {seconds:g} s")
    pieces = generator.sample_codes(seconds, seed, n, labels=_pairs(labels), prompt=begun, progress=True, **picks)
    for path, codes in zip(paths, pieces, strict=True):
        audio.write_audio(path, generator.tokenizer.decode(codes), generator.sample_rate)
        click.echo(str(path))


def _output_paths(out: str | None, seed: int, n: int) -> list[Path]:
    target = Path(out or f"music-{seed}.wav")
    if not target.suffix:
        target = target / f"music-{seed}.wav"
    return [target] if n <= 1 else [target.with_stem(f"{target.stem}-{i}") for i in range(n)]


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


def _prompt(tokenizer: Any, path: str) -> Any:
    from audiovq.data.codes import Codes

    return Codes.load(path) if Path(path).suffix == ".codes" else tokenizer.encode_file(path)


@main.command()
@click.argument("audio_file")
@click.option("-o", "--out", required=True, metavar="FILE", help="Codes file to write, such as song.codes.")
@click.option(
    "--model", metavar="MODEL", help="A run, a model folder or a hub id; default the newest run, else the bundled one."
)
def encode(audio_file: str, out: str, model: str | None) -> None:
    """Turn an audio file into codes."""
    from audiovq import api
    from audiovq.data import audio

    audio.check_folder(Path(out).parent)
    waveform, rate = audio.read_audio(audio_file)
    tokenizer = api.Tokenizer.from_pretrained(_model(model, prior=False))
    codes = tokenizer.encode(waveform, rate, audio.file_sha256(Path(audio_file)))
    codes.save(out)
    click.echo(f"{out}: {codes.seconds:.3f} s, {codes.bits_per_second / 1000:.2f} kbps raw")


@main.command()
@click.argument("codes_file")
@click.option("-o", "--out", required=True, metavar="FILE", help="WAV or FLAC file to write.")
@click.option("--levels", type=int, help="Decode only the first levels.")
@click.option(
    "--model", metavar="MODEL", help="A run, a model folder or a hub id; default the newest run, else the bundled one."
)
def decode(codes_file: str, out: str, levels: int | None, model: str | None) -> None:
    """Turn codes back into audio, as long as what was encoded."""
    from audiovq import api
    from audiovq.data import audio
    from audiovq.data.codes import Codes

    audio.check_writable(Path(out))
    codes = Codes.load(codes_file)
    tokenizer = api.Tokenizer.from_pretrained(_model(model, prior=False))
    audio.write_audio(out, tokenizer.decode(codes, levels), tokenizer.sample_rate)
    click.echo(f"{out}: {codes.n_samples} samples, {codes.seconds:.3f} s")


@main.command()
@click.argument("place")
def info(place: str) -> None:
    """Say what PLACE is: an audio file, a codes file, a model folder or a run folder."""
    from audiovq.info import describe

    click.echo(json.dumps(describe(Path(place)), indent=2, ensure_ascii=False))


@main.command("eval")
@click.argument("model")
@click.argument("data", required=False)
@click.option("--json", "json_file", metavar="FILE", help="Also write every row as JSON.")
def evaluate(model: str, data: str | None, json_file: str | None) -> None:
    """Reconstruction quality of MODEL on the music in DATA (default: the run's own held-out tracks)."""
    from audiovq.test_set import evaluate_model, print_table

    rows = evaluate_model(model, data)
    print_table(rows)
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=2))


@main.command()
@click.argument("model", required=False)
@click.option("--batch", callback=_number_list(int), default="1,8", show_default=True, help="Pieces at once.")
@click.option(
    "--precision", default="auto", show_default=True, help="fp32, fp16, bf16, int8, auto, or all; or several."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU; default all.")
@click.option("--json", "json_file", metavar="FILE", help="Also write every figure as JSON.")
def bench(model: str | None, batch: list[int], precision: str, threads: int | None, json_file: str | None) -> None:
    """Codes and seconds of audio that MODEL generates a second, against what the memory allows."""
    import torch

    from audiovq import api
    from audiovq.evaluation.bench import bench_priors, bench_table

    generator = api.Generator.from_pretrained(_model(model))
    torch.set_num_threads(threads or torch.get_num_threads())
    result = bench_priors(generator.priors, batch, precision.split(","))
    click.echo("\n".join(bench_table(result)))
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2))


@main.command()
def recipes() -> None:
    """List the recipes that come with audiovq, with the purpose of each."""
    from audiovq.recipe import header, recipe_folders

    for path in sorted({p.stem: p for folder in reversed(recipe_folders()) for p in folder.glob("*.yaml")}.values()):
        click.echo(f"{path.stem:12} {header(path).get('purpose', '')}")


if __name__ == "__main__":
    main()
