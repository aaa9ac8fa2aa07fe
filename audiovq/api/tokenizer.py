"""`Tokenizer`: audio ↔ codes, with the resampling, padding and chunks around the pure network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from audiovq.api.shareable import Shareable
from audiovq.api.stream import DecodeStream, EncodeStream, checked
from audiovq.data import audio
from audiovq.data.audio_writer import AudioWriter
from audiovq.data.codes import Codes, LevelBuffers
from audiovq.data.resampling import resample
from audiovq.data.validation import check_range
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import resolve_model, tokenizer_folder
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.tokenizer.streaming import (
    CHUNK_SECONDS,
    WINDOWS_AT_ONCE,
    decode_windows,
    decoder_windows,
    encode_windows,
    encoder_windows,
)
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.chunking import compute_in_batches, cut
from audiovq.utils.device import pick_device
from audiovq.utils.files import file_sha256


class Tokenizer(Shareable):
    """Audio ↔ codes.

    >>> tokenizer = Tokenizer.from_pretrained("runs/quickstart")
    >>> codes = tokenizer.encode(waveform, sample_rate=44100)
    >>> waveform = tokenizer.decode(codes)
    """

    def __init__(self, network: VQVAE, device: str | torch.device | None = None):
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.config = network.config
        self.hash = tokenizer_hash(network)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device | None = None, *, revision: str | None = None,
        token: str | None = None,
    ) -> Tokenizer:  # fmt: skip
        """Load from a run, an exported folder or a hub id. Raises ValueError if there is none or it is damaged.

        Args:
            revision, token: of a hub id; see `resolve_model`.
        """
        folder = tokenizer_folder(resolve_model(source, revision, token))
        return cls(checkpoint.load_tokenizer(folder), device)

    def _models(self) -> tuple[VQVAE, Sequence[Prior], Sequence[SamplingConfig]]:
        return self.network, (), ()

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    def _samples(self, seconds: float) -> int:
        return int(seconds * self.sample_rate)

    def stream(self, sample_rate: int | None = None, chunk_seconds: float = 0.0) -> EncodeStream:
        """A streaming encoder: `push` blocks of any size, `finish`; together what `encode` gives.

        Args:
            sample_rate: of the blocks, Hz; default the tokenizer's own.
            chunk_seconds: audio that is encoded at once. 0 gives each code as early as can be, at the cost of computing
                the network's context again for each top code; see the stream's `latency_seconds`.
        """
        return EncodeStream(self.network, self.device, sample_rate or self.sample_rate, self._samples(chunk_seconds))

    def decoder_stream(self, n_levels: int | None = None, chunk_seconds: float = 0.0) -> DecodeStream:
        """A streaming decoder of the first levels (default all): `push` blocks of codes, `finish`."""
        n_levels = self._check_levels(self.config.n_levels, n_levels)
        return DecodeStream(self.network, self.device, n_levels, self._samples(chunk_seconds))

    def encode(self, waveform: Tensor, sample_rate: int, source_sha256: str = "") -> Codes:
        """Resample, downmix, pad and quantize one piece of audio.

        Args:
            waveform: float [samples] or [channels, samples], in [-1, 1], 1 to 6 channels.
            sample_rate: of the waveform, Hz.
        Returns:
            Codes with int64 [ceil(n_samples / hop)] a level, coarse to fine; n_samples counts at the tokenizer's rate.
        Raises:
            ValueError: wrong shape, no samples, or samples that are not finite.
        """
        if waveform.ndim == 0 or waveform.shape[-1] == 0:
            raise ValueError(f"waveform: expected [samples] or [channels, samples], found {list(waveform.shape)}")
        blocks = waveform.split(audio.BLOCK_FRAMES, dim=-1)
        return self._encode(self.stream(sample_rate, CHUNK_SECONDS), blocks, source_sha256)

    def encode_file(
        self, path: str | Path, progress: Callable[[float], object] | None = None, seconds: float | None = None
    ) -> Codes:
        """Encode an audio file of any length, at constant memory; what `encode` gives for the whole, bit for bit.

        Args:
            progress: is told the seconds of audio after each block.
            seconds: only so much from the beginning; default all.
        Raises:
            ValueError: audio that cannot be used.
        """
        path = Path(path)
        rate = audio.audio_info(path).sample_rate
        n_samples = None if seconds is None else round(seconds * rate)

        def blocks() -> Iterator[Tensor]:
            for block in audio.stream_audio(path, n_samples=n_samples):
                yield block
                if progress is not None:
                    progress(block.shape[-1] / rate)

        return self._encode(self.stream(rate, CHUNK_SECONDS), blocks(), file_sha256(path))

    def _encode(self, stream: EncodeStream, blocks: Iterable[Tensor], source_sha256: str) -> Codes:
        collected = LevelBuffers(self.config.n_levels)
        for block in blocks:
            collected.add(stream.push(block))
        collected.add(stream.finish())
        return self._codes(collected.levels(), stream.n_samples, source_sha256)

    @torch.inference_mode()
    def encode_batch(
        self, waveforms: Sequence[Tensor], sample_rate: int, windows_at_once: int | None = None
    ) -> list[Codes]:
        """Encode many pieces of unequal length; each gives what `encode` gives for it alone.

        Windows of equal length, of one piece or of many, share a batch; nothing is padded beyond the top hop.

        Args:
            windows_at_once: in a batch; default 8, and 1 on the CPU, where a batch is not faster. (With 1 the bits are
                those of `encode`; in a batch sums are rounded in another order, and a latent that lies just between two
                codes might fall to the other side.)
        """
        mixed = [audio.downmix(checked(waveform), self.config.channels).to(self.device) for waveform in waveforms]
        prepared = [resample(waveform, sample_rate, self.sample_rate) for waveform in mixed]
        chunk = self._samples(CHUNK_SECONDS)
        windows = [cut(encoder_windows(self.network, chunk), [waveform[None]]) for waveform in prepared]
        codes = compute_in_batches(windows, self._at_once(windows_at_once), partial(encode_windows, self.network))
        return [
            self._codes([torch.cat(level, dim=-1)[0].cpu() for level in zip(*item, strict=True)], waveform.shape[-1])
            for item, waveform in zip(codes, prepared, strict=True)
        ]

    def _at_once(self, windows_at_once: int | None) -> int:
        return windows_at_once or (1 if self.device.type == "cpu" else WINDOWS_AT_ONCE)

    def _codes(self, levels: list[Tensor], n_samples: int, source_sha256: str = "") -> Codes:
        c = self.config
        return Codes(
            levels, n_samples, c.sample_rate, list(c.hop_lengths), c.codebook_size, c.channels, self.hash, source_sha256
        )

    def decode(self, codes: Codes, n_levels: int | None = None) -> Tensor:
        """Codes -> float [channels, n_samples] at the tokenizer's rate, on the CPU.

        Args:
            n_levels: decode only the first levels, for a coarser rendering; default all.
        Raises:
            ValueError: codes of another tokenizer.
        """
        return torch.cat(list(self.decode_stream(codes, n_levels)), dim=-1)

    def decode_stream(self, codes: Codes, n_levels: int | None = None) -> Iterator[Tensor]:
        """As `decode`, in pieces of [channels, samples] at constant memory."""
        levels = self._levels(codes, n_levels)
        stream = self.decoder_stream(len(levels), CHUNK_SECONDS)
        step = stream.decoder.windows.step
        for start in range(0, codes.n_samples, step):
            yield stream.push(
                [
                    level[start // hop : (start + step) // hop]
                    for level, hop in zip(levels, codes.hop_lengths, strict=False)
                ]
            )
        yield stream.finish(codes.n_samples)

    @torch.inference_mode()
    def decode_batch(
        self, codes: Sequence[Codes], n_levels: int | None = None, windows_at_once: int | None = None
    ) -> list[Tensor]:
        """Decode many pieces of unequal length; each gives what `decode` gives for it alone (see `encode_batch`)."""
        windows = []
        for item in codes:
            levels = self._levels(item, n_levels)
            empty = decoder_windows(self.network, len(levels), self._samples(CHUNK_SECONDS))
            windows.append(cut(empty, [level[None].to(self.device) for level in levels], item.n_samples))
        pieces = compute_in_batches(windows, self._at_once(windows_at_once), partial(decode_windows, self.network))
        return [torch.cat(item, dim=-1)[0].clamp(-1, 1).cpu() for item in pieces]

    def decode_file(
        self, codes: Codes, path: str | Path, n_levels: int | None = None, comment: str = "",
        progress: Callable[[float], object] | None = None,
    ) -> None:  # fmt: skip
        """Decode into a 16-bit WAV or FLAC file piece by piece, at constant memory; the file appears when it is whole.

        Raises:
            ValueError: codes of another tokenizer, or a place that cannot be written.
        """
        with AudioWriter(path, self.sample_rate, self.config.channels, codes.n_samples, comment) as file:
            for piece in self.decode_stream(codes, n_levels):
                file.write(piece)
                if progress is not None:
                    progress(piece.shape[-1] / self.sample_rate)

    def _levels(self, codes: Codes, n_levels: int | None) -> list[Tensor]:
        if codes.tokenizer_hash != self.hash:
            raise ValueError(
                f"codes: expected those of this tokenizer ({self.hash[:12]}), found those of another "
                f"({codes.tokenizer_hash[:12]}); decode them with the model that made them (--model)"
            )
        expected = [-(-codes.n_samples // hop) for hop in self.config.hop_lengths[: len(codes.levels)]]
        found = [len(level) for level in codes.levels]
        if found != expected:
            raise ValueError(f"codes: expected {expected} a level for {codes.n_samples} samples, found {found}")
        for i, level in enumerate(codes.levels):  # their header may say more codes than this tokenizer has
            check_range(level, self.config.codebook_size, f"codes of level {i}")
        return codes.levels[: self._check_levels(len(codes.levels), n_levels)]

    @staticmethod
    def _check_levels(found: int, n_levels: int | None) -> int:
        if n_levels is not None and not 1 <= n_levels <= found:
            raise ValueError(f"levels: expected 1 to {found}, found {n_levels}")
        return n_levels or found
