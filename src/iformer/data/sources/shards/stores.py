"""Where tar shards lie: in a folder, or at a URL whose files are read in parts."""

from __future__ import annotations

import errno
import io
import os
import shutil
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

_TIMEOUT = 30.0
"""Seconds after which an attempt has failed, where the client can be told so."""

_BLOCK = 8 * 2**20
"""Bytes of one request where a file is read from its beginning to its end."""

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
    """Whether a data set's name is a URL: `https://…`, `s3://…`, `hf://…`."""
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
        """Nothing is asked for yet.

        Raises:
            DataError: the URL cannot be that of a folder.
        """
        if "::" in url:  # fsspec's caches keep a copy for each thread of each process
            raise DataError(f"{url}: chains of file systems are not read; give the URL alone, or copy the shards")
        if url.startswith(("http://", "https://")) and ("?" in url or "#" in url):
            raise DataError(f"{url}: expected the URL of a folder, without ? and #")
        scheme, _, path = url.partition("://")
        self.place = f"{scheme}://{path.rstrip('/')}"

    def size(self, name: str, *, first: bool = False) -> int | None:
        return cast("int | None", self._ask(name, lambda files, path: files.size(path), first=first))

    def sizes(self, names: Sequence[str]) -> Iterator[int | None]:
        with ThreadPoolExecutor(self.readers, thread_name_prefix="size") as pool:
            yield from pool.map(self.size, names)

    def open(self, name: str, *, first: bool = False) -> IO[bytes]:
        size = self.size(name, first=first)
        if size is None:
            raise OSError(errno.EIO, "the server does not tell its size", self.path(name))
        return io.BufferedReader(_Blocks(lambda start, end: self._part(name, start, end), size), _BLOCK)

    def read(self, name: str, offset: int, size: int, crc32: int) -> bytes:
        try:
            return self._part(name, offset, offset + size, crc32)
        except OSError as error:
            raise DataError(f"{self.path(name)}: cannot be read ({error.strerror})") from None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="iformer-") as folder:
            copy = Path(folder) / name
            # the first that is asked for: a mistaken URL is said at once
            with self.open(name, first=True) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
            yield copy

    def _part(self, name: str, start: int, end: int, crc32: int | None = None) -> bytes:
        """Bytes `start` to `end` of a file, of which there are so many, and whose CRC-32 may be known."""

        def part(files: Any, path: str) -> bytes:
            # a client that has no requests for parts opens the file; it must not read ahead for one image
            options = {"timeout": _TIMEOUT} if getattr(files, "async_impl", False) else {"cache_type": "none"}
            data: bytes = files.cat_file(path, start, end, **options)
            if len(data) > end - start:
                raise DataError(
                    f"{self.path(name)}: the server sends whole files when asked for parts (HTTP range requests)"
                )
            if len(data) < end - start or (crc32 is not None and zlib.crc32(data) != crc32):
                raise ValueError(f"{end - start:,} bytes from {start:,} on are not what was indexed")
            return data

        return cast("bytes", self._ask(name, part))

    def _ask(self, name: str, request: Callable[[Any, str], Any], *, first: bool = False) -> Any:
        """What a request, made of the file system and a path in it, answers; asked again after what may pass.

        Of the `first` request only an error that a server answers may pass: that there is none will not.

        Raises:
            OSError: it fails, whatever the client raised; its `strerror` says why.
        """
        files, root = self._files()
        for wait in (*_WAITS, None):
            try:
                return request(files, f"{root}/{name}")
            except DataError:
                raise
            except Exception as raised:  # clients of object stores raise of every kind
                error = raised
                if isinstance(raised, FileNotFoundError) and isinstance(raised.__cause__, Exception):
                    error = raised.__cause__  # what a client takes for a missing file
                if isinstance(error, FileNotFoundError) or getattr(error, "status", None) == 404:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name)) from None
                if wait is None or not _may_pass(error, first=first):
                    raise OSError(errno.EIO, _reason(error), self.path(name)) from None
            time.sleep(wait)
        raise AssertionError("the last attempt has no wait")

    def _files(self) -> tuple[Any, str]:
        """fsspec's file system of this process and thread, and the folder's path in it."""
        from fsspec.core import url_to_fs

        try:
            files, root = url_to_fs(self.place)
        except Exception as error:  # a package is missing, the protocol is unknown, or it wants more than a URL
            raise DataError(f"{self.place}: {_reason(error)} ({_NEEDED})") from None
        if getattr(files, "async_impl", False):
            _kept[id(files)] = files
        return files, root.rstrip("/")


_kept: dict[int, Any] = {}
"""File systems with an event loop. fsspec forgets them after a fork; if that were their end in the child, they
would take their connections out of the kernel's list of events, which child and parent share, and the parent would
wait for answers that it is never told of."""


class _Blocks(io.RawIOBase):
    """A file that is read by its parts."""

    def __init__(self, part: Callable[[int, int], bytes], size: int) -> None:
        """`part` gives the bytes from a place to another."""
        self._part, self._size, self._place = part, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._size)
        data = self._part(self._place, end) if end > self._place else b""
        buffer[: len(data)] = data
        self._place = end
        return len(data)


def _may_pass(error: Exception, *, first: bool) -> bool:
    """Whether the same request may be answered a little later."""
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(status, int):
        return not 400 <= status < 500 or status in (408, 429)
    return not first and not isinstance(error, PermissionError)


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
