"""Generates parts of the site when it is built: tables of recipes, keys and commands, and formulae as MathML.

A comment `<!-- generated: NAME -->` on a page is replaced by the result of `GENERATED[NAME]`.
"""

from __future__ import annotations

import ast
import functools
import html
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
import soundfile
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # describe this checkout, not an installed version

from audiovq.cli import main  # noqa: E402
from audiovq.recipe import Recipe, header, load_recipe  # noqa: E402

MEANINGS = yaml.safe_load((ROOT / "docs" / "meanings.yaml").read_text())  # of keys without a comment in the code
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


# --- the recipe's keys, from the pydantic models ----------------------------------------------------------------------


def sections(config: type[BaseModel] = Recipe, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Each config within `config` with its path in a recipe, such as `tokenizer.model`; lists are `priors[]`."""
    yield path, config
    for name, field in config.model_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        for each in configs(field.annotation):
            yield from sections(each, inner + "[]" * is_list(field.annotation))


def configs(annotation: Any) -> list[type[BaseModel]]:
    """The config classes within a type annotation."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [each for inner in get_args(annotation) for each in configs(inner)]


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


@functools.cache
def comments(config: type[BaseModel]) -> dict[str, str]:
    """The comments of each field in the source: those above it, and the one at its end."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith("audiovq") and base.model_fields):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        lines = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
        alone = {n for n, t in lines.items() if not t.line[: t.start[1]].strip()}
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                behind = [lines[n] for n in range(node.lineno, node.end_lineno + 1) if n in lines]  # type: ignore[operator]
                n = node.lineno - 1
                while n in alone:
                    behind.insert(0, lines[n])
                    n -= 1
                text = " ".join(
                    t.string.lstrip("# ") for t in behind if not re.match(r"# ?(type: ignore|fmt: )", t.string)
                )
                if text:
                    found[node.target.id] = text
    return found


def meaning(config: type[BaseModel], name: str) -> str:
    """The meaning of a recipe key; KeyError for a key without a comment in the code and a line in meanings.yaml."""
    comment = comments(config).get(name)
    if comment is None and configs(config.model_fields[name].annotation):
        return "see below"
    owner = config.__qualname__.split(".")[0]
    if comment is None and name == "kind":
        return f"selects `{owner}`"
    return comment or MEANINGS.get(f"{owner}.{name}") or MEANINGS[name]


def kind_of(annotation: Any, field: FieldInfo | None = None) -> str:
    """A type in words: `int ≥ 1`, `list of int`, `one of a, b`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is types.NoneType:
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {kind_of(arguments[0])}"
    if origin in {Union, types.UnionType}:
        return " or ".join(dict.fromkeys(kind_of(each, field) for each in arguments))
    if origin is not None:  # Annotated
        return kind_of(arguments[0])
    if issubclass(annotation, BaseModel):
        return "mapping"
    limits = [f"{sign} {getattr(m, key):g}" for m in (field.metadata if field else []) for key, sign in SIGNS.items()
              if getattr(m, key, None) is not None]  # fmt: skip
    name = str(annotation.__name__)
    return f"{ {'str': 'text', 'bool': 'true or false'}.get(name, name) } {', '.join(limits)}".rstrip()


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "the file's name"  # only the recipe's own name is required
    value = field.default
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`{{kind: {kind}}}`" if kind else "see below"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        kinds = [f"{{kind: {each.kind}}}" for each in value if hasattr(each, "kind")]  # type: ignore[attr-defined]
        return f"`[{', '.join(kinds)}]`" if kinds else "one, see below"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...').strip().removesuffix('...').strip()}`"


def recipe_keys() -> str:
    """All keys of a recipe: one table per config, under the paths where it is used."""
    places: dict[type[BaseModel], list[str]] = {}
    for path, config in sections():
        places.setdefault(config, []).append(path)
    parts = []
    for config, paths in places.items():
        kind = config.model_fields.get("kind")
        title = ", ".join(f"`{path}`" for path in dict.fromkeys(paths)) if paths != [""] else "Top"
        parts.append(f"## {title}" + (f": `{kind.default}`" if kind else ""))
        doc = (config.__doc__ or "").strip()
        if doc and "Base of every configuration" not in doc and not kind and doc != (BaseModel.__doc__ or "").strip():
            parts.append(inspect.cleandoc(doc).split("\n\n")[0].replace("\n", " "))
        if kind:
            owner = f"{config.__module__}.{config.__qualname__.removesuffix('.Config')}"
            parts.append(f"[`{owner.rsplit('.', 1)[1]}`][{owner}]")
        rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in config.model_fields.items():
            cells = (f"`{name}`", kind_of(field.annotation, field), default_of(field), meaning(config, name))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


# --- recipes and sample music -----------------------------------------------------------------------------------------


def recipe_files() -> list[Path]:
    return [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem != "base"]


def recipe_table() -> str:
    """The headers of the recipes, their rate plans, and the files."""
    rows = ["| recipe | purpose | hardware | time | reached |", "|---|---|---|---|---|"]
    plans = [
        "| recipe | sample rate, Hz | hops | codes per second | codebook | raw bits per second |",
        "|---|---|---|---|---|---|",
    ]
    for path in recipe_files():
        facts, tokenizer = header(path), load_recipe(str(path)).tokenizer
        model = tokenizer.model
        rows.append(
            f"| [`{path.stem}`](#{path.stem}) | "
            + " | ".join(facts[k] for k in ("purpose", "hardware", "time", "reached"))
            + " |"
        )
        if tokenizer.from_pretrained:
            plans.append(f"| `{path.stem}` | those of `{tokenizer.from_pretrained}` | | | | |")
            continue
        rate = sum(model.code_rates)
        plans.append(
            f"| `{path.stem}` | {model.sample_rate} | {', '.join(map(str, model.hop_lengths))} ({model.topology}) | "
            f"{' + '.join(f'{r:.4g}' for r in model.code_rates)} = {rate:.4g} | {model.codebook_size} | "
            f"{rate * model.bits_per_code:.0f} |"
        )  # fmt: skip
    texts = [f"## {path.stem}\n\n```yaml\n{path.read_text().rstrip()}\n```" for path in recipe_files()]
    return "\n".join(rows) + "\n\n## Rate plans\n\n" + "\n".join(plans) + "\n\n" + "\n\n".join(texts)


def sample_table() -> str:
    """The files in samples/."""
    rows = ["| file | seconds | rate, Hz | channels | kilobytes |", "|---|---|---|---|---|"]
    totals: dict[str, float] = {}
    for path in sorted((ROOT / "samples").rglob("*.opus")):
        info = soundfile.info(path)
        folder = path.parent.name
        totals[folder] = totals.get(folder, 0) + info.duration
        rows.append(f"| `{folder}/{path.name}` | {info.duration:.1f} | {info.samplerate} | {info.channels} | {path.stat().st_size / 1000:.0f} |")  # fmt: skip
    sums = ", ".join(f"`{folder}/` {seconds:.0f} s" for folder, seconds in totals.items())
    return "\n".join(rows) + f"\n\nIn all: {sums}."


# --- commands ---------------------------------------------------------------------------------------------------------


def command_pages() -> str:
    """Each command with its arguments and options, as `--help` prints them."""
    parts = []
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"audiovq {name}")
        usage = " ".join([f"audiovq {name}", *command.collect_usage_pieces(context)])
        parts.append(f"## audiovq {name}\n\n{inspect.cleandoc(command.help or '')}\n\n```text\n{usage}\n```")
        records = [
            found for p in command.params if isinstance(p, click.Option) and (found := p.get_help_record(context))
        ]
        rows = [f"| `{option}` | {_escaped(text)} |" for option, text in records]
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]) if rows else "No options.")
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("--", "\\--").replace("*", "\\*")


GENERATED = {"commands": command_pages, "recipe keys": recipe_keys, "recipes": recipe_table, "samples": sample_table}


# --- hooks of mkdocs ---------------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "idea.md":
        markdown = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", markdown)
    markdown = re.sub(r"^This page is filled when the site is built.*\n", "", markdown, flags=re.MULTILINE)
    return re.sub(r"<!-- generated: ([\w ]+) -->", lambda match: GENERATED[match[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    return formulae_to_mathml(html)


def formulae_to_mathml(page: str) -> str:
    r"""`\(…\)` and `\[…\]`, as arithmatex leaves them, become MathML: browsers draw it without a script."""
    from latex2mathml.converter import convert

    def convert_one(match: re.Match[str]) -> str:
        formula = re.sub(
            r"\\log(?![_({a-z])", r"\\log\\,", html.unescape(match[2]).strip()
        )  # the converter adds no space
        mathml = convert(formula, display="block" if match[1] == "div" else "inline")
        if "\\" in mathml:
            raise ValueError(f"{formula}: the converter does not know a command of this formula")
        return mathml

    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', convert_one, page, flags=re.DOTALL)
