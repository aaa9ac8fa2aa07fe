"""WAV to a pipe or a file, piece by piece, for whoever listens while it is made."""

from __future__ import annotations

import struct
from typing import BinaryIO

from einops import rearrange
from torch import Tensor

_MOST = 2**32 - 1 - 36  # bytes of samples that the header can tell; players take it for "until the end"


class WavStream:
    """16-bit PCM; the header, which comes first, tells the whole length.

    Raises:
        ValueError: whoever was reading it has stopped.
    """

    def __init__(self, file: BinaryIO, n_samples: int, channels: int, sample_rate: int):
        self.file = file
        frame = 2 * channels
        size = min(frame * n_samples, _MOST)
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, sample_rate, frame * sample_rate, frame, 16)
        self._write(struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size))

    def write(self, waveform: Tensor) -> None:
        """The next float [channels, samples]; at once in the reader's hands. Beyond [-1, 1] it clips."""
        whole = (waveform.detach().float().clamp(-1, 1).cpu() * 32767).round()
        self._write(rearrange(whole, "c n -> n c").numpy().astype("<i2").tobytes())

    def _write(self, content: bytes) -> None:
        try:
            self.file.write(content)
            self.file.flush()
        except BrokenPipeError:
            raise ValueError("stream: whoever was reading it has stopped") from None
