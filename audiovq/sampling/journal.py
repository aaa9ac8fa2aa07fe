"""Snapshots of pieces that are being generated, so that an interrupted run goes on where it was.

A folder next to the output has two files for each group of items that are generated together. Their name
is a hash of everything that determines the codes.

    <hash>.journal   a CRC-32 and a safetensors file: the finished levels (`level.0`, ...) and, of the level
                     at work, the codes so far (`codes`) and the network's cache (`keys`, `values`)
    <hash>.lock      held by the process at work

A snapshot replaces the one before atomically. With the cache restored, a resumed run continues with the
same passes through the network (see `DecodeState.stretches`), so on the same machine it gives the same
codes to the bit.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from audiovq.utils.files import atomic_file

if TYPE_CHECKING:
    from audiovq.sampling.decode_state import DecodeState

FORMAT = "audiovq-journal-2"
SNAPSHOT_SECONDS = 1.0  # between two snapshots
TIME_SHARE = 0.02  # the largest share of the time that is spent on snapshots
CHECKSUM = struct.Struct("<I")


class Journal:
    """The snapshots of one group of items.

    Args:
        facts: everything that determines the codes, JSON and tensors.
    Attributes:
        finished: int64 [items, n_codes] of each finished level.
        n_known: codes of one item that were found in a snapshot, of all levels together.
    Raises:
        ValueError: another process has it open, or the folder cannot be written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=_sha256)
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.journal"
        self.lock = FileLock(self.path.with_suffix(".lock"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"{folder}: another process is generating this very piece; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
        found = _read(self.path)
        self.unfinished = {name: found.pop(name) for name in ("codes", "keys", "values") if name in found}
        self.finished = {int(name.removeprefix("level.")): codes.long() for name, codes in found.items()}
        self.n_known = sum(codes.shape[1] for codes in [*self.finished.values(), *_codes(self.unfinished)])
        self.state: DecodeState | None = None  # of the level at work
        self.changed = False  # since the last snapshot
        self.due = time.monotonic() + SNAPSHOT_SECONDS

    def restore(self, state: DecodeState) -> None:
        """Put the codes and the cache of the snapshot into a new state of the level at work."""
        self.state = state
        for codes in _codes(self.unfinished):
            state.n_done = codes.shape[1]
            state.codes[:, 1 : state.n_done + 1] = codes
            state.cache.keys.copy_(self.unfinished["keys"])
            state.cache.values.copy_(self.unfinished["values"])
            state.cache.advance(state.n_done)
        self.unfinished = {}

    def note(self) -> None:
        """The state has new codes; makes a snapshot if it is time for one."""
        self.changed = True
        began = time.monotonic()
        if began >= self.due:
            self._save()
            now = time.monotonic()
            self.due = now + max(SNAPSHOT_SECONDS, (now - began) / TIME_SHARE)

    def finish(self, level: int, codes: Tensor) -> None:
        """A level, int64 [items, n_codes], is finished."""
        self.finished[level], self.state, self.changed = codes, None, True

    def _save(self) -> None:
        tensors = {f"level.{level}": codes.int() for level, codes in self.finished.items()}
        if self.state:
            tensors["codes"] = self.state.codes[:, 1 : self.state.n_done + 1].int()
            tensors |= {"keys": self.state.cache.keys, "values": self.state.cache.values}
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(CHECKSUM.pack(zlib.crc32(content)) + content)
        self.changed = False

    def close(self) -> None:
        """Make a last snapshot and release the lock. After an error within a pass over given codes, which
        leaves the cache incomplete, the snapshot before stays."""
        try:
            if self.changed and not (self.state and self.state.in_prefill):
                self._save()
        finally:
            self.lock.release()

    def remove(self) -> None:
        """Delete the files of a finished piece."""
        self.changed = False
        for path in (self.path, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)


def _codes(unfinished: dict[str, Tensor]) -> list[Tensor]:
    return [unfinished["codes"]] if unfinished else []


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot; none if it is missing or damaged."""
    try:
        content = path.read_bytes()
        (expected,) = CHECKSUM.unpack_from(content)
        body = content[CHECKSUM.size :]
        return load(body) if zlib.crc32(body) == expected else {}
    except (OSError, struct.error, SafetensorError):
        return {}


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()


class JournalFolder:
    """The journals of one command; `with` closes them, `remove` deletes them."""

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
            journal.remove()
        left = sorted(path.name for path in self.folder.glob("*.journal")) if self.folder.is_dir() else []
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        return left
