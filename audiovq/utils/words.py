"""Lists in messages."""

import difflib
from collections.abc import Sequence

MOST = 10


def listed(values: Sequence[str], wanted: str = "") -> str:
    """`a, b, c and 1,497 more`: at most ten values, those like `wanted` first, none of them long."""
    first = difflib.get_close_matches(wanted, values, n=MOST) if wanted else []
    shown = [*first, *(value for value in values[: 2 * MOST] if value not in first)][:MOST]
    more = f" and {len(values) - len(shown):,} more" if len(values) > len(shown) else ""
    return ", ".join(value if len(value) < 60 else f"{value[:60]}…" for value in shown) + more or "none"
