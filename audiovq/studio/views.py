"""What the page says and shows of versions, sketches and recordings: values for its players, links and sentences."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from audiovq.data.codes import Codes
from audiovq.studio.code_images import LEFT, RIGHT
from audiovq.studio.service import PieceRequest, Service, Session
from audiovq.studio.uploads import Recording

SETTINGS = ("temperature", "top_p", "top_k", "guidance")


def address(path: Path) -> str:
    """Where the page finds a file: relative, so that it also works behind a proxy."""
    return f"gradio_api/file={quote(str(path))}"


def downloads(files: dict[str, Path], name: str) -> str:
    links = [f'<a href="{address(path)}" download="{name}{path.suffix}">{kind}</a>' for kind, path in files.items()]
    return f'<div class="downloads"><span>Download</span>{"".join(links)}</div>'


def sketch(path: Path, n_levels: int, n_all: int) -> dict[str, Any]:
    title = f"A sketch: {n_levels} of {n_all} levels" if n_levels < n_all else "All levels; the picture follows"
    return {"sound": address(path), "title": title, "piece": "new"}


def version(desk: Session, number: int) -> dict[str, Any]:
    it = desk.tree.get(number)
    came = f"Made from version {it.parent}" if it.parent else "A beginning"
    came += f", seed {it.seed}" if it.seed is not None else ""
    note = f"{came}. The strips are its codes, level by level; the same code has the same colour. Drag over a stretch to mark it."
    return {
        "sound": address(desk.shelf.sound(it)), "title": f"Version {it.name}", "note": note, "piece": "new",
        "markable": True, **_picture(desk.shelf.picture(it), it.codes),
    }  # fmt: skip


def _picture(path: Path, codes: Codes) -> dict[str, Any]:
    return {"picture": address(path), "seconds": codes.seconds, "left": LEFT, "right": RIGHT}


def take(desk: Session, i: int) -> dict[str, Any]:
    it = desk.takes[i]
    return {"sound": address(desk.shelf.sound(it)), "title": f"Take {i + 1}", "piece": "new"}


def version_files(desk: Session, number: int) -> str:
    it, shelf = desk.tree.get(number), desk.shelf
    return downloads({"WAV": shelf.sound(it), "FLAC": shelf.flac(it), "Codes": shelf.codes(it)}, f"audiovq-{number}")


def recording(it: Recording) -> tuple[str, list[dict[str, Any]]]:
    """A sentence on a recording, and what its players show: the recording (or its codes in full), then each prefix."""
    codes, note = (
        it.codes,
        "The recording, and its codes over its spectrogram" if it.is_audio else "Codes that were kept",
    )
    players = [{"sound": address(it.original), "title": it.name, "note": note, **_picture(it.picture, codes)}]
    rates = [codes.sample_rate / hop for hop in codes.hop_lengths]
    for k, path in enumerate(it.prefixes, 1):
        bits = sum(rates[:k]) * math.log2(codes.codebook_size)
        words = "1 level makes" if k == 1 else f"{k} levels make"
        note = f"{sum(rates[:k]):.0f} codes a second, {bits / 1000:.2f} kbit/s"
        players.append({"sound": address(path), "title": f"What {words} of it", "note": note})
    n_codes = " + ".join(str(len(level)) for level in codes.levels)
    left_out = f" ({it.note})" if it.note else ""
    return f"**{html.escape(it.name)}**: {codes.seconds:.1f} s{left_out} became {n_codes} codes.", players


def wish(bench: Service, values: Sequence[Any]) -> PieceRequest:
    """From the page's controls, in their order: seed, takes, text, recording, labels, then each setting a level.

    Raises:
        ValueError: a seed that is no number.
    """
    seed, takes, text, chroma, *rest = values
    names = list(bench.generator.labels)
    labels = {name: value for name, value in zip(names, rest, strict=False) if value}
    numbers, n = rest[len(names) :], bench.n_levels
    settings = {name: numbers[i * n : (i + 1) * n] for i, name in enumerate(SETTINGS)}
    settings["top_k"] = [int(value) for value in settings["top_k"]]
    if seed and not str(seed).strip().isdecimal():
        raise ValueError(f"seed: expected a whole number from 0 on, or nothing; found {seed}")
    return PieceRequest(int(seed) if seed else None, int(takes), labels, text or "", Path(chroma) if chroma else None, settings)
