"""`Tokenizer`: audio ↔ codes, with the resampling, padding and chunks around the pure network."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiovq.api.resampling_encoder import ResamplingEncoder, Waveform, checked, with_rate
from audiovq.data import audio
from audiovq.data.audio_writer import AudioWriter
from audiovq.data.codes import Codes, LevelBuffers
from audiovq.data.flattening import Flattening, Pattern
from audiovq.data.resampling import resample
from audiovq.pretrained import checkpoint
from audiovq.pretrained.export import Models, Shareable
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import resolve_model, tokenizer_folder
from audiovq.tokenizer import streaming
from audiovq.tokenizer.streaming import CHUNK_SECONDS, StreamingDecoder, StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.chunking import compute_in_batches, cut
from audiovq.utils.device import Device, pick_device, torch_defaults
from audiovq.utils.files import file_sha256

Audio = Waveform | str | Path | Mapping[str, Any]
Progress = Callable[[float], object] | None  # called with seconds of audio
Levels = Codes | Sequence[Any] | np.ndarray | Tensor  # of a piece, for decoding


class Tokenizer(Shareable):
    """Audio ↔ codes.

    >>> tokenizer = Tokenizer.from_pretrained("runs/quickstart")
    >>> codes = tokenizer.encode(waveform, sample_rate=44100)
    >>> waveform = tokenizer.decode(codes)
    """

    def __init__(self, network: VQVAE, device: Device = None):
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.config, self.sample_rate = network.config, network.config.sample_rate
        self.hash = tokenizer_hash(network)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: Device = None, **hub: str | None) -> "Tokenizer":
        """Load from a run, an exported folder or a hub id (for `revision` and `token` see `resolve_model`).
        Raises ValueError for no such tokenizer, or damaged files."""
        return cls(checkpoint.load_tokenizer(tokenizer_folder(resolve_model(source, **hub))), device)

    def _models(self) -> Models:
        return self.network, (), ()

    def make_codes(self, levels: Sequence[Any], n_samples: int | None = None, source_sha256: str = "") -> Codes:
        """`Codes` of this tokenizer from whole numbers [ceil(n_samples / hop_length)] per level, coarse to fine;
        without `n_samples` as long as the codes last. Raises ValueError for other levels."""
        c = self.config
        facts = (c.sample_rate, list(c.hop_lengths), c.codebook_size, c.channels, self.hash, source_sha256, c.slots)
        codes = Codes(list(levels), 1 if n_samples is None else n_samples, *facts)
        if n_samples is None:
            found = zip(codes.levels, c.hop_lengths, strict=False)
            codes.n_samples = min((len(level) * hop for level, hop in found), default=0)
        return codes

    def flattening(self, pattern: Pattern = "interleave") -> Flattening:
        """How all levels become ids of a language model (`Codes.flatten`), and ids levels, which `decode` takes."""
        return Flattening(self.config.hop_lengths, self.config.codebook_size, pattern)

    def stream(self, sample_rate: int | None = None, chunk_seconds: float = 0.0) -> ResamplingEncoder:
        """A streaming encoder. `push` blocks of any size, then `finish`; together they give what `encode` gives.

        Args:
            sample_rate: of the blocks, Hz; default the tokenizer's.
            chunk_seconds: audio that is encoded at once. 0 gives each code as early as possible, and computes the
                network's context again for each code of level 0; see the stream's `latency_seconds`.
        """
        return ResamplingEncoder(self.network, self.sample_rate if sample_rate is None else sample_rate, chunk_seconds)

    def encode(self, waveform: Audio, sample_rate: int | None = None) -> Codes:
        """Resample, downmix, pad and quantize one piece of audio.

        Args:
            waveform: [samples] or [channels, samples], 1 to 6 channels; a tensor, an array or a list. Floating-point
                numbers are in [-1, 1]; whole numbers of 8, 16 and 32 bits are PCM. Or what knows its rate: the path of a
                file, or a value of an `Audio` column of the library datasets.
            sample_rate: of the waveform, Hz, 1000 to 768000.
        Returns:
            int64 [ceil(n_samples / hop_length)] per level, coarse to fine; `n_samples` is at the tokenizer's rate.
        Raises:
            ValueError: wrong shape or type, no samples, or samples that are not finite.
        """
        if isinstance(waveform, str | Path) and sample_rate is None:
            return self.encode_file(waveform)
        found, rate = with_rate(waveform, sample_rate)
        return self._encode(rate, checked(found, at_least=1).split(audio.BLOCK_FRAMES, dim=-1), "")

    def encode_file(self, path: str | Path, progress: Progress = None, seconds: float | None = None) -> Codes:
        """Encode an audio file of any length at constant memory, or its first `seconds`; the codes are those
        of `encode`. `progress` gets the seconds of each block. ValueError for unusable audio."""
        path = Path(path)
        rate = audio.audio_info(path).sample_rate
        n_samples = None if seconds is None else round(seconds * rate)

        def blocks() -> Iterator[Tensor]:
            for block in audio.stream_audio(path, channels=self.config.channels, n_samples=n_samples):
                yield block
                if progress is not None:
                    progress(block.shape[-1] / rate)

        return self._encode(rate, blocks(), file_sha256(path))

    def _encode(self, sample_rate: int, blocks: Iterable[Tensor], source_sha256: str) -> Codes:
        stream, collected = self.stream(sample_rate, CHUNK_SECONDS), LevelBuffers(self.config.n_levels)
        for block in blocks:
            collected.add(stream.push(block))
        collected.add(stream.finish())
        return self.make_codes(collected.levels(), stream.n_samples, source_sha256)

    @torch_defaults()
    def encode_batch(self, waveforms: Sequence[Audio], sample_rate: int | None = None) -> list[Codes]:
        """Encode several pieces of unequal length; each gives what `encode` gives for it alone. On a GPU, windows of
        equal length share a batch. Sums are then rounded in another order, so a latent halfway between two codes may
        become the other one. On the CPU batches are not faster."""
        prepared = []
        for item in waveforms:
            found, rate = with_rate(item, sample_rate)
            mixed = audio.downmix(checked(found, at_least=1), self.config.channels)
            prepared.append(resample(mixed, rate, self.sample_rate).to(self.device))
        chunk = int(CHUNK_SECONDS * self.sample_rate)
        windows = [cut(streaming.encoder_windows(self.network, chunk), [waveform]) for waveform in prepared]
        pieces = compute_in_batches(windows, self._at_once(), partial(streaming.encode_windows, self.network))
        levels = ([torch.cat(level).cpu() for level in zip(*piece, strict=True)] for piece in pieces)
        return [self.make_codes(own, waveform.shape[-1]) for own, waveform in zip(levels, prepared, strict=True)]

    def _at_once(self) -> int:
        return 1 if self.device.type == "cpu" else streaming.WINDOWS_AT_ONCE

    @property
    def latency_seconds(self) -> float:
        """From a sound to the same sound decoded, by streams with the smallest chunks; little with `causal`."""
        streams = StreamingEncoder(self.network, 0), StreamingDecoder(self.network, self.config.n_levels, 0)
        return sum(stream.latency_seconds for stream in streams)

    def decoder_stream(
        self, n_levels: int | None = None, chunk_seconds: float = 0.0, ahead_seconds: float | None = None
    ) -> StreamingDecoder:
        """A streaming decoder of the first levels (default all). `push` blocks of codes, then `finish`. With
        `ahead_seconds` it looks no further ahead than that, see `StreamingDecoder`."""
        n_levels = self._check_levels(self.config.n_levels, n_levels)
        if not (0 <= chunk_seconds < math.inf and 0 <= (ahead_seconds or 0) < math.inf):
            raise ValueError(f"expected blocks and ahead of 0 s or more, found {chunk_seconds} and {ahead_seconds}")
        ahead = None if ahead_seconds is None else int(ahead_seconds * self.sample_rate)
        return StreamingDecoder(self.network, n_levels, int(chunk_seconds * self.sample_rate), ahead)

    def decode(self, codes: Levels, n_levels: int | None = None) -> Tensor:
        """Decode codes, or only the first `n_levels`, to float [channels, n_samples] at the tokenizer's rate, on
        the CPU. Levels as lists, arrays or tensors of whole numbers [n], coarse to fine, are taken for codes of
        this tokenizer, as long as they last. Raises ValueError for codes of another tokenizer."""
        return torch.cat(list(self.decode_stream(codes, n_levels)), dim=-1)

    def decode_stream(self, codes: Levels, n_levels: int | None = None) -> Iterator[Tensor]:
        """As `decode`, in pieces [channels, samples] at constant memory."""
        codes, levels = self._levels(codes, n_levels)
        stream = self.decoder_stream(len(levels), CHUNK_SECONDS)
        step = stream.windows.step
        for start in range(0, codes.n_samples, step):
            parts = zip(levels, codes.hop_lengths, strict=False)
            yield stream.push([level[start // hop : (start + step) // hop] for level, hop in parts])
        yield stream.finish(codes.n_samples)

    @torch_defaults()
    def decode_batch(self, codes: Sequence[Levels], n_levels: int | None = None) -> list[Tensor]:
        """Decode several pieces of unequal length; each gives what `decode` gives for it alone."""
        if isinstance(codes, Codes):
            raise ValueError("codes: expected a list of Codes, found one; decode() decodes a single piece")
        windows = []
        for one in codes:
            item, levels = self._levels(one, n_levels)
            empty = streaming.decoder_windows(self.network, len(levels), int(CHUNK_SECONDS * self.sample_rate))
            windows.append(cut(empty, [level.to(self.device) for level in levels], item.n_samples))
        pieces = compute_in_batches(windows, self._at_once(), partial(streaming.decode_windows, self.network))
        return [torch.cat(piece, dim=-1).clamp(-1, 1).cpu() for piece in pieces]

    def decode_file(
        self, codes: Codes, path: str | Path, n_levels: int | None = None, comment: str = "", progress: Progress = None
    ) -> None:
        """Decode into a sound file, see `AudioWriter`, with a `comment` in its tag, at constant memory; it appears
        when it is complete. `progress` gets the seconds of each piece. ValueError for foreign codes."""
        tags = {"comment": comment}
        with AudioWriter(path, self.sample_rate, self.config.channels, codes.n_samples, tags) as file:
            for piece in self.decode_stream(codes, n_levels):
                file.write(piece)
                if progress is not None:
                    progress(piece.shape[-1] / self.sample_rate)

    def check_codes(self, codes: Any) -> None:
        """Raises ValueError for anything but complete codes of this tokenizer."""
        if not isinstance(codes, Codes):
            hint = "make_codes(levels, n_samples) makes them from levels"
            raise ValueError(f"codes: expected Codes, found {type(codes).__name__}; {hint}")
        if codes.tokenizer_hash != self.hash:
            expected, found = (each[:12] for each in (self.hash, codes.tokenizer_hash))
            found = f"those of another ({found}); use the model that made them (--model), or encode the audio again"
            raise ValueError(f"codes: expected those of this tokenizer ({expected}), found {found}")
        c = self.config
        codes.check(c.hop_lengths, c.codebook_size, c.slots, "piece")  # a file's header may claim others

    def _levels(self, codes: Levels, n_levels: int | None) -> tuple[Codes, list[Tensor]]:
        """The codes, also those given as mere levels, and the levels to decode; raises as `check_codes`."""
        if isinstance(codes, list | tuple) or getattr(codes, "ndim", 0) == 2:
            codes = self.make_codes(codes)  # type: ignore[arg-type]
        self.check_codes(codes)
        assert isinstance(codes, Codes), "check_codes refuses others"
        return codes, codes.levels[: self._check_levels(len(codes.levels), n_levels)]

    @staticmethod
    def _check_levels(found: int, n_levels: int | None) -> int:
        if n_levels is not None and not 1 <= n_levels <= found:
            raise ValueError(f"levels: expected 1 to {found}, found {n_levels}")
        return n_levels or found
