"""Files at a URL that fsspec knows (s3://, gs://, https://, …), which are copied into a local cache once."""

import contextlib
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock
from fsspec import AbstractFileSystem

from audiovq.utils.environment import errors_as
from audiovq.utils.files import atomic_file


def is_url(place: Path | str) -> bool:
    return isinstance(place, str) and "://" in place


def read(place: Path | str, name: str) -> bytes:
    """The content of a file below a folder or URL. Raises FileNotFoundError if there is none, ValueError if
    the protocol is unknown or needs a package, or the file cannot be read."""
    if not is_url(place) and not (Path(place) / name).is_file():  # a pipe would never end
        raise FileNotFoundError(f"{place}/{name}")
    filesystem, root = _connect(place)
    return _request(filesystem.cat_file, f"{root}/{name}")


def download(url: str, name: str, target: Path, size: int | None) -> None:
    """Copy a file below a URL, of `size` bytes if known; it appears whole or not at all. Raises as `read`."""
    filesystem, root = _connect(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / "downloading"):  # one of several processes downloads
        if target.exists():
            return
        with atomic_file(target, flush=False) as temporary:
            _request(filesystem.get_file, f"{root}/{name}", str(temporary))
            found = temporary.stat().st_size
            if size is not None and found != size:
                raise ValueError(f"expected {size} bytes, found {found}")


def listing(place: str) -> tuple[str, dict[str, int | None]]:
    """The files below a folder, a file, or those that a pattern with * or {000..009} names: the URL of their folder,
    and the name of each below it with its size, if known. Raises ValueError if there are none, else as `read`."""
    filesystem, root = _connect(place)
    roots, found, base = [root], list[str](), ""
    if numbers := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", root):
        before, first, last, after = numbers.groups()
        roots = [f"{before}{i:0{len(first)}d}{after}" for i in range(int(first), int(last) + 1)]
    for path in roots:
        names = []
        with contextlib.suppress(FileNotFoundError):
            if "*" in path:
                names = _request(filesystem.glob, path)
            elif posixpath.splitext(path)[1] and _request(filesystem.isfile, path):  # a page of links is a file, too
                names = [path]
            else:
                base, names = path, [name for name in _request(filesystem.find, path) if name != path]
        if not names:
            raise ValueError(f"{path}: expected a file, or a folder with files, found none")
        found += names
    if not base or len(roots) > 1:
        base = posixpath.commonprefix([f"{posixpath.dirname(path)}/" for path in found]).rpartition("/")[0]
    sizes = {path.removeprefix(f"{base}/"): _request(filesystem.size, path) for path in found}
    return filesystem.unstrip_protocol(base), sizes


def _connect(place: Path | str) -> tuple[AbstractFileSystem, str]:
    with errors_as(f"{place}: cannot be opened", ImportError, ValueError):
        filesystem, root = fsspec.url_to_fs(str(place))
        return filesystem, root.rstrip("/")


def _request(method: Callable[..., Any], path: str, *arguments: str) -> Any:
    try:
        return method(path, *arguments)
    except FileNotFoundError:
        raise
    except Exception as error:  # each protocol's package raises its own kinds
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
