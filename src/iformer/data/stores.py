"""Where tar shards lie: in a folder, or at a URL whose files are read in parts."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from iformer.errors import DataError

_OPEN_FILES = 128

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts to read from a URL: half a minute in all, which outlasts what is not a real outage."""

_NEEDED = "https:// needs 'iformer[data]', s3:// the package s3fs, gs:// the package gcsfs"


class ShardStore(ABC):
    """A place with tar shards and their index."""

    place: str
    """As people know it."""

    readers: int = 1
    """How many parts are best asked for at a time."""

    def path(self, name: str) -> str:
        """A file's path, for people."""
        return f"{self.place}/{name}"

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where the place does not tell.

        Raises:
            OSError: there is no such file, or nothing can be known of it.
        """

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A file, to be read from its beginning to its end.

        Raises:
            OSError: it cannot be opened.
        """

    @abstractmethod
    def read(self, name: str, offset: int, size: int, crc32: int) -> bytes:
        """`size` bytes from `offset` on, whose CRC-32 is known.

        Raises:
            DataError: they cannot be read, or are others.
        """

    @abstractmethod
    def local(self, name: str) -> Any:
        """A context whose value is the path of a file, or of its copy, on this machine.

        Raises:
            OSError: it cannot be read.
        """

    def sizes(self, names: Sequence[str]) -> Iterator[int | None]:
        """Bytes of several files, in order; see `size`."""
        return map(self.size, names)


def is_url(spec: str | os.PathLike[str]) -> bool:
    """Whether a data set's name is a URL: `https://…`, `s3://…`, `hf://…`, `simplecache::https://…`."""
    return "://" in os.fspath(spec)


def shard_store(where: str | os.PathLike[str]) -> ShardStore:
    """The store at a folder or URL."""
    return UrlStore(os.fspath(where)) if is_url(where) else FolderStore(Path(where))


class FolderStore(ShardStore):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def open(self, name: str) -> IO[bytes]:
        return (self.folder / name).open("rb")

    def read(self, name: str, offset: int, size: int, crc32: int) -> bytes:
        path = self.folder / name
        try:
            data = os.pread(_files.descriptor(path), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        if len(data) != size:
            raise DataError(f"{path}: is shorter than its index says; copy it again")
        if zlib.crc32(data) != crc32:
            raise DataError(f"{path}: {size:,} bytes from {offset:,} on are not what was indexed; copy it again")
        return data

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self.folder / name


class UrlStore(ShardStore):
    """A folder of a server or an object store, through fsspec; each image is one request for a part of a file.

    The file system object is fetched by each process and thread for itself: fsspec keeps one for each, and one
    that was made before a fork cannot be used after it.
    """

    readers = 32

    def __init__(self, url: str) -> None:
        self.place = url.rstrip("/")

    def size(self, name: str) -> int | None:
        return cast("int | None", self._ask(name, lambda files, path: files.size(path)))

    def sizes(self, names: Sequence[str]) -> Iterator[int | None]:
        with ThreadPoolExecutor(self.readers, thread_name_prefix="size") as pool:
            yield from pool.map(self.size, names)

    def open(self, name: str) -> IO[bytes]:
        return cast("IO[bytes]", self._ask(name, lambda files, path: files.open(path, "rb")))

    def read(self, name: str, offset: int, size: int, crc32: int) -> bytes:
        def part(files: Any, path: str) -> bytes:
            # file systems without requests for parts open the file; they must not read ahead for one image
            options = {} if getattr(files, "async_impl", False) else {"cache_type": "none"}
            data: bytes = files.cat_file(path, offset, offset + size, **options)
            if len(data) > size:
                raise DataError(
                    f"{self.path(name)}: the server sends whole files when asked for parts (HTTP range requests)"
                )
            if len(data) != size or zlib.crc32(data) != crc32:
                raise ValueError(f"{size:,} bytes from {offset:,} on are not what was indexed")
            return data

        try:
            return cast("bytes", self._ask(name, part))
        except OSError as error:
            raise DataError(f"{self.path(name)}: cannot be read ({error.strerror})") from None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="iformer-") as folder:
            copy = Path(folder) / name
            # the first that is asked for: a mistaken URL is said at once
            copy.write_bytes(self._ask(name, lambda files, path: files.cat_file(path), waits=()))
            yield copy

    def _ask(self, name: str, request: Callable[[Any, str], Any], *, waits: Sequence[float] | None = None) -> Any:
        """What a request, made of the file system and a path in it, answers; asked again after what may pass.

        `waits` are seconds between the attempts; nothing: `_WAITS`.

        Raises:
            OSError: it fails, whatever the client raised; its `strerror` says why.
        """
        files, root = self._files()
        for wait in (*(_WAITS if waits is None else waits), None):
            try:
                return request(files, f"{root}/{name}")
            except DataError:
                raise
            except FileNotFoundError:  # some clients give no more than the path
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name)) from None
            except Exception as error:  # clients of object stores raise of every kind
                if wait is None or not _may_pass(error):
                    raise OSError(errno.EIO, _reason(error), self.path(name)) from None
            time.sleep(wait)
        raise AssertionError("the last attempt has no wait")

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system of this process and thread, and the folder's path in it."""
        from fsspec.core import url_to_fs

        try:
            files, root = url_to_fs(self.place)
        except (ImportError, ValueError) as error:  # a package is missing, or the protocol is unknown
            raise DataError(f"{self.place}: {_reason(error)} ({_NEEDED})") from None
        return files, root.rstrip("/")


def _may_pass(error: Exception) -> bool:
    """Whether the same request may be answered a little later."""
    status = getattr(error, "status", 0)  # of HTTP
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return not refused and not isinstance(error, PermissionError)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _OpenFiles(threading.local):
    """Descriptors of the shards that a thread read last. Forked processes share them: reads are positioned."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def descriptor(self, path: Path) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        descriptor = self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return descriptor


_files = _OpenFiles()
