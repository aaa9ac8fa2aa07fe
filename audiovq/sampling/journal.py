"""Snapshots of pieces that are being generated, so that an interrupted run goes on where it was.

A folder next to the output has a file for each group of items that are generated together: a safetensors
file with the finished levels (`level.0`, ...) and, of each level at work, the codes so far (`codes.1`) and the
network's cache (`keys.1`, `values.1`), and its CRC-32. The name is a hash of everything that determines the
codes. A lock file next to it is held by the process at work.

A snapshot replaces the one before atomically. With the cache restored, a resumed run continues with the
same passes through the network (see `DecodeState.stretches`), so on the same machine it gives the same
codes to the bit.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from audiovq.utils.files import atomic_file, check_folder, utf8_path

if TYPE_CHECKING:
    from audiovq.sampling.decode_state import DecodeState

FORMAT = "audiovq-journal-3"
SNAPSHOT_SECONDS = 1.0  # between two snapshots
TIME_SHARE = 0.02  # the largest share of the time that is spent on snapshots


class Journal:
    """The snapshots of one command, for one group of items after the other. `with` makes a last snapshot,
    `remove` deletes them.

    Attributes:
        finished: int64 [items, n_codes] of each finished level of the group.
        n_known: codes of one item of the group that were found in a snapshot, of all levels together.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths: list[Path] = []  # of each group; the last is at work
        self.lock: FileLock | None = None  # of the group at work
        self.states: dict[int, DecodeState] = {}  # of the levels at work
        self.changed = False  # since the last snapshot

    def open(self, facts: dict[str, Any]) -> None:
        """Go to the next group of items, as an interrupted run left it.

        Args:
            facts: everything that determines the group's codes, JSON and tensors.
        Raises:
            ValueError: the folder cannot be written, or another process generates the same piece.
        """
        self.close()
        check_folder(self.folder)
        text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=_sha256)
        self.paths.append(self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.journal")
        self.lock = FileLock(self.paths[-1].with_suffix(".lock"), thread_local=False)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.folder}: another process generates this piece; wait until it has ended") from None
        try:
            data = self.paths[-1].read_bytes()
            found = load(data[:-4]) if zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little") else {}
        except (OSError, SafetensorError):  # missing or damaged
            found = {}
        self.finished = {int(name[6:]): codes.long() for name, codes in found.items() if name.startswith("level.")}
        # Names without a level are of version 0.1, whose only level at work was the one after the finished ones.
        level = len(self.finished)
        self.unfinished = {x if "." in x else f"{x}.{level}": found[x] for x in found if not x.startswith("level.")}
        codes = [tensor for name, tensor in found.items() if name.startswith(("level", "codes"))]
        self.n_known = sum(tensor.shape[1] for tensor in codes)
        self.due = time.monotonic() + SNAPSHOT_SECONDS

    def restore(self, level: int, state: DecodeState) -> None:
        """Put the codes and the cache of the snapshot into a new state of a level at work."""
        self.states[level] = state
        parts = [self.unfinished.pop(f"{name}.{level}", None) for name in ("codes", "keys", "values")]
        codes, keys, values = parts
        if codes is not None and keys is not None and values is not None:
            state.n_done = codes.shape[1]
            state.codes[:, 1 : state.n_done + 1] = codes
            state.cache.keys.copy_(keys)
            state.cache.values.copy_(values)
            state.cache.advance(state.n_done)

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
        self.finished[level], self.changed = codes, True
        self.states.pop(level, None)

    def _save(self) -> None:
        tensors = {f"level.{level}": codes.int() for level, codes in self.finished.items()}
        tensors |= self.unfinished  # of levels whose turn is still to come
        for level, state in self.states.items():
            tensors[f"codes.{level}"] = state.codes[:, 1 : state.n_done + 1].int()
            tensors |= {f"keys.{level}": state.cache.keys, f"values.{level}": state.cache.values}
        with atomic_file(self.paths[-1]) as temporary:
            with utf8_path(temporary.parent) as folder:
                content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
                save_file(content, folder / temporary.name)
            checksum = zlib.crc32(temporary.read_bytes())
            with temporary.open("ab") as file:
                file.write(checksum.to_bytes(4, "little"))
        self.changed = False

    def close(self) -> None:
        """Make a last snapshot and release the lock. After an error within a pass over given codes, which
        leaves the cache incomplete, the snapshot before stays."""
        try:
            if self.changed and not any(state.in_prefill for state in self.states.values()):
                self._save()
        finally:
            self.states, self.changed = {}, False
            if self.lock:
                self.lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def remove(self) -> list[str]:
        """Delete this command's snapshots; returns the files of other commands that were interrupted."""
        self.changed = False
        for path in self.paths:
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        left = sorted(path.name for path in self.folder.glob("*.journal"))
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        return left


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
