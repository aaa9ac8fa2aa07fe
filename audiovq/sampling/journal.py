"""Codes on disk while they are generated: an interruption of any kind costs a second of work at most.

A folder beside the output holds, for each group of items that are generated together and named by a hash of all that
determines their codes:

    <hash>.codes   a JSON line that says what it is, then records that are only ever appended
    <hash>.cache   the network's memory at some position, so that little is fed again; without it, everything is
    <hash>.lock    held by the process at work

A record is level, first position, count and rows (little-endian uint32), the codes (int32 [rows, count]) and a CRC-32
of all that. The codes are the truth: they are fed through the network again just as they were when they were drawn (see
`generate_level`), so on the same machine the rest comes out to the bit as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from audiovq.prior.kv_cache import KVCache
from audiovq.utils.files import atomic_file

FORMAT = "audiovq-journal-1"
FLUSH_SECONDS = 1.0  # between two writes
CACHE_SHARE = 0.02  # of the time goes into saving the network's memory, at most
_HEAD, _SUM = struct.Struct("<IIII"), struct.Struct("<I")


class Journal:
    """The codes of one group of items.

    Args:
        facts: all that determines the codes, JSON and tensors.
    Raises:
        ValueError: another process has it open, or the folder cannot be written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        header = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=_sha256).encode() + b"\n"
        stem = folder / hashlib.sha256(header).hexdigest()[:16]
        self.path, self.cache_path = stem.with_suffix(".codes"), stem.with_suffix(".cache")
        self.lock = FileLock(stem.with_suffix(".lock"))
        self.known: dict[int, list[np.ndarray]] = {}  # found on disk: int32 [rows, n] a record, a level
        self.counts: dict[int, int] = {}  # codes on disk, a level
        self.last: tuple[int, Tensor, int] | None = None  # noted, not yet written
        self.flush_due = self.cache_due = time.monotonic() + FLUSH_SECONDS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
            self._open(header)
        except Timeout:
            raise ValueError(
                f"{folder}: another process is generating this very piece; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None

    @property
    def n_known(self) -> int:
        """Positions found on disk, all levels together."""
        return sum(part.shape[1] for parts in self.known.values() for part in parts)

    def _open(self, header: bytes) -> None:
        """Take what is whole; a torn or damaged end is cut off, and a file with another header begins anew."""
        content = self.path.read_bytes() if self.path.exists() else b""
        self.end = self._read(content, len(header)) if content.startswith(header) else 0
        self.file = self.path.open("r+b" if content else "w+b")
        self.file.truncate(self.end)
        if self.end == 0:
            self.cache_path.unlink(missing_ok=True)
            self._append(header)

    def _read(self, content: bytes, at: int) -> int:
        """Records from byte `at` on -> the byte where the last whole one ends."""
        while at + _HEAD.size <= len(content):
            level, start, n, rows = _HEAD.unpack_from(content, at)
            end = at + _HEAD.size + 4 * n * rows
            if end + _SUM.size > len(content) or start != self.counts.get(level, 0):
                break
            if _SUM.unpack_from(content, end)[0] != zlib.crc32(content[at:end]):
                break
            codes = np.frombuffer(content, "<i4", n * rows, at + _HEAD.size).reshape(rows, n)
            self.known.setdefault(level, []).append(codes)
            self.counts[level] = start + n
            at = end + _SUM.size
        return at

    def _append(self, content: bytes) -> None:
        self.file.seek(self.end)  # an interrupted write is written over
        self.file.write(content)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.end += len(content)

    def resume(self, level: int, codes: Tensor, cache: KVCache) -> tuple[int, int]:
        """Put what is known into `codes` [rows, n_codes] and the saved memory into `cache`.

        Returns:
            How many positions are known, and how many of them need not be fed again.
        """
        parts = self.known.get(level, [])
        if not parts:
            return 0, 0
        known = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.int64))
        codes[:, : known.shape[1]] = known.to(codes.device)
        return known.shape[1], self._restore(level, known.shape[1], cache)

    def _restore(self, level: int, n_known: int, cache: KVCache) -> int:
        try:
            content = self.cache_path.read_bytes()
            if _SUM.unpack_from(content)[0] != zlib.crc32(content[_SUM.size :]):
                return 0
            state = load(content[_SUM.size :])
        except (OSError, struct.error, SafetensorError):  # none, or damaged: all is fed again
            return 0
        of_level, n_fed = state.pop("place").tolist()
        if of_level != level or n_fed > n_known:
            return 0
        cache.keys.copy_(state["keys"])
        cache.values.copy_(state["values"])
        cache.advance(n_fed - cache.length)
        return n_fed

    def note(self, level: int, codes: Tensor, n_done: int, cache: KVCache) -> None:
        """`codes` [rows, n_codes] are final up to `n_done`; written if the last time is long enough ago."""
        self.last = level, codes, n_done
        now = time.monotonic()
        if now < self.flush_due:
            return
        self.write(level, codes, n_done)
        self.flush_due = time.monotonic() + FLUSH_SECONDS
        if now >= self.cache_due:
            self._save_cache(level, cache)
            spent = time.monotonic() - now
            self.cache_due = time.monotonic() + max(FLUSH_SECONDS, spent / CACHE_SHARE)

    def write(self, level: int, codes: Tensor, n_done: int) -> None:
        """Append the positions up to `n_done` that are not on disk yet."""
        start = self.counts.get(level, 0)
        if n_done > start:
            part = codes[:, start:n_done].cpu().numpy().astype("<i4")
            record = _HEAD.pack(level, start, n_done - start, len(part)) + part.tobytes()
            self._append(record + _SUM.pack(zlib.crc32(record)))
            self.counts[level] = n_done
        self.last = None

    def _save_cache(self, level: int, cache: KVCache) -> None:
        """Replace the saved memory; it is checked when it is read, so it need not reach the disk at once."""
        state = {"keys": cache.keys.cpu().contiguous(), "values": cache.values.cpu().contiguous()}
        content = save({**state, "place": torch.tensor([level, cache.length])})
        with atomic_file(self.cache_path, flush=False) as temporary:
            temporary.write_bytes(_SUM.pack(zlib.crc32(content)) + content)

    def close(self) -> None:
        """Write what was noted last, and let go."""
        try:
            if self.last:
                self.write(*self.last)
        finally:
            self.file.close()
            self.lock.release()


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()


class JournalFolder:
    """The journals of one command. `with` closes them; `remove` deletes them, when the result is safe elsewhere."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.journals: list[Journal] = []

    def __enter__(self) -> JournalFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        for journal in self.journals:
            journal.close()
        self.journals = []

    def open(self, facts: dict[str, Any]) -> Journal:
        """The journal of these facts, as an interrupted run left it, or a new one; see `Journal`."""
        self.journals.append(Journal(self.folder, facts))
        return self.journals[-1]

    def remove(self) -> list[str]:
        """Delete this command's journals; returns what else is there: unfinished work of other commands."""
        for journal in self.journals:
            journal.last = None
            for path in self.folder.glob(f"*{journal.path.stem}.*"):
                path.unlink(missing_ok=True)
        left = sorted(path.name for path in self.folder.glob("*.codes")) if self.folder.is_dir() else []
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        return left
