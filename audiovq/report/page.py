"""Contents → one self-contained HTML file: nothing in it is fetched from anywhere."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.report import provenance
from audiovq.report.clips import choose, render
from audiovq.report.contents import PARTS, Clip, Group, run_groups
from audiovq.report.curves import stage_curves
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import SUMS, atomic_file
from audiovq.utils.progress import say

MAX_BYTES = 14_500_000  # of the file
PACKAGE = Path(__file__).resolve().parent.parent
TEXT_BYTES = 1_500_000  # of it, for all that is neither sound nor picture


def report_run(run: Path, out: Path | None = None) -> dict[str, Any]:
    """Write what a run has reached so far to `out`, default report.html in the run.

    Returns:
        The file, its size in bytes, the clips in it, those left out, their audio format and longest excerpt in seconds.
    Raises:
        ValueError: not a run, damaged samples, or a place that cannot be written.
    """
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run}: expected the folder of a run, found no recipe.yaml in it")
    network = provenance.load_tokenizer(run)
    groups = run_groups(run, network.config if network else None)
    page = {"title": run.resolve().name, "kind": "run", "asked": {}}
    return _write(out or run / "report.html", page, groups, run, network)


def report_pieces(
    out: Path, model: Path, pieces: Mapping[str, Path], asked: Mapping[str, str] | None = None,
    source: Path | None = None, start: float = 0.0, is_changed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a page for generated pieces by name, with the model's provenance; as `report_run`.

    Args:
        asked: what was asked for, to be told.
        source: the recording that was continued or changed, to be heard before the pieces.
        start: second of the pieces from which on excerpts of long ones are taken.
        is_changed: the pieces are the source but for what was drawn anew, so they can be compared from `start` on.
    """
    network = provenance.load_tokenizer(model)
    clips = [Clip(name, path, start=start) for name, path in pieces.items()]
    if source:
        rate = network.config.sample_rate if network else None  # what is above it, the pieces cannot have
        first = Clip("Source", source, start=start if is_changed else 0.0, sample_rate=rate)
        groups = [Group("", "pieces", [first, *clips], source=is_changed)]
    else:
        groups = [Group("", "pieces", clips)]
    page = {"title": out.stem, "kind": "pieces", "asked": asked or {}}
    return _write(out, page, groups, model, network)


def _write(
    out: Path, page: dict[str, Any], groups: Sequence[Group], model: Path, network: VQVAE | None
) -> dict[str, Any]:
    shown, n_left_out = choose(groups)
    clips, sound = render(shown, MAX_BYTES - TEXT_BYTES)
    for clip in clips:
        clip["link"] = quote(os.path.relpath(clip["path"], out.parent))
    remaining = iter(clips)
    rendered = [{**vars(group), "clips": [next(remaining) for _ in group.clips]} for group in shown]
    html = _environment().get_template("page.html").render(
        **page, clips=clips, sections=_sections(rendered), sound=sound, n_left_out=n_left_out, model=_model_facts(model, network),
        abx=_comparisons(rendered), curves=stage_curves(model / "training"), levels=_levels(model),
        data=provenance.data_facts(model), credits=provenance.credits_html(model),
        recipe=provenance.recipe_text(model), versions=provenance.versions(),
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )  # fmt: skip
    content = html.encode("utf-8", errors="replace")
    with atomic_file(out) as temporary:
        temporary.write_bytes(content)
    return {
        "report": str(out), "bytes": len(content), "clips": len(clips), "clips_left_out": n_left_out,
        "audio_format": sound["format"], "excerpt_seconds": sound["excerpt_seconds"],
    }  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("audiovq.report", "template"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"clock": clock, "signed": signed}
    return environment


def clock(seconds: float) -> str:
    """0:07.5, 3:20"""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}" if rest % 1 else f"{minutes:.0f}:{rest:02.0f}"


def signed(decibels: float) -> str:
    return f"{decibels:+.1f}".replace("-", "−")


def _sections(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups by part of the page."""
    sections = []
    tuned = any(group["part"] == "decoder" for group in groups)
    for part, (title, about) in PARTS.items():
        mine = [group for group in groups if group["part"] == part]
        if mine:
            earlier = part == "tokenizer" and tuned
            title = f"{title}, before the decoder was tuned" if earlier else title
            sections.append({"id": part, "title": title, "about": about, "groups": mine})
    return sections


def _comparisons(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the blind test can compare: a source with each of its reconstructions."""
    chosen = [group for group in groups if group["source"] and len(group["clips"]) > 1]
    return [
        {
            "title": group["title"] or "This piece", "part": group["part"],
            "clips": [{"id": clip["id"], "name": clip["name"]} for clip in group["clips"]],
        }
        for group in chosen
    ]  # fmt: skip


def _model_facts(model: Path, network: VQVAE | None) -> dict[str, Any] | None:
    """The tokenizer's plan in words, and what its codes cost uncompressed."""
    if network is None:
        return None
    c, codes = network.config, sum(network.config.code_rates)
    hashes = {"tokenizer": tokenizer_hash(network)}
    for level in range(c.n_levels):
        folder = model / f"prior-{level}"
        if (folder / SUMS).is_file():
            hashes[folder.name] = (provenance.read_json(folder / SUMS) or {}).get(checkpoint.WEIGHTS, "")
    return {
        "name": "the bundled model" if PACKAGE in model.resolve().parents else model.resolve().name, "sample_rate": c.sample_rate, "channels": c.channels, "n_levels": c.n_levels,
        "code_rates": c.code_rates, "codebook_size": c.codebook_size, "codes_per_second": codes,
        "kbps": codes * math.log2(c.codebook_size) / 1000, "hashes": hashes,
        "priors": len(hashes) - 1,
    }  # fmt: skip


def _levels(model: Path) -> dict[str, Any] | None:
    """What report.json says: split and a row a level."""
    report = provenance.read_json(model / "report.json")
    if report is None or not report.get("levels"):
        return None
    total = [level["bits_per_second"] for level in report["levels"] if "bits_per_second" in level]
    return {**report, "bits_per_second": sum(total) if len(total) == len(report["levels"]) else None}


def try_report(write: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """The page is a by-product: whatever is wrong with it is said, and spoils neither a training nor new music."""
    try:
        facts = write()
    except Exception as error:
        say(f"no listening report: {' '.join(str(error).split()) or type(error).__name__}")
        return None
    say(f"listen: {facts['report']}")
    return facts
