"""A piece while it is made: a thread for each level, and the decoder in the thread that reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from audiovq_player.decoder import Decoder
from audiovq_player.level import Level, Request
from audiovq_player.line import Line, Stopped
from audiovq_player.model import Model

AHEAD_SECONDS = 60.0  # how far levels may be ahead of the sound


class Piece:
    """Blocks of a waveform, at constant memory for any length.

    Args:
        block_seconds: the longest block; the first ones are shorter, so that the sound begins early.
        keep_codes: collect all codes in `codes`.
    Attributes:
        codes: int64 [n_codes] per level, complete when all blocks were read.
    """

    def __init__(self, model: Model, request: Request, block_seconds: float = 4.0, keep_codes: bool = False):
        self.model, self.request, self.keep_codes = model, request, keep_codes
        self.decoder = Decoder(model)
        self.n_samples = None if request.endless else request.n_samples
        self.longest = max(self.decoder.period, int(block_seconds * model.sample_rate))
        hops = model.hop_lengths
        self.ahead = self.longest + 2 * self.decoder.context + int(AHEAD_SECONDS * model.sample_rate)
        capacity = 2 * self.ahead // hops[0] + 2 * max(prior["context_codes"] for prior in model.facts["priors"])
        self.changed = threading.Condition()
        self.lines = [
            Line(None if self.n_samples is None else -(-self.n_samples // hop), capacity * hops[0] // hop, self.changed)
            for hop in hops
        ]
        self.levels = [Level(model, level, request, self.lines) for level in range(len(hops))]
        self.taken = 0  # samples before it are not needed any more
        self.stopped, self.error = False, None
        self.codes: list[np.ndarray] = [np.zeros(0, np.int64) for _ in hops]

    def blocks(self) -> Iterator[np.ndarray]:
        """The waveform, float32 [channels, n] each time. Closing the iterator ends the piece."""
        threads = [
            threading.Thread(target=self._run, args=(level,), name="audiovq-player", daemon=True)
            for level in self.levels
        ]
        for thread in threads:
            thread.start()
        try:
            for low, start, end, high in self.decoder.chunks(self.n_samples, self.longest):
                ends = [-(-high // hop) for hop in self.model.hop_lengths]
                self._wait(lambda ends=ends: all(line.has(n) for line, n in zip(self.lines, ends, strict=True)))
                windows = [
                    line.get(np.arange(low // hop, n))
                    for line, hop, n in zip(self.lines, self.model.hop_lengths, ends, strict=True)
                ]
                if self.keep_codes:
                    self._keep(windows, low, end)
                waveform = self.decoder.decode(windows, high - low)
                with self.changed:
                    self.taken = max(0, end - self.decoder.context)
                    self.changed.notify_all()
                yield waveform[:, start - low : end - low]
        finally:
            with self.changed:
                self.stopped = True
                self.changed.notify_all()
            for thread in threads:
                thread.join()

    def _keep(self, windows: list[np.ndarray], low: int, end: int) -> None:
        for i, (window, hop) in enumerate(zip(windows, self.model.hop_lengths, strict=True)):
            first, n = len(self.codes[i]), -(-end // hop)
            self.codes[i] = np.concatenate([self.codes[i], window[first - low // hop : n - low // hop]])

    def _run(self, level: Level) -> None:
        """Draw all codes of a level, each as soon as the coarser ones around it are there."""
        line, hop = level.line, self.model.hop_lengths[level.level]
        try:
            while line.n_codes is None or line.count < line.n_codes:
                needed = level.needed(line.count)
                if not self._may_go_on(level, line, hop, needed):
                    self._wait(lambda needed=needed: self._may_go_on(level, line, hop, needed))
                level.advance()
        except Stopped:
            return
        except Exception as error:  # shown by the thread that reads
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _may_go_on(self, level: Level, line: Line, hop: int, needed: list[int]) -> bool:
        if self.stopped:
            raise Stopped
        ready = all(coarser.has(n) for coarser, n in zip(level.coarser, needed, strict=True))
        return ready and line.count * hop < self.taken + self.ahead

    def _wait(self, ready: object) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.error or ready())  # type: ignore[operator]
        if self.error:
            raise self.error
        if self.stopped:
            raise Stopped
