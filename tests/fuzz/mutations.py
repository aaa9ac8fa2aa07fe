"""Damage to files: bytes as disks and downloads lose them, and text as people mistype it. All of it is seeded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

Random = np.random.Generator

# Values that stand where a file's reader expects something else.
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x" * 3000, "\x00", "../../etc/passwd",
    "\ud800", [], {}, [[[]]], {"a": {}}, [None], "1", "nan",
]  # fmt: skip
ODD_NUMBERS = [b"\x00" * 8, b"\xff" * 8, struct.pack("<q", 2**31), struct.pack("<d", np.nan), struct.pack("<d", np.inf)]
ODD_LINES = [
    "\x07", "a: &a [*a]", "? [a]", "tokenizer: ~", "- 1", "<<: *nobody", "!!python/object:os.system x", "\t- tab",
    "x: !!timestamp zz", "x: 1e309", "x: .inf", "x: {", "seed: 010", "seed: 1:30", "data: {folder: ~}", "ä: ü", "\ud800",
]  # fmt: skip


def cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(0, max(1, len(data))))]


def twice(data: bytes, random: Random) -> bytes:
    return data + data


def damage(data: bytes, random: Random) -> bytes:
    """One to three kinds of damage to bytes."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        n = len(changed)
        if not n:
            break
        place, length = int(random.integers(n)), int(min(n, 2 ** random.integers(0, 13)))
        kind = random.integers(7)
        if kind == 0:  # flipped bits
            for at in random.integers(n, size=random.integers(1, 9)):
                changed[at] ^= 1 << int(random.integers(8))
        elif kind == 1:  # a block that was never written
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = random.bytes(length)
        elif kind == 5:
            changed[place:place] = changed[place : place + length]
        else:
            number = ODD_NUMBERS[random.integers(len(ODD_NUMBERS))]
            changed[place : place + len(number)] = number
    return bytes(changed)


def twist(value: Any, random: Random) -> Any:
    """A copy of a JSON value with one to three values replaced, removed, renamed or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(random.integers(1, 4)):
        places = list(_places(value))
        if not places:
            return ODD_VALUES[random.integers(len(ODD_VALUES))]
        parent, key = places[random.integers(len(places))]
        kind = random.integers(6)
        if kind == 0 and isinstance(parent, dict):
            parent[f"{key}s"] = parent.pop(key)
        elif kind == 1:
            del parent[key]
        elif kind == 2:
            parent[key] = [parent[key]] * 3
        elif kind == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            parent[key] = parent[key] * [-1, 1000, 0.5, 2**40][random.integers(4)]
        else:
            parent[key] = ODD_VALUES[random.integers(len(ODD_VALUES))]
    return value


def _places(value: Any) -> Any:
    """Every (container, key) within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


def mistype(text: str, random: Random) -> str:
    """A text with lines removed, repeated, moved, indented or replaced by odd ones."""
    lines = text.splitlines()
    for _ in range(random.integers(1, 4)):
        if not lines:
            break
        i, kind = int(random.integers(len(lines))), random.integers(6)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, lines[i])
        elif kind == 2:
            lines.insert(int(random.integers(len(lines))), lines.pop(i))
        elif kind == 3:
            lines[i] = " " * int(random.integers(1, 5)) + lines[i]
        elif kind == 4 and ":" in lines[i]:
            key = lines[i].split(":")[0]
            lines[i] = f"{key}: {ODD_VALUES[random.integers(len(ODD_VALUES))]!r:.200}"
        else:
            lines.insert(i, ODD_LINES[random.integers(len(ODD_LINES))])
    return "\n".join(lines)


def any_of(*changes: Callable[[bytes, Random], bytes]) -> Callable[[bytes, Random], bytes]:
    return lambda data, random: changes[random.integers(len(changes))](data, random)


def damaged_json(data: bytes, random: Random) -> bytes:
    """JSON with twisted values half of the time, and damaged bytes otherwise."""
    if random.random() < 0.5:
        return damage(data, random)
    return json_bytes(twist(json.loads(data), random))
