"""The codes file: the codes of one track in safetensors, with a JSON header."""

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from audiovq import config as conf
from audiovq.config import Config
from audiovq.data import entropy
from audiovq.data.flattening import Flattening, Pattern
from audiovq.utils.environment import errors_as
from audiovq.utils.files import atomic_file, check_folder, check_output, utf8_path

FORMAT, DAMAGED = "audiovq-codes-1", "not a codes file, or damaged"
LARGEST_CODES = 1 << 28  # of a compressed file, all levels together
WHOLE_NUMBERS = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32}
CODES_PER_BYTE = 4096  # of a compressed file, at most; silence has fewer


class Layout(Config):
    """What codes from any source say about their tokenizer."""

    tokenizer_hash: str
    sample_rate: int = Field(ge=1, le=384000)
    hop_lengths: tuple[Annotated[int, Field(ge=1, le=1 << 16)], ...] = Field(min_length=1, max_length=64)
    codebook_size: int = Field(ge=2, le=1 << 16)
    slots: int = Field(default=1, ge=1, le=1 << 16)


class Header(Layout):
    """The header of a codes file from any source."""

    n_samples: int = Field(ge=1, le=1 << 48)
    channels: int = Field(ge=1, le=16)
    source_sha256: str = ""
    coding: Literal["range-1"] | None = None  # of a compressed file, as are the next two
    n_levels: int = Field(default=1, ge=1, le=64)
    checksum: str = ""  # see `_checksum`; "" in uncompressed files of version 0.1


