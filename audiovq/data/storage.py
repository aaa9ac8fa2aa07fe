"""Reads files below a local folder or a URL that fsspec knows (s3://, gs://, https://, memory://, …).

Local arrays are memory-mapped. Remote arrays are read by ranges, through a cache of limited size.
"""

from __future__ import annotations

import io
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

BLOCK_BYTES = 1 << 16  # of a remote file are read at once
CACHE_BYTES = 1 << 26  # of remote files stay in the memory of each process
PAUSES = (0.5, 2.0)  # seconds before a request is repeated


class Unreachable(ValueError):
    """A remote file cannot be read."""


class Storage:
    """A folder, local or at a URL; ValueError if the URL's protocol is unknown or needs a package."""

    def __init__(self, place: Path | str):
        self.place = str(place)
        self.root, self.local = self.place, Path(place)
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._opened: tuple[int, Any] = (0, None)
        if is_url(self.place):
            self.root, local = self._connect()
            self.local = Path(self.root) if local else None

    def __str__(self) -> str:
        return self.place

    def _connect(self) -> tuple[str, bool]:
        try:
            filesystem, root = fsspec.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.place}: cannot be opened ({error})") from None
        self._opened = os.getpid(), filesystem
        return root, isinstance(filesystem, LocalFileSystem)

    @property
    def _filesystem(self) -> Any:
        """The connection of this process."""
        if self._opened[0] != os.getpid():
            self._connect()
        return self._opened[1]

    def path(self, name: str) -> str:
        """The path of a file; its name may begin with `../`."""
        root = self.root.rstrip("/")
        while name.startswith("../"):
            root, name = root.rpartition("/")[0], name[3:]
        return f"{root}/{name}"

    def read(self, name: str) -> bytes:
        """The content of a file; raises FileNotFoundError or Unreachable."""
        if self.local is not None:
            return Path(self.path(name)).read_bytes()
        return self._request("cat_file", name)

    def bytes(self, name: str) -> np.ndarray:
        """The content of a file as uint8; a local file is memory-mapped. Raises as `read`."""
        if self.local is None or not self.size(name):
            return np.frombuffer(self.read(name), np.uint8)
        return np.memmap(self.path(name), np.uint8, "r")

    def array(self, name: str) -> np.ndarray | RemoteArray:
        """The one-dimensional array in an .npy file, which supports [start:end]; raises as `read`."""
        if self.local is None:
            return RemoteArray(self, name)
        try:
            return np.load(self.path(name), mmap_mode="r", allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{self.path(name)}: damaged ({error})") from None

    def size(self, name: str) -> int:
        """The size of a file in bytes; raises as `read`."""
        if self.local is not None:
            return Path(self.path(name)).stat().st_size
        if name not in self._sizes:
            self._sizes[name] = self._request("size", name)
        return self._sizes[name]

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a remote file; one request fetches the blocks that are not in the cache."""
        first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        blocks = {i: self._cache[name, i] for i in range(first, last) if (name, i) in self._cache}
        missing = [i for i in range(first, last) if i not in blocks]
        if missing:
            low, high = missing[0] * BLOCK_BYTES, min((missing[-1] + 1) * BLOCK_BYTES, self.size(name))
            content = self._request("cat_file", name, start=low, end=high)
            if len(content) != high - low:
                sizes = f"expected {high - low} bytes, found {len(content)}"
                raise Unreachable(f"{self.path(name)}: {sizes}; the server must support requests for ranges")
            for i in range(missing[0], missing[-1] + 1):
                blocks[i] = content[i * BLOCK_BYTES - low : (i + 1) * BLOCK_BYTES - low]
        for i, block in blocks.items():
            self._cache[name, i] = block
            self._cache.move_to_end((name, i))
        while len(self._cache) > CACHE_BYTES // BLOCK_BYTES:
            self._cache.popitem(last=False)
        whole = b"".join(blocks[i] for i in range(first, last))
        return whole[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def _request(self, verb: str, name: str, **options: int) -> Any:
        """Call a method of the filesystem; repeat it after a pause if it fails."""
        path = self.path(name)
        for pause in (*PAUSES, None):
            try:
                return getattr(self._filesystem, verb)(path, **options)
            except FileNotFoundError:
                raise
            except Exception as error:  # each protocol's package raises its own kinds
                if pause is None:
                    raise Unreachable(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


class RemoteArray:
    """A one-dimensional array in a remote .npy file."""

    def __init__(self, storage: Storage, name: str):
        self.storage, self.name = storage, name
        size = storage.size(name)
        header = io.BytesIO(storage.read_range(name, 0, min(size, 1024)))
        try:
            np.lib.format.read_magic(header)
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(header)
            self.n, self.offset = shape[0], header.tell()
        except (ValueError, EOFError, IndexError) as error:
            raise ValueError(f"{storage.path(name)}: damaged ({error})") from None
        if self.offset + self.n * self.dtype.itemsize != size:
            raise ValueError(f"{storage.path(name)}: damaged, it is {size} bytes long")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, part: slice) -> np.ndarray:
        start, end, _ = part.indices(self.n)
        place, width = self.offset, self.dtype.itemsize
        data = self.storage.read_range(self.name, place + start * width, place + max(start, end) * width)
        return np.frombuffer(data, self.dtype)


def is_url(place: Path | str) -> bool:
    return isinstance(place, str) and "://" in place
