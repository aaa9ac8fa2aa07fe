"""Codes on disk while they are generated, so that an interruption costs at most a second of work.

A folder next to the output has three files for each group of items that are generated together. Their name is a hash of
everything that determines the codes.

    <hash>.codes   a JSON line with everything that determines the codes, then records that are only ever appended
    <hash>.cache   the network's cache at some position; without it, all codes go through the network again
    <hash>.lock    held by the process at work

A record is level, first position, count and rows (little-endian uint32), the codes (int32 [rows, count]) and a CRC-32
of all that. Codes go through the network again in the same passes as before (see `DecodeState.stretches`), so on the
same machine a resumed run gives the same codes to the bit.
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

from audiovq.sampling.decode_state import DecodeState
from audiovq.utils.files import atomic_file

FORMAT = "audiovq-journal-1"
FLUSH_SECONDS = 1.0  # between two writes
CACHE_SHARE = 0.02  # the largest share of the time that is spent on saving the cache
_HEAD, _SUM = struct.Struct("<IIII"), struct.Struct("<I")


class Journal:
    """The codes of one group of items.

    Args:
        facts: everything that determines the codes, JSON and tensors.
    Raises:
        ValueError: another process has it open, or the folder cannot be written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        header = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=_sha256).encode() + b"\n"
        stem = folder / hashlib.sha256(header).hexdigest()[:16]
        self.path, self.cache_path = stem.with_suffix(".codes"), stem.with_suffix(".cache")
        self.lock = FileLock(stem.with_suffix(".lock"))
        self.known: dict[int, list[np.ndarray]] = {}  # found on disk: level -> records, int32 [rows, n]
        self.counts: dict[int, int] = {}  # positions on disk, of each level
        self.pending: tuple[DecodeState, int] | None = None  # a state and its final positions, not yet written
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
        """Positions found on disk, of all levels together."""
        return sum(part.shape[1] for parts in self.known.values() for part in parts)

    def _open(self, header: bytes) -> None:
        """Read the intact records. A torn or damaged end is cut off; a file with another header starts anew."""
        content = self.path.read_bytes() if self.path.exists() else b""
        self.end = self._read(content, len(header)) if content.startswith(header) else 0
        self.file = self.path.open("r+b" if content else "w+b")
        self.file.truncate(self.end)
        if self.end == 0:
            self.cache_path.unlink(missing_ok=True)
            self._append(header)

    def _read(self, content: bytes, at: int) -> int:
        """Read records from byte `at` on; returns the byte where the last intact one ends."""
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
        self.file.seek(self.end)  # overwrites an interrupted write
        self.file.write(content)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.end += len(content)

    def restore(self, state: DecodeState) -> None:
        """Put the known codes of the state's level, and the saved cache, into a new state."""
        parts = self.known.get(state.level, [])
        if parts:
            known = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.int64))
            state.n_known = known.shape[1]
            state.codes[:, 1 : state.n_known + 1] = known.to(state.codes.device)
            self._restore_cache(state)

    def _restore_cache(self, state: DecodeState) -> None:
        try:
            content = self.cache_path.read_bytes()
            if _SUM.unpack_from(content)[0] != zlib.crc32(content[_SUM.size :]):
                return
            saved = load(content[_SUM.size :])
        except (OSError, struct.error, SafetensorError):  # missing or damaged
            return
        level, length = saved.pop("place").tolist()
        if level == state.level and length <= state.n_known:
            state.cache.keys.copy_(saved["keys"])
            state.cache.values.copy_(saved["values"])
            state.cache.advance(length - state.cache.length)
            state.n_done = length

    def note(self, state: DecodeState) -> None:
        """Write the final codes of a state, if the last write is long enough ago."""
        self.pending = state, state.n_done
        now = time.monotonic()
        if now < self.flush_due:
            return
        self.write(state)
        self.flush_due = time.monotonic() + FLUSH_SECONDS
        if now >= self.cache_due:
            self._save_cache(state)
            spent = time.monotonic() - now
            self.cache_due = time.monotonic() + max(FLUSH_SECONDS, spent / CACHE_SHARE)

    def write(self, state: DecodeState, n_done: int | None = None) -> None:
        """Append the final codes that are not on disk yet; `n_done` is the state's own by default."""
        start, end = self.counts.get(state.level, 0), state.n_done if n_done is None else n_done
        if end > start:
            part = state.codes[:, start + 1 : end + 1].cpu().numpy().astype("<i4")
            record = _HEAD.pack(state.level, start, end - start, len(part)) + part.tobytes()
            self._append(record + _SUM.pack(zlib.crc32(record)))
            self.counts[state.level] = end
        self.pending = None

    def _save_cache(self, state: DecodeState) -> None:
        """Replace the saved cache. Its checksum is verified when it is read, so it need not reach the disk at once."""
        cache = state.cache
        saved = {"keys": cache.keys.cpu().contiguous(), "values": cache.values.cpu().contiguous()}
        content = save({**saved, "place": torch.tensor([state.level, cache.length])})
        with atomic_file(self.cache_path, flush=False) as temporary:
            temporary.write_bytes(_SUM.pack(zlib.crc32(content)) + content)

    def close(self) -> None:
        """Write what is pending and release the lock."""
        try:
            if self.pending:
                self.write(*self.pending)
        finally:
            self.file.close()
            self.lock.release()


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()


class JournalFolder:
    """The journals of one command. `with` closes them; `remove` deletes them once the result is safe elsewhere."""

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
        """Delete this command's journals; returns the files of other commands that were interrupted."""
        for journal in self.journals:
            journal.pending = None
            for path in self.folder.glob(f"{journal.path.stem}.*"):
                path.unlink(missing_ok=True)
        left = sorted(path.name for path in self.folder.glob("*.codes")) if self.folder.is_dir() else []
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        return left
