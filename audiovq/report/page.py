"""The page: one self-contained HTML file that loads nothing from anywhere."""

import base64
import datetime
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from audiovq.pretrained.export import load_template, run_facts
from audiovq.report import provenance
from audiovq.report.clips import PARTS, Clip, Group, choose, render, run_groups
from audiovq.report.curves import stage_curves
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import check_output, write_text
from audiovq.utils.progress import say

MAX_BYTES = 14_500_000  # of the file
TEMPLATE = Path(__file__).parent / "template"
SCRIPTS = ("pictures.js", "player.js", "page.js")  # in the order of their imports
TEXT_BYTES = 1_500_000  # reserved for everything but sounds


def report_run(run: Path, out: Path | None = None) -> dict[str, Any]:
    """Write the results of a run so far to `out`, default report.html in the run. Returns the file, its size
    in bytes, and the number of clips. ValueError for no run, damaged samples, or an unwritable file."""
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run}: expected the folder of a run, found no recipe.yaml in it")
    network = provenance.load_tokenizer(run)
    groups = run_groups(run, network.config if network else None)
    page = {"title": run.resolve().name, "kind": "run", "settings": {}, "tiles": []}
    return _write(out or run / "report.html", page, groups, run, network)


def report_pieces(
    out: Path, model: Path, network: VQVAE, pieces: Mapping[str, Path], settings: Mapping[str, str] | None = None,
    source: Path | None = None, start: float = 0.0, comparable: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a page for generated pieces, audio files by name, with the provenance of their model; as `report_run`.

    Args:
        network: the model's tokenizer.
        settings: how they were made, by name.
        source: a recording that was continued or changed; it is the first clip.
        start: second of the pieces where excerpts of long ones begin.
        comparable: the pieces are the source except for what was drawn anew, so a blind test can compare them.
    """
    clips = [Clip(name, path, start=start) for name, path in pieces.items()]
    if source:
        rate = network.config.sample_rate  # the pieces have no higher frequencies
        clips.insert(0, Clip("Source", source, start=start if comparable else 0.0, sample_rate=rate))
    group = Group("", "pieces", clips, source=comparable and source is not None)
    settings = dict(settings or {})
    tiles = [(name.capitalize(), settings.pop(name), "") for name in ("length", "seed") if name in settings]
    channels = "mono" if network.config.channels == 1 else "stereo"
    tiles.append(("Sound", f"{network.config.sample_rate / 1000:g} kHz", channels))
    page = {"title": out.stem, "kind": "pieces", "settings": settings, "tiles": tiles}
    return _write(out, page, [group], model, network)


def _write(out: Path, page: dict[str, Any], groups: list[Group], model: Path, network: VQVAE | None) -> dict[str, Any]:
    shown, n_left_out = choose(groups)
    clips, sound_format = render(shown, MAX_BYTES - TEXT_BYTES)
    for clip in clips:
        clip["link"] = quote(os.fsencode(os.path.relpath(clip["path"], out.parent)))
    remaining = iter(clips)
    rendered = [{**vars(group), "clips": [next(remaining) for _ in group.clips]} for group in shown]
    style, script = (_joined(names) for names in (("player.css", "page.css"), SCRIPTS))
    digests = {kind: hashlib.sha256(text.encode()).digest() for kind, text in (("style", style), ("script", script))}
    sources = [f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" for kind, digest in digests.items()]
    policy = "; ".join(["default-src 'none'; media-src data:; img-src data:", *sources])
    page |= {"style": style, "script": script, "policy": policy, "sound_format": sound_format, "n_left_out": n_left_out}
    page |= {"clips": clips, "sections": _sections(rendered), "abx": _comparisons(rendered)}
    page |= {"model": provenance.model_facts(model, network), "run": run_facts(model)}
    page |= {"credits": provenance.credits_html(model), "versions": provenance.versions()}
    page["curves"] = stage_curves(model / "training")
    page["written"] = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    html = load_template(TEMPLATE / "page.html", autoescape=True, clock=clock, signed=signed).render(page)
    check_output(out, [b"<!doctype html"])
    write_text(out, html.encode("utf-8", errors="replace").decode())  # file names may be no UTF-8
    return {"report": str(out), "bytes": out.stat().st_size, "clips": len(clips)}


def _joined(names: Sequence[str]) -> str:
    """Style sheets, or modules as one: the page is one file, so nothing is imported or exported."""
    text = "\n".join((TEMPLATE / name).read_text("utf-8") for name in names)
    return re.sub(r"^export |^import .*\n", "", text, flags=re.MULTILINE)


def clock(seconds: float) -> str:
    """0:07.5, 3:20"""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}" if rest % 1 else f"{minutes:.0f}:{rest:02.0f}"


def signed(decibels: float) -> str:
    return f"{decibels:+.1f}".replace("-", "−")


def _sections(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    sections = []
    tuned = any(group["part"] == "decoder" for group in groups)
    for part, (title, about) in PARTS.items():
        mine = [group for group in groups if group["part"] == part]
        if part == "tokenizer" and tuned:
            title += ", before the decoder was tuned"
        if mine:
            sections.append({"id": part, "title": title, "about": about, "groups": mine})
    return sections


def _comparisons(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the blind test can compare: a source with each of its reconstructions."""
    found = []
    for group in groups:
        if group["source"] and len(group["clips"]) > 1:
            clips = [{"id": clip["id"], "name": clip["name"]} for clip in group["clips"]]
            found.append({"title": group["title"] or "This piece", "part": group["part"], "clips": clips})
    return found


def try_report(write: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Write a page as a by-product: an error is printed, and stops neither training nor sampling."""
    try:
        facts = write()
    except Exception as error:
        say(f"no listening report: {' '.join(str(error).split()) or type(error).__name__}")
        return None
    say(f"listen: {facts['report']}")
    return facts
