"""Figures of the documentation as SVG in the colours of the page. They replace `<!-- figure: NAME -->` when the site is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

COLOURS = ("#5c6bc0", "#26a69a", "#ff7043")


def svg(width: int, height: int, parts: list[str], caption: str) -> str:
    label = re.sub(r"<[^>]+>", "", caption)
    body = "".join(parts)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}" font-size="13" '
        f'font-family="inherit" fill="currentColor">{body}</svg><figcaption>{caption}</figcaption></figure>'
    )


def box(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, extra: str = "") -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{colour}" '
        f'fill-opacity="{opacity}" {extra}/>'
    )


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def levels() -> str:
    """Three levels of codes over time, and the codes on which one code of the finest level depends."""
    left, width, height, target = 80, 560, 26, 15
    parts = []
    for level, (name, n) in enumerate((("level 0", 6), ("level 1", 12), ("level 2", 24))):
        y, step = 10 + 46 * level, width / n
        parts.append(text(left - 10, y + 18, name, "end"))
        now = target * n // 24
        for i in range(n):
            seen = (
                (now - 6 <= i < now)
                if level == 2
                else (now - 2 <= i <= now + 2)
                if level == 1
                else now - 1 <= i <= now + 1
            )
            stroke = 'stroke="currentColor" stroke-width="2.5"' if level == 2 and i == target else ""
            opacity = 0.0 if stroke else 1.0 if seen else 0.22
            parts.append(box(left + i * step + 1.5, y, step - 3, height, COLOURS[level], opacity, stroke))
    x = left + (target + 0.5) * width / 24
    parts.append(text(x, 10 + 46 * 2 + 18, "?", "middle"))
    parts.append(text(left, 165, "time →"))
    caption = (
        "Three levels of codes. The code marked ? is sampled given the bright codes: the past of its own level within the "
        "attention window, and the coarser codes around its time, some of them later."
    )
    return svg(660, 175, parts, caption)


def temperatures() -> str:
    """A sample of Gumbel-Softmax weights over eight codes at three temperatures, with the same noise."""
    random = np.random.default_rng(3)
    logits = np.array([0.4, 1.6, 0.2, 2.0, 1.2, -0.5, 0.8, 0.0])
    noise = random.gumbel(size=8)
    panels = [("softmax of the logits: q", logits, 1.0)]
    panels += [(f"τ = {t:g}", logits + noise, t) for t in (1.0, 0.25, 0.0625)]
    parts = []
    for k, (title, values, temperature) in enumerate(panels):
        weights = np.exp((values - values.max()) / temperature)
        weights /= weights.sum()
        left = 10 + 162 * k
        parts.append(
            f'<line x1="{left}" y1="120" x2="{left + 144}" y2="120" stroke="currentColor" stroke-opacity="0.4"/>'
        )
        parts += [
            box(left + 18 * i + 1, 120 - 95 * w, 15, 95 * w, COLOURS[0 if k == 0 else 2]) for i, w in enumerate(weights)
        ]
        parts.append(text(left + 72, 140, title, "middle"))
    caption = (
        "A distribution over eight codes (left), and a sample of its Gumbel-Softmax weights with the same noise at three "
        "temperatures: from a mixture to a single code."
    )
    return svg(660, 150, parts, caption)


FIGURES: dict[str, Callable[[], str]] = {"levels": levels, "temperatures": temperatures}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"<!-- figure: (\w+) -->", lambda m: FIGURES[m[1]](), markdown)
