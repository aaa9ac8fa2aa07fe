"""Codes → waveform, in chunks, with the result that the whole would give."""

from collections.abc import Iterator

import numpy as np

from audiovq_player.model import Model


class Decoder:
    """Decodes stretches of codes. A chunk is computed with exactly the context that its samples depend on."""

    def __init__(self, model: Model):
        self.session, self.facts, self.hops = model.decoder, model.facts["decoder"], model.hop_lengths
        self.period = self.facts["period"]
        self.multiple = self.facts.get("multiple", self.hops[0])  # samples of whole patches of codes
        self.context, self.ahead = (-(-self.facts["context"] // n) * n for n in (self.period, self.multiple))
        if self.facts["result"] == "spectra":
            n_fft = self.facts["n_fft"]
            window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
            self.window = window.astype(np.float32)

    def chunks(self, n_samples: int | None, longest: int) -> Iterator[tuple[int, int, int, int]]:
        """(low, start, end, high): samples [start, end) are wanted, and the codes of [low, high) are needed.

        The first chunk is as short as possible, each further one twice as long, up to `longest` samples.
        """
        start, step = 0, self.period
        while n_samples is None or start < n_samples:
            end = start + step if n_samples is None else min(start + step, n_samples)
            low, high = max(0, start - self.context), end + self.ahead
            if n_samples is not None and high >= n_samples:  # the rest is no longer than the context
                end = high = n_samples
            yield low, start, end, high
            start, step = end, max(self.period, min(2 * step, longest // self.period * self.period))

    def decode(self, levels: list[np.ndarray], n_samples: int) -> np.ndarray:
        """Codes int64 [ceil(n_samples / hop)] per level, from a multiple of the period on -> float32 [channels, n_samples]."""
        inputs = {}
        for i, (level, hop) in enumerate(zip(levels, self.hops, strict=True)):
            padded = np.full((1, -(-n_samples // self.multiple) * self.multiple // hop), -1, np.int64)
            padded[0, : len(level)] = level
            inputs[f"codes_{i}"] = padded
        found, *tones = (np.asarray(result)[0] for result in self.session.run(None, inputs))
        waveform = sum(tones, self._waveform(found) if self.facts["result"] == "spectra" else found)
        return waveform[:, :n_samples].clip(-1, 1)

    def _waveform(self, spectra: np.ndarray) -> np.ndarray:
        """Inverse Fourier transforms, window and overlap-add: [channels, 2, frames, bins] -> [channels, samples]."""
        n_fft, hop = self.facts["n_fft"], self.facts["frame_hop"]
        frames = np.fft.irfft(spectra[:, 0] + 1j * spectra[:, 1], n=n_fft, axis=-1) * self.window
        envelope = self._overlap_add(np.broadcast_to(self.window**2, (1, *frames.shape[1:])), hop)
        return (self._overlap_add(frames, hop) / envelope).astype(np.float32)

    def _overlap_add(self, frames: np.ndarray, hop: int) -> np.ndarray:
        """Sum overlapping frames, from the first one's middle hop on: [c, time, n_fft] -> [c, time · hop]."""
        channels, n, n_fft = frames.shape
        pieces, start = frames.reshape(channels, n, n_fft // hop, hop), (n_fft - hop) // 2
        total = np.zeros((channels, n + n_fft // hop - 1, hop), np.float32)
        for r in range(n_fft // hop):
            total[:, r : r + n] += pieces[:, :, r]
        return total.reshape(channels, -1)[:, start : start + n * hop]
