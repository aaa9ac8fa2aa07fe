"""Options that several commands share, the types of their values, and output as lines or JSON."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

FILE, FOLDER = click.Path(), click.Path(file_okay=False)  # they need not exist
POSITIVE = click.FloatRange(min=0, min_open=True)


def complete_recipe(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, and the recipes that come with audiovq except `base`, which only exists to be extended."""
    from audiovq.config import known_recipes

    names = sorted(known_recipes().keys() - {"base"})
    recipes = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *recipes]  # in bash, names must come after the file item


def level_option(name: str, kind: type, help_text: str) -> Any:
    """An option that takes one value or one per level: `0.9` or `0.9,1,1`."""

    def parse(context: click.Context, option: click.Parameter, text: str | None) -> list[Any] | None:
        try:
            return None if text is None else [kind(part) for part in text.split(",")]
        except ValueError:
            message = f"expected one number or one per level, such as 1,0.9,0.9; found {text!r}"
            raise click.BadParameter(message) from None

    return click.option(name, callback=parse, help=f"{help_text}; one value or one per level.")


def parse_labels(context: click.Context, option: click.Parameter, labels: tuple[str, ...]) -> dict[str, str]:
    """A callback: `("genre=folk",)` as `{"genre": "folk"}`."""
    pairs = {}
    for label in labels:
        name, equals, value = label.partition("=")
        if not (name and equals):
            raise ValueError(f"--label {label}: expected NAME=VALUE, such as genre=folk")
        if pairs.get(name, value) != value:
            raise ValueError(f"--label {name}: expected one value, found {pairs[name]} and {value}")
        pairs[name] = value
    return pairs


CHORDS_HELP = 'Such as "C G/B Am:4 F", 2 seconds each or as many as its number says; then again.'
LABEL_HELP = "Such as genre=folk (repeatable)."
PIECE_OPTIONS = (
    level_option("--temperature", float, "Above 1 wilder, below 1 tamer"),
    level_option("--top-k", int, "Only the k likeliest codes, 0 for all"),
    level_option("--top-p", float, "Only the likeliest codes, up to probability p"),
    level_option("--guidance", float, "How closely labels, text, chroma and notes are followed, 1 as trained"),
    click.option("--label", "labels", multiple=True, callback=parse_labels, metavar="NAME=VALUE", help=LABEL_HELP),
    click.option("--text", default="", help="A caption or lyrics, for a model trained with them."),
    click.option("--chords", metavar="SYMBOLS", help=CHORDS_HELP),
    click.option("--precision", default="auto", show_default=True, help="fp32, fp16 (CPU) or bf16 (GPU)."),
)


def piece_options(command: Any) -> Any:
    for option in reversed(PIECE_OPTIONS):
        command = option(command)
    return command


JSON_HELP = "Print the result as JSON and nothing else; with a FILE.json, write it there and print as usual."
MODEL_HELP = "A run, model folder, hub id, hf:CODEC or `default` (bundled). Default: newest run, else `default`."
REPORT_HELP = "Write a page to listen to or not; the environment variable AUDIOVQ_REPORT=0 means never."
SET_HELP = "Change a recipe value: a.b=value (repeatable)."

DATA_HELP = "Folder of music, URL, tar files or datasets://ID; replaces the recipe's."
data_option = click.option("--data", type=FILE, metavar="DIR", help=DATA_HELP)
model_option = click.option("--model", type=FOLDER, metavar="MODEL", help=MODEL_HELP)
recipe_argument = click.argument("recipe", shell_complete=complete_recipe)
report_option = click.option("--report/--no-report", "page", default=True, envvar="AUDIOVQ_REPORT", help=REPORT_HELP)
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)
json_option = click.option("--json", "json_file", metavar="[FILE]", help=JSON_HELP)


def pick_model(name: str | None, prior: bool = True) -> Path:
    """The folder of the requested model, or of the default model; prints which one that is."""
    from audiovq.pretrained.locate import default_model, resolve_model
    from audiovq.utils.progress import say

    if name is not None:
        return resolve_model(name)
    folder, description = default_model(prior=prior)
    say(f"model: {description}")
    return folder


def write_json(file: str | None, facts: Any) -> None:
    """Write the value of `--json`: None writes nothing, "-" to standard output, else to that file."""
    from audiovq.utils.files import check_output

    text = json.dumps(facts, indent=2, ensure_ascii=False)
    if file == "-":
        click.echo(text)
    elif file:
        check_output(Path(file), [b"{", b"["])
        Path(file).write_text(text + "\n", encoding="utf-8")


def show(lines: Sequence[str], facts: Any, json_file: str | None) -> None:
    """Print a result as lines, or as JSON only; see `write_json`."""
    if json_file != "-":
        click.echo("\n".join(lines))
    write_json(json_file, facts)


def convert(kind: Any, source: str, out: str, model: str | None, json_file: str | None, *settings: Any) -> None:
    """Encode or decode a file or a folder, and print what was done. `kind` is `Encoding` or `Decoding`, whose
    arguments are a tokenizer and `settings`. Raises ValueError if some files could not be converted."""
    from audiovq import api
    from audiovq.api.convert import convert_file, convert_folder

    is_folder = Path(source).is_dir()
    if not is_folder:  # check both files before the model is loaded
        kind.check(Path(source), Path(out))
    work = kind(api.Tokenizer.from_pretrained(pick_model(model, prior=False)), *settings)
    facts = (convert_folder if is_folder else convert_file)(work, Path(source), Path(out))
    write_json(json_file, facts)
    if facts.get("set_aside"):
        raise ValueError(facts["summary"])
    if json_file != "-":
        click.echo(facts["summary"])


def arrange(arguments: Sequence[str]) -> list[str]:
    """The words of a command line in the order that click needs.

    `--debug` moves to the front, because it is an option of the group. `--json` takes the next word as its
    value only if that is `-` or ends in .json; otherwise its value is `-`.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = [
        "--json=-" if word == "--json" and following != "-" and not (following or "").endswith(".json") else word
        for word, following in zip_longest(arguments[:end], arguments[1:end])
        if word != "--debug"
    ]
    return ["--debug"] * ("--debug" in arguments[:end]) + words + list(arguments[end:])
