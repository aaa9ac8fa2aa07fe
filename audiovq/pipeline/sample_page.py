"""The listening report of new pieces; a separate module, because `--no-report` does not load it."""

from pathlib import Path
from typing import Any

from audiovq.pipeline.sample import Sampled
from audiovq.report.page import report_pieces, try_report

SECONDS_BEFORE = 5.0  # of known music in an excerpt, before the first new code


def write_page(sampled: Sampled) -> str | None:
    """Write the page; returns its name, or None if that failed."""
    files, o = sampled.files, sampled.options
    path = o.paths()[0].with_suffix(".html")
    pieces = {f"Item {item}" if len(files) > 1 else file.name: file for item, file in files.items()}
    start = max(0.0, sampled.first_new_second - SECONDS_BEFORE)
    same_length = bool(o.source and not o.before and not o.after)
    source = Path(o.source or o.prompt or "")
    recording = source if source.suffix and source.suffix != ".codes" else None
    found: dict[str, Any] = {"length": f"{sampled.seconds:g} s", "seed": o.seed}
    found |= {"label": ", ".join(f"{name}={value}" for name, value in o.labels.items()), "text": o.text}
    found |= {"chroma": o.chroma, "notes": o.notes, "chords": o.chords}
    found |= {"prompt": o.prompt, "edit": o.source, "from": o.start, "to": o.end}
    found |= {"before": o.before or None, "after": o.after or None, "keep levels": o.keep_levels}
    for name in ("temperature", "top_k", "top_p", "guidance", "precision"):
        value = getattr(o, name)
        found[name.replace("_", "-")] = None if value in (1, "auto") else value
    texts = {name: ", ".join(f"{x:g}" for x in v) if isinstance(v, list) else v for name, v in found.items()}
    settings = {name: str(text) for name, text in texts.items() if text not in (None, "")}
    arguments = path, sampled.model, sampled.tokenizer.network, pieces, settings, recording, start, same_length
    facts = try_report(lambda: report_pieces(*arguments))
    return facts["report"] if facts else None
