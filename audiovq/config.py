"""Strict configuration: builds a frozen object from a mapping, or raises an error that names the wrong key.

Every component declares its own `Config` next to its class, and `recipe.py` composes them.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError


def recipe_folders() -> list[Path]:
    """The folders of the recipes that come with audiovq: of the installed package, or of the repository."""
    package = Path(__file__).parent
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


class Config(BaseModel):
    """Base of every configuration: immutable, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, mapping: Any) -> Any:
        known = list(cls.model_fields)
        for key in mapping if isinstance(mapping, dict) else ():
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
                raise PydanticCustomError("unknown_key", "{key}: unknown key, {hint}", {"key": key, "hint": hint})
        return mapping


ConfigT = TypeVar("ConfigT", bound=Config)


def one_of(table: dict[str, Any]) -> Any:
    """The type of a key that chooses a component from a table by `kind`. Each component has a `Config`."""
    configs = tuple(entry.Config for entry in table.values())
    if len(configs) == 1:
        return configs[0]
    return Annotated[Union[configs], Field(discriminator="kind")]  # noqa: UP007 - built at run time


def build(config_class: type[ConfigT], mapping: Any, source: str = "config") -> ConfigT:
    """Validate a mapping, as read from YAML or JSON.

    Raises:
        ValueError: one line with the source, the dotted path of the key, the expected and the found value.
    """
    mapping = _lists_to_tuples(mapping)
    try:
        return config_class.model_validate(mapping)
    except ValidationError as error:
        lines = [_explain(mapping, detail) for detail in error.errors()]
        raise ValueError(f"{source}: " + "; ".join(dict.fromkeys(lines))) from None


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number; in YAML 1.1 it is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; raises a one-line ValueError for a syntax error."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{source}{place}: not valid YAML ({getattr(error, 'problem', error)})") from None
    finally:
        loader.dispose()


def read_json(path: Path, largest: int = 1 << 24) -> Any:
    """Read a JSON file from an untrusted source.

    Raises:
        ValueError: more than `largest` bytes, no JSON, or a number that is not finite.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise ValueError(f"expected at most {largest} bytes, found {size}")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: damaged ({reason}); download or train it again") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, found {text}")
    return number


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a YAML text file, found binary data") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `override`. Mappings merge key by key, unless their `kind` differs."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            is_same_kind = value.get("kind", old.get("kind")) == old.get("kind")
            merged[key] = merge(old, value) if is_same_kind else value
        else:
            merged[key] = value
    return merged


def set_path(mapping: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path such as `a.b.0.c` in nested mappings and lists; adds missing mappings."""
    *parents, last = path.split(".")
    place: Any = mapping
    for i, part in enumerate(parents):
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[_index(place, part, ".".join(parents[: i + 1]))]
    place[_index(place, last, path)] = value


def _index(place: Any, part: str, path: str) -> Any:
    if isinstance(place, dict):
        return part
    if isinstance(place, list):
        if part.isdigit() and int(part) < len(place):
            return int(part)
        raise ValueError(f"{path}: expected an index below {len(place)}, found {part!r}")
    raise ValueError(f"{path}: expected a mapping or list that contains {part!r}, found the value {place!r}")


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _explain(mapping: Any, detail: Any) -> str:
    """One error of pydantic as a sentence that begins with the key's path, without the tags of unions."""
    keys, place = [], mapping
    for part in detail["loc"]:
        if isinstance(place, dict | tuple) and (part in place if isinstance(place, dict) else isinstance(part, int)):
            place = place[part]
            keys.append(str(part))
    if detail["type"] == "missing":
        return ".".join([*keys, f"{detail['loc'][-1]}: required, but missing"])
    if detail["type"] == "unknown_key":
        return ".".join([*keys, detail["msg"]])
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
    else:
        expected = detail["msg"].replace("Input should be", "expected").replace("tuple", "list")
        message = f"{expected}, found {detail.get('input')!r}"
    return f"{'.'.join(keys)}: {message}" if keys else message
