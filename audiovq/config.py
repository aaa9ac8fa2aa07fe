"""Strict configuration: builds a frozen object from a mapping, or raises an error that names the wrong key. Every
component declares its own `Config` next to its class, and `recipe.py` composes them."""

import difflib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError


def recipe_folders() -> list[Path]:
    """The folders of the recipes that come with audiovq: of the installed package, or of the repository."""
    package = Path(__file__).parent
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


def known_recipes() -> dict[str, Path]:
    """The recipes that come with audiovq, by name."""
    return {path.stem: path for folder in reversed(recipe_folders()) for path in sorted(folder.glob("*.yaml"))}


LARGEST_NUMBER = (1 << 63) - 1  # of keys without a limit of their own


class Config(BaseModel):
    """Base of every configuration: immutable, strict about types, and without unknown keys. Keys whose numbers bound
    loops, or memory that does not depend on the weights, have limits (`le`): a config may come from anybody."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, mapping: Any) -> Any:
        known = list(cls.model_fields)
        for key, value in mapping.items() if isinstance(mapping, dict) else ():
            problem = ""
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
                problem = f"unknown key, {hint}"
            elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:  # nor infinity or NaN
                problem = f"expected at most {LARGEST_NUMBER}, found {value!r:.24}"
            if problem:
                raise PydanticCustomError("key", "{key}: {problem}", {"key": key, "problem": problem})
        return mapping


ConfigT = TypeVar("ConfigT")  # a `Config`, or a dataclass
Window = Annotated[int, Field(ge=8, le=1 << 16)]  # samples of a short-time spectrum, with hops of a quarter


def one_of(table: dict[str, Any]) -> Any:
    """The type of a key that chooses a component from a table by `kind`. Each component has a `Config`."""
    configs = tuple(entry.Config for entry in table.values())
    return Annotated[Union[configs], Field(discriminator="kind")]  # noqa: UP007 - built at run time


def build(config_class: type[ConfigT], mapping: Any, source: str = "config") -> ConfigT:
    """Validate a mapping. Raises ValueError: one line with source, path, expected and found value."""
    try:
        mapping = _lists_to_tuples(mapping)
        return TypeAdapter(config_class).validate_python(mapping)
    except RecursionError:
        raise ValueError(f"{source}: nested too deeply") from None
    except ValidationError as error:
        lines = dict.fromkeys(f"{_explain(mapping, detail):.300}" for detail in error.errors())
        # One line, also for a file full of errors.
        raise ValueError(f"{source}: {'; '.join(list(lines)[:3])}") from None


def whole_number(value: Any, what: str) -> int:
    """The whole number that any kind of number means, also one of NumPy or torch; ValueError for another value."""
    try:
        if int(value) == value:
            return int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ValueError(f"{what}: expected a whole number, found {value!r:.40}")


NUMBERS = {
    "int": r"[-+]?([0-9][0-9_]*|0x[0-9a-fA-F_]+)",
    "float": r"[-+]?(\d[\d_]*\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
}
MAX_JSON_BYTES = 1 << 24
MAX_YAML_BYTES, MAX_YAML_NODES, MAX_YAML_DEPTH = 1 << 20, 20_000, 50  # the recipes have 300 nodes, and depth 8


class _Loader(yaml.SafeLoader):
    """A YAML loader for which scalars are what they look like: 1e-3 and 010 are numbers, 1:30 and dates are text."""

    def construct_yaml_int(self, node: yaml.Node) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")  # type: ignore[arg-type]
        return int(text, 16 if "x" in text else 10)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in getattr(node, "value", ()) if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` or a loader of YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in {*NUMBERS, "timestamp"}]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in NUMBERS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^({_pattern})$"), list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; ValueError if it is not valid, has a key twice, or more than a recipe can need."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_size(node)
        return loader.construct_document(node) if node else None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "problem", None) or error
        raise ValueError(f"{source}{place}: not valid YAML ({' '.join(str(reason).split())})") from None


def _check_size(node: Any) -> None:
    """Raises ValueError for more values than a recipe has (an alias counts as often as it is used), or odd types."""
    left, n = [(node, 0)], 0
    while left:
        node, depth = left.pop()
        n += 1
        if depth > MAX_YAML_DEPTH or n > MAX_YAML_NODES:
            raise ValueError(f"more than {MAX_YAML_NODES} values, or more than {MAX_YAML_DEPTH} levels deep")
        if node and node.tag.rpartition(":")[2] not in {"null", "bool", "int", "float", "str", "seq", "map", "merge"}:
            raise yaml.MarkedYAMLError(problem=f"unknown type {node.tag}", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            left += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            left += [(each, depth + 1) for each in node.value]


def to_yaml(mapping: dict[str, Any]) -> str:
    """YAML text that `parse_yaml` reads as the same mapping."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, width=120)


def read_json(path: Path) -> Any:
    """Read a JSON file from any source; ValueError for more than 16 MB, no JSON, or infinite numbers."""
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ValueError(f"expected at most {MAX_JSON_BYTES} bytes, found {size}")
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
    with path.open("rb") as file:
        content = file.read(MAX_YAML_BYTES + 1)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a YAML text file in UTF-8, found binary data or another encoding") from None
    if len(content) > MAX_YAML_BYTES:
        raise ValueError(f"{path}: expected a recipe of at most {MAX_YAML_BYTES} bytes, found a larger file")
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
    if detail["type"] == "key":
        return ".".join([*keys, detail["msg"]])
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
    else:
        expected = detail["msg"].replace("Input should be", "expected").replace("tuple", "list")
        expected = expected.replace("less than or equal to", "at most")
        expected = expected.replace("Tuple should have", "expected").partition(" after validation")[0]
        message = f"{expected}, found {detail.get('input')!r:.100}"
    return f"{'.'.join(keys)}: {message}" if keys else message
