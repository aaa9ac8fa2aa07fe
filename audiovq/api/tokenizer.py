"""`Tokenizer`: audio ↔ codes, with the resampling, padding and chunks around the pure network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from audiovq import checkpoint
from audiovq.api.locate import pick_device, resolve_model
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.tokenizer.chunks import CHUNK_SECONDS, decode_in_chunks, encode_in_chunks
from audiovq.tokenizer.vqvae import VQVAE


class Tokenizer:
    """Audio ↔ codes.

    >>> tokenizer = Tokenizer.from_pretrained("runs/quickstart")
    >>> codes = tokenizer.encode(waveform, sample_rate=44100)
    >>> waveform = tokenizer.decode(codes)
    """

    def __init__(self, network: VQVAE, device: str | torch.device | None = None):
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.config = network.config
        self.hash = checkpoint.tokenizer_hash(network)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device | None = None) -> Tokenizer:
        """Load from a run, an exported folder or a hub id. Raises ValueError if there is none or it is damaged."""
        folder = resolve_model(source)
        inner = folder / "tokenizer"
        return cls(checkpoint.load_tokenizer(inner if inner.is_dir() else folder), device)

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def _chunk(self) -> int:
        return int(CHUNK_SECONDS * self.sample_rate)

    @torch.inference_mode()
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
        if waveform.ndim == 1:
            waveform = waveform[None]
        if waveform.ndim != 2 or waveform.shape[-1] == 0:
            raise ValueError(f"waveform: expected [samples] or [channels, samples], found {list(waveform.shape)}")
        waveform = waveform.float()
        if not waveform.isfinite().all():
            raise ValueError("waveform: expected finite samples, found NaN or infinity")
        prepared = audio.resample(
            audio.downmix(waveform, self.config.channels).to(self.device), sample_rate, self.sample_rate
        )
        levels = encode_in_chunks(self.network, prepared[None], self._chunk)
        return self._codes([level[0].cpu() for level in levels], prepared.shape[-1], source_sha256)

    def encode_file(self, path: str | Path) -> Codes:
        """Encode an audio file. Raises ValueError for audio that cannot be used."""
        return self.encode(*audio.read_audio(Path(path)))

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

    @torch.inference_mode()
    def decode_stream(self, codes: Codes, n_levels: int | None = None) -> Iterator[Tensor]:
        """As `decode`, in pieces of [channels, samples] at constant memory."""
        if codes.tokenizer_hash != self.hash:
            raise ValueError(
                f"codes: expected those of this tokenizer ({self.hash[:12]}), found those of another "
                f"({codes.tokenizer_hash[:12]}); decode them with the model that made them (--model)"
            )
        found = len(codes.levels)
        if n_levels is not None and not 1 <= n_levels <= found:
            raise ValueError(f"levels: expected 1 to {found}, found {n_levels}")
        levels = [level[None].to(self.device) for level in codes.levels[:n_levels]]
        for piece in decode_in_chunks(self.network, levels, codes.n_samples, self._chunk):
            yield piece[0].clamp(-1, 1).cpu()
