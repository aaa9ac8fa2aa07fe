"""The listening report beside new pieces. A module of its own: `sample` without it need not load what draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa.core.convert  # noqa: F401  # librosa loads its parts at first use, which would be after the codes

from audiovq.pipeline.sample import Sampled, output_paths
from audiovq.report import report_pieces, try_report

SECONDS_BEFORE = 5.0  # that an excerpt of a long piece begins before what was drawn anew


def write_page(sampled: Sampled) -> str | None:
    """Write the page; its name, or None if that failed, which has been said then."""
    files, options = sampled.files, sampled.options
    path = output_paths(options, sampled.seed)[0].with_suffix(".html")
    pieces = {f"Item {item}" if len(files) > 1 else file.name: file for item, file in files.items()}
    start = max(0.0, sampled.first_new_second - SECONDS_BEFORE)
    is_changed = bool(options.source and not options.before and not options.after)  # second by second the same piece
    source = Path(options.source or options.prompt or "")
    recording = source if source.suffix and source.suffix != ".codes" else None
    facts = try_report(
        lambda: report_pieces(path, sampled.model, pieces, _asked(sampled), recording, start, is_changed)
    )
    return facts["report"] if facts else None


def _asked(sampled: Sampled) -> dict[str, str]:
    """What was asked for, in words; what is as usual is left out."""
    o = sampled.options
    change = {"from": o.start, "to": o.end, "before": o.before, "after": o.after, "keep levels": o.keep_levels}
    told: dict[str, Any] = {"length": f"{sampled.seconds:g} s", "seed": sampled.seed}
    told |= {"label": ", ".join(f"{name}={value}" for name, value in o.labels.items()), "text": o.text}
    told |= {"chroma": o.chroma, "prompt": o.prompt, "edit": o.source, **{k: v for k, v in change.items() if v}}
    told |= {name.replace("_", "-"): value for name, value in o.settings.items() if value not in (1, "auto")}
    return {name: _words(value) for name, value in told.items() if value not in (None, "")}


def _words(value: Any) -> str:
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, list) else str(value)
