"""`audiovq live`: from the options of the command line to sound."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq.api import Live
from audiovq.data.audio_writer import PIPE_BYTES, AudioWriter
from audiovq.data.codes import check_codes_output
from audiovq.live.player import Player
from audiovq.utils import signals
from audiovq.utils.progress import say

WRITE_SECONDS = 0.1  # of music that is written at once

Device = Callable[[Player], contextlib.AbstractContextManager[None]]


@dataclass(kw_only=True)
class LiveOptions:
    """The options of the command line."""

    seconds: float | None = None  # None is without end
    out: str | None = None  # a file, or - for standard output; None is a sound card
    raw: bool = False
    buffer: float = 0.5
    save_codes: str | None = None

    def check(self) -> None:
        """Raises ValueError for options that do not fit together."""
        if self.raw and self.out != "-":
            raise ValueError("--raw: expected --out - with it, which writes to standard output")
        if self.out not in (None, "-") and self.seconds is None:
            raise ValueError(f"--out {self.out}: a file needs an end; add --seconds")
        if self.save_codes:
            check_codes_output(Path(self.save_codes), [])


class Session:
    """Plays a `Live` until its seconds are over, a signal comes, or a control calls `stop`."""

    def __init__(self, live: Live, options: LiveOptions):
        self.live, self.options, self.stopped = live, options, False

    def stop(self) -> None:
        self.stopped = True

    def run(self, device: Device) -> None:
        """Play or write; `device` opens a sound card for a player.

        Raises:
            ValueError: a file that cannot be written, or music that cannot be made.
        """
        options, rate = self.options, self.live.sample_rate
        n_samples = None if options.seconds is None else self.live.generator.n_samples(options.seconds)
        with signals.deferred():
            if options.out is None:
                self._play(device, n_samples)
            elif options.raw:
                self._write(lambda x: sys.stdout.buffer.write(_pcm(x)) and sys.stdout.buffer.flush(), n_samples)
            else:
                target, channels = Path(options.out), self.live.tokenizer.config.channels
                opened: Any = sys.stdout.buffer if options.out == "-" else target
                with AudioWriter(opened, rate, channels, n_samples or PIPE_BYTES) as file:
                    self._write(file.write, n_samples)
        if options.save_codes:
            codes = self.live.codes()
            codes.save(Path(options.save_codes))
            say(f"{options.save_codes}: the codes of the last {codes.seconds:.1f} s")

    def _ended(self) -> bool:
        return self.stopped or signals.received() is not None

    def _write(self, write: Callable[[Tensor], object], n_samples: int | None) -> None:
        done, at_once = 0, round(WRITE_SECONDS * self.live.sample_rate)
        while not self._ended() and (n_samples is None or done < n_samples):
            n = at_once if n_samples is None else min(at_once, n_samples - done)
            write(self.live.read(n / self.live.sample_rate))
            done += n

    def _play(self, device: Device, n_samples: int | None) -> None:
        with Player(self.live, self.options.buffer) as player, device(player):
            say(
                f"playing; a change is heard after about {self.live.latency_seconds + self.options.buffer:.1f} s: "
                f"{self.live.latency_seconds:.1f} s that the model looks ahead, and the buffer (Ctrl-C stops)"
            )
            while not self._ended() and not player.stopped.is_set():
                if n_samples is not None and player.n_played >= n_samples:
                    break
                time.sleep(0.02)
        if player.error:
            raise ValueError(f"live: {player.error}")
        say(f"{player.n_played / player.rate:.1f} s played, {player.underruns} pauses because the buffer was empty")


def _pcm(waveform: Tensor) -> bytes:
    """16-bit little-endian samples, channels interleaved, of float [channels, n]."""
    integers = (waveform.clamp(-1, 1) * 32767).round().to(torch.int16)
    return integers.T.contiguous().numpy().astype("<i2").tobytes()