@dataclass
class Codes:
    """The codes of one track, coarse to fine, with all that is needed to decode them. Levels may be tensors,
    arrays or lists; ValueError if they are not rows of whole numbers."""

    levels: list[Tensor] = field(repr=False)  # int64 [ceil(n_samples / hop)] a level
    n_samples: int  # of the waveform, at sample_rate
    sample_rate: int
    hop_lengths: list[int]
    codebook_size: int
    channels: int
    tokenizer_hash: str
    source_sha256: str = ""
    slots: int = 1  # parts of the codebook that take turns, see `VQVAEConfig.slots`

    def __post_init__(self) -> None:
        self.levels = [_whole_numbers(level, f"codes of level {i}") for i, level in enumerate(self.levels)]
        for name in ("n_samples", "sample_rate", "codebook_size", "channels"):
            setattr(self, name, conf.whole_number(getattr(self, name), name))
        self.hop_lengths = [conf.whole_number(hop, "hop_lengths") for hop in self.hop_lengths]

    @property
    def seconds(self) -> float:
        return self.n_samples / self.sample_rate

    @property
    def bits_per_second(self) -> float:
        """Uncompressed: log2(codebook_size / slots) bits per code."""
        return sum(map(len, self.levels)) * float(np.log2(self.codebook_size / self.slots)) / self.seconds

    @property
    def multiple(self) -> int:
        """Samples: pieces are cut and joined at multiples of a code of level 0, or of a patch of `slots` codes."""
        return self.hop_lengths[0] * self.slots

    def flattening(self, pattern: Pattern = "interleave") -> Flattening:
        """The vocabulary of `flatten`, and the way back from ids to levels."""
        return Flattening(self.hop_lengths[: len(self.levels)], self.codebook_size, pattern)

    def flatten(self, pattern: Pattern = "interleave", special: bool = False) -> Tensor:
        """All levels as ids for a language model, see `data.flattening`: int64 [n], or [frame, n] with the
        pattern `delay`; with `special` between the ids of beginning and end."""
        return self.flattening(pattern).flatten(self.levels, special)

    def to_transformers(self) -> dict[str, Tensor]:
        """`audio_codes` of transformers, int64 [1, n_levels, time]; ValueError unless all levels have one rate."""
        if len(set(hops := self.hop_lengths[: len(self.levels)])) > 1:
            advice = "flatten() makes one sequence of levels with different rates"
            raise ValueError(f"to_transformers: expected levels of equal rate, found hop_lengths {hops}; {advice}")
        return {"audio_codes": torch.stack(self.levels)[None]}

    def save(self, path: Path | str, compress: bool = False) -> None:
        """Write a safetensors file atomically, with the header in its metadata under `audiovq`. With
        `compress` it is smaller, but slow to write and read (see `data.entropy`)."""
        path = Path(path)
        header = self._facts() | {"format": FORMAT, "checksum": _checksum(self.levels, self._facts())}
        dtype = torch.int16 if self.codebook_size <= 32768 else torch.int32
        tensors = {f"level.{i}": level.to(dtype).contiguous() for i, level in enumerate(self.levels)}
        if compress:
            levels = [level.numpy() for level in self.levels]
            data = entropy.compress(levels, self.hop_lengths, self.codebook_size)
            header |= {"coding": entropy.CODING, "n_levels": len(levels)}
            tensors = {"compressed": torch.from_numpy(data.copy())}
        check_folder(path.parent)
        with atomic_file(path) as temporary, utf8_path(temporary.parent) as folder:
            safetensors.torch.save_file(tensors, folder / temporary.name, metadata={"audiovq": json.dumps(header)})

    @staticmethod
    def load(path: Path | str) -> "Codes":
        """Read a codes file. Raises ValueError for another or a damaged file."""
        path = Path(path)
        header = read_header(path)
        with _opened(path) as file:
            if header.coding:
                levels = _decompress(header, file, path.stat().st_size)
            else:
                levels = [file.get_tensor(f"level.{i}") for i in range(len(file.keys()))]
            codes = Codes(levels, **header.model_dump(exclude={"coding", "n_levels", "checksum"}))
        codes.check(codes.hop_lengths, codes.codebook_size, codes.slots, f"{path}")
        # Version 0.1 wrote the checksum of the codes alone.
        known = ("", _checksum(codes.levels, codes._facts()), _checksum(codes.levels))
        if header.checksum not in known[1 if header.coding else 0 :]:
            raise ValueError(f"{path}: damaged (its checksum is wrong); copy it or encode the audio again")
        return codes

    def _facts(self) -> dict[str, Any]:
        left_out = ("levels",) if self.slots > 1 else ("levels", "slots")
        return {key: value for key, value in vars(self).items() if key not in left_out}

    def check(self, hop_lengths: Sequence[int], codebook_size: int, slots: int, what: str) -> None:
        """Raises ValueError for no levels, other lengths than these hops give, or codes outside their slot."""
        expected = [-(-self.n_samples // hop) for hop in hop_lengths[: len(self.levels)]]
        if (found := [len(level) for level in self.levels]) != expected or not found:
            raise ValueError(f"{what}: expected {expected} codes a level for {self.n_samples} samples, found {found}")
        for i, level in enumerate(self.levels):
            check_range(level, codebook_size, f"{what}: codes of level {i}")
            places = torch.arange(len(level), device=level.device) % slots
            if wrong := (level * slots // codebook_size != places).nonzero()[:1].flatten().tolist():
                t, n = wrong[0], codebook_size // slots
                expected = f"expected {t % slots * n} to {t % slots * n + n - 1}, found {int(level[t])}"
                raise ValueError(f"{what}: code {t} of level {i}: {expected}; cut codes at multiples of {slots}")


class LevelBuffers:
    """Collects codes that come in blocks, in one growing array per level. (A list of thousands of small
    tensors would fragment the memory that the network uses in between.)"""

    def __init__(self, n_levels: int):
        self.arrays = [array("i") for _ in range(n_levels)]

    def add(self, levels: Sequence[Tensor]) -> None:
        for collected, level in zip(self.arrays, levels, strict=True):
            collected.extend(level.tolist())

    def levels(self) -> list[Tensor]:
        return [torch.from_numpy(np.array(collected, dtype=np.int64)) for collected in self.arrays]


def check_range(codes: Any, codebook_size: int, what: str) -> None:
    """Raises ValueError for codes (an array or a tensor) outside [0, codebook_size)."""
    least, most = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
    if least < 0 or most >= codebook_size:
        raise ValueError(f"{what}: expected codes from 0 to {codebook_size - 1}, found {least} to {most}")


def _decompress(header: Header, file: Any, size: int) -> list[Any]:
    """The codes of a compressed file of `size` bytes; ValueError if it names more than that can hold."""
    lengths = [-(-header.n_samples // hop) for hop in header.hop_lengths[: header.n_levels]]
    most = min(LARGEST_CODES, (1 << 16) + CODES_PER_BYTE * size)
    if len(lengths) != header.n_levels or sum(lengths) > most:
        found = f"{header.n_levels} levels of {lengths}"
        raise ValueError(f"expected {len(lengths)} levels with at most {most} codes, found {found}")
    data = file.get_tensor("compressed").numpy()
    with errors_as("the compressed data cannot be decoded", AssertionError, TypeError, ValueError):
        return entropy.decompress(data, lengths, header.hop_lengths, header.codebook_size)


def _checksum(levels: list[Tensor], facts: dict[str, Any] | None = None) -> str:
    """Checksum of the codes and the header: it finds damage, and arithmetic that differs between machines."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() if facts else b"")
    for level in levels:
        digest.update(level.numpy().astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def _whole_numbers(level: Any, what: str) -> Tensor:
    """Codes of one level from a tensor, an array or a list: int64 [n], on the CPU."""
    try:
        codes = level.cpu() if isinstance(level, Tensor) else torch.from_numpy(np.array(level))
    except (TypeError, ValueError):
        raise ValueError(f"{what}: expected whole numbers [n], found {type(level).__name__}") from None
    if codes.ndim != 1 or not (codes.dtype in WHOLE_NUMBERS or codes.numel() == 0):
        raise ValueError(f"{what}: expected whole numbers [n], found {codes.dtype} {list(codes.shape)}")
    return codes.long()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    kinds, failure = (safetensors.SafetensorError, OSError, ValueError, RecursionError), f"{path}: {DAMAGED}"
    with errors_as(failure, *kinds), utf8_path(path) as place, safetensors.safe_open(place, framework="pt") as file:
        yield file


def read_header(path: Path) -> Header:
    """The header of a codes file; ValueError for another file, or a damaged one."""
    if not path.is_file():
        raise ValueError(f"{path}: no such codes file")
    with _opened(path) as file:
        header = json.loads((file.metadata() or {}).get("audiovq", "{}"))
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: expected a codes file of format {FORMAT}, found other safetensors")
    return conf.build(Header, header, f"{path}: header")


def check_codes_output(path: Path, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raises ValueError if codes cannot be written there without the loss of another file."""
    check_folder(path.parent)
    check_output(path, inputs=inputs)
    if path.exists():
        try:
            read_header(path)
        except ValueError:
            raise ValueError(f"{path}: exists, and is no codes file; choose another --out, or delete it") from None
