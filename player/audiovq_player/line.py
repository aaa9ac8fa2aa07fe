"""The codes of a level while they are drawn: one thread puts, others get."""

import threading

import numpy as np

OUTSIDE = -1  # where a piece has no code


class Stopped(Exception):
    """Nobody wants the piece any more."""


class Line:
    """The last codes of a level, at constant memory.

    Args:
        n_codes: length of the piece in codes; None is without end.
        capacity: codes that are kept, at least.
        changed: notified when something changes; it also guards what levels share.
    """

    def __init__(self, n_codes: int | None, capacity: int, changed: threading.Condition):
        self.n_codes, self.changed = n_codes, changed
        self.codes = np.full(capacity if n_codes is None else min(capacity, n_codes), OUTSIDE, dtype=np.int64)
        self.count = 0

    def put(self, code: int) -> None:
        self.codes[self.count % len(self.codes)] = code
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def has(self, end: int) -> bool:
        """Whether all codes before `end` are there, as far as the piece has them."""
        return self.count >= (end if self.n_codes is None else min(end, self.n_codes))

    def get(self, index: np.ndarray) -> np.ndarray:
        """Codes by their number, int64; `OUTSIDE` for numbers outside the piece."""
        n = self.n_codes
        inside = index >= 0 if n is None else (index >= 0) & (index < n)
        return np.where(inside, self.codes[index % len(self.codes)], OUTSIDE)
