"""What the commands need beside click: words that may stand anywhere, JSON on request, names that a shell completes,
lists and pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

F = TypeVar("F", bound=Callable[..., Any])
SHELLS = ("bash", "zsh", "fish")


def arrange(arguments: Sequence[str]) -> list[str]:
    """`--debug` goes to the front, where the group has it; `--json` takes the next word only if that is - or a .json."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = [
        "--json=-" if word == "--json" and following != "-" and not (following or "").endswith(".json") else word
        for word, following in zip_longest(arguments[:end], arguments[1:end])
        if word != "--debug"
    ]
    return ["--debug"] * ("--debug" in arguments[:end]) + words + list(arguments[end:])


def json_option(command: F) -> F:
    """`--json [FILE]`; the function's `json_file` is None, "-" for standard output, or the file."""
    text = "Print what is found as JSON and nothing else; with a FILE.json, write it there, too."
    return click.option("--json", "json_file", metavar="[FILE]", help=text)(command)


def write_json(file: str | None, facts: Any) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    if file == "-":
        click.echo(text)
    elif file:
        Path(file).write_text(text + "\n", encoding="utf-8")


class Place(click.ParamType):
    """A text that a shell completes as a file or, with `kind` "dir", as a folder. Whether it is there is looked at later."""

    def __init__(self, kind: str = "file"):
        self.kind = self.name = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=self.kind)]


class Name(Place):
    """One of the names that `list_names` gives, or a place."""

    def __init__(self, list_names: Callable[[], Sequence[str]], kind: str = "file"):
        super().__init__(kind)
        self.list_names = list_names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in self.list_names() if name.startswith(incomplete)]
        return [*super().shell_complete(ctx, param, incomplete), *found]  # bash drops what comes before a place


FILE, FOLDER = Place(), Place("dir")


def completion_script(group: click.Command, shell: str) -> str:
    """What `audiovq completion` prints."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(group, {}, "audiovq", "_AUDIOVQ_COMPLETE").source()


def number_list(kind: type) -> Any:
    """One value or one a level: `0.9` or `0.9,1,1`."""

    def parse(context: click.Context, option: click.Parameter, text: str | None) -> list[Any] | None:
        try:
            return None if text is None else [kind(part) for part in text.split(",")]
        except ValueError:
            raise click.BadParameter(f"expected one number or one a level, such as 1,0.9,0.9; found {text!r}") from None

    return parse


def label_pairs(labels: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for label in labels:
        name, equals, value = label.partition("=")
        if not (name and equals):
            raise ValueError(f"--label {label}: expected NAME=VALUE, such as genre=folk")
        pairs[name] = value
    return pairs


report_option = click.option(
    "--report/--no-report", "page", default=True, envvar="AUDIOVQ_REPORT",
    help="Write a page to listen to, or not; AUDIOVQ_REPORT=0 is never.",
)  # fmt: skip
model_option = click.option(
    "--model", type=FOLDER, metavar="MODEL",
    help="A run, a model folder, a hub id, or default for the bundled model; by default the newest run, else the bundled one.",
)  # fmt: skip


def pick_model(name: str | None, prior: bool = True) -> Path:
    """The model asked for, or the default; says which."""
    from audiovq import api
    from audiovq.utils.progress import say

    if name is not None:
        return api.resolve_model(name)
    folder, which = api.default_model(prior=prior)
    say(f"model: {which}")
    return folder


def recipe_names() -> list[str]:
    from audiovq.config import recipe_folders

    return sorted(
        {path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")} - {"base"}
    )  # which is there to be extended


def print_converted(facts: dict[str, Any], json_file: str | None) -> None:
    """Tell; raises ValueError if something could not be converted."""
    write_json(json_file, facts)
    if facts.get("set_aside"):
        raise ValueError(facts["summary"])
    if json_file != "-":
        click.echo(facts["summary"])
