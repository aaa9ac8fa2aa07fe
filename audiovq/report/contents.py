"""What a run has to be listened to, in the order of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audiovq.tokenizer.vqvae import VQVAEConfig

RECONSTRUCTION = re.compile(r"(?P<track>.+)-(?:source|levels-(?P<levels>\d+))\.wav")


@dataclass(frozen=True)
class Clip:
    """An audio file, or the part of it from `start` seconds on."""

    name: str
    path: Path
    note: str = ""
    start: float = 0.0
    sample_rate: int | None = None  # Hz, to be heard at; default the file's own


@dataclass(frozen=True)
class Group:
    """Clips to be compared with each other; where `source` is set, the first is what the others are to be like."""

    title: str
    part: str  # of the page: key of `PARTS`
    clips: Sequence[Clip] = field(default_factory=list)
    source: bool = False


PARTS = {
    "decoder": ("Reconstruction", "Held-out music and what each number of levels makes of it, with the tuned decoder."),
    "tokenizer": ("Reconstruction", "Held-out music and what each number of levels makes of it, coarse to fine."),
    "generated": ("New music", "Drawn code after code by the priors. Each level was added to the same piece."),
    "pieces": ("New music", "Drawn code after code by the priors."),
}


def run_groups(run: Path, model: VQVAEConfig | None) -> list[Group]:
    """The samples that a run left, its newest stages first."""
    found = [group for stage in ("decoder", "tokenizer") for group in _reconstructions(run / "samples" / stage, model)]
    return [*found[:2], *_generated(run / "samples"), *found[2:]]


def _reconstructions(folder: Path, model: VQVAEConfig | None) -> list[Group]:
    tracks: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.wav")):
        match = RECONSTRUCTION.fullmatch(path.name)
        if match:
            tracks.setdefault(match["track"], {})[int(match["levels"] or 0)] = path
    groups = []
    for track, paths in tracks.items():
        n_levels = max(paths)
        names = {k: "Source" if k == 0 else levels_name(k, n_levels) for k in sorted(paths)}
        clips = [Clip(name, paths[k], _rate(k, model)) for k, name in names.items()]
        groups.append(Group(track, folder.name, clips, source=0 in paths))
    return groups


def _generated(folder: Path) -> list[Group]:
    """Item i of every level's samples is the same piece: one group."""
    priors = sorted(folder.glob("prior-*"), key=lambda path: int(path.name.removeprefix("prior-")))
    items = sorted({p.stem for prior in priors for p in prior.glob("item-*.wav")}, key=lambda name: int(name[5:]))
    groups = []
    for item in items:
        found = {k: prior / f"{item}.wav" for k, prior in enumerate(priors, start=1)}
        clips = [Clip(levels_name(k, len(priors)), path) for k, path in reversed(found.items()) if path.is_file()]
        groups.append(Group(f"Piece {int(item[5:]) + 1}", "generated", clips))
    return groups


def levels_name(k: int, n_levels: int) -> str:
    if k == n_levels:
        return "The one level" if k == 1 else f"All {k} levels"
    return "The top level alone" if k == 1 else f"{k} of {n_levels} levels"


def _rate(k: int, model: VQVAEConfig | None) -> str:
    """What the first k levels cost, uncompressed."""
    if not k or model is None or k > model.n_levels:
        return ""
    codes = sum(model.code_rates[:k])
    return f"{codes:.0f} codes/s, {codes * math.log2(model.codebook_size) / 1000:.2f} kbps"
