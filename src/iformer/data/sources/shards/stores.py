"""Storage of tar shards: a folder, or a URL whose files are read by byte ranges."""

from __future__ import annotations

import errno
import io
import os
import re
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

from iformer.errors import DataError, one_line

_OPEN_FILES = 128

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts to read from a URL: half a minute in total, which outlasts short disturbances."""

_TIMEOUT = 30.0
"""Seconds after which an attempt counts as failed."""

_BLOCK = 8 * 2**20
"""Bytes per request where a file is read from beginning to end."""

_MAX_COPY_BYTES = 2 * 2**30
"""Largest file, in bytes, that `UrlStore.local` copies."""

_NEEDED = "https:// needs 'iformer[data]', s3:// the package s3fs, gs:// the package gcsfs"


class ShardStore(ABC):
    """Storage of tar shards and their index."""

    location: str
    """The folder's path or URL, for messages."""

    readers: int = 1
    """Number of reads to run at the same time."""

    def path(self, name: str) -> str:
        """Return a file's path, for messages."""
        return f"{self.location}/{name}"

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if the store does not report it.

        Raises:
            OSError: the file does not exist, or the store does not answer.
        """

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading from beginning to end.

        Raises:
            OSError: the file cannot be opened.
        """

    @abstractmethod
    def read(self, name: str, offset: int, size: int, crc32: int) -> bytes:
        """Return the byte range `[offset, offset + size)` of a file.

        Raises:
            DataError: the range cannot be read, or its CRC-32 is not `crc32`.
        """

    @abstractmethod
    def local(self, name: str) -> Any:
        """Return a context manager that gives the local path of a file or of a temporary copy.

        Raises:
            OSError: the file cannot be read.
        """

    def sizes(self, names: Sequence[str]) -> Iterator[int | None]:
        """Yield the sizes of several files, in order; see `size`."""
        return map(self.size, names)


def is_url(spec: str | os.PathLike[str]) -> bool:
    """Return whether a data set's name is a URL: `https://…`, `s3://…`, `hf://…`."""
    return "://" in os.fspath(spec)


def shard_store(where: str | os.PathLike[str]) -> ShardStore:
    """Return the store of a folder or URL.

    Raises:
        DataError: a URL cannot be the URL of a folder.
    """
    return UrlStore(os.fspath(where)) if is_url(where) else FolderStore(Path(where))


class FolderStore(ShardStore):
    """Shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder)

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
            raise DataError(f"{path}: {size:,} bytes at {offset:,} differ from the index; copy it again")
        return data

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self.folder / name


class UrlStore(ShardStore):
    """Shards in a folder of a server or an object store, through fsspec. One range request reads one image.

    Each process and thread gets its own file system object: fsspec caches one per thread, and one that was
    created before a fork cannot be used after it.
    """

    readers = 32

    def __init__(self, url: str) -> None:
        """Check the URL, without a request.

        Raises:
            DataError: `url` cannot be the URL of a folder.
        """
        # fsspec's caches keep a copy per thread of each process; an IPv6 address has colons in brackets
        if "::" in re.sub(r"\[[0-9A-Fa-f:.]*\]", "", url):
            raise DataError(
                f"{url}: chained file systems are not supported; give the plain URL, or copy the shards"
            )
        if url.startswith(("http://", "https://")) and ("?" in url or "#" in url):
            raise DataError(f"{url}: expected the URL of a folder, without ? and #")
        scheme, _, path = url.partition("://")
        self.location = f"{scheme}://{path.rstrip('/')}"

    def size(self, name: str, *, first: bool = False) -> int | None:
        def size(files: Any, path: str) -> int | None:
            found: int | None = files.size(path, **_timeout(files))
            return found

        return cast("int | None", self._request(name, size, first=first))

    def sizes(self, names: Sequence[str]) -> Iterator[int | None]:
        with ThreadPoolExecutor(self.readers, thread_name_prefix="size") as pool:
            yield from pool.map(self.size, names)

    def open(self, name: str, *, first: bool = False) -> IO[bytes]:
        size = self.size(name, first=first)
        if size is None:
            raise OSError(errno.EIO, "the server does not state its size", self.path(name))
        return io.BufferedReader(_Blocks(lambda start, end: self._range(name, start, end), size), _BLOCK)

    def read(self, name: str, offset: int, size: int, crc32: int) -> bytes:
        try:
            return self._range(name, offset, offset + size, crc32)
        except OSError as error:
            raise DataError(f"{self.path(name)}: cannot be read ({error.strerror})") from None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="iformer-") as folder:
            copy = Path(folder) / name
            # the first request: a wrong URL is reported at once
            with self.open(name, first=True) as source, copy.open("wb") as target:
                if (size := source.seek(0, os.SEEK_END)) > _MAX_COPY_BYTES:
                    raise OSError(errno.EFBIG, f"{size:,} bytes; expected at most {_MAX_COPY_BYTES:,}")
                source.seek(0)
                shutil.copyfileobj(source, target, _BLOCK)
            yield copy

    def _range(self, name: str, start: int, end: int, crc32: int | None = None) -> bytes:
        """Return the byte range `[start, end)` of a file, and check its CRC-32 if one is given."""

        def read(files: Any, path: str) -> bytes:
            data = _read_range(files, path, start, end)
            if len(data) > end - start:
                raise DataError(
                    f"{self.path(name)}: the server ignores byte ranges (HTTP range requests) or compresses them"
                )
            if len(data) < end - start or (crc32 is not None and zlib.crc32(data) != crc32):
                raise ValueError(f"{end - start:,} bytes at {start:,} differ from the index")
            return data

        return cast("bytes", self._request(name, read))

    def _request(self, name: str, request: Callable[[Any, str], Any], *, first: bool = False) -> Any:
        """Return `request(file system, path)`. The request is repeated after errors that may be temporary.

        `first` marks the first request to a server. It is repeated only after a temporary HTTP error status,
        because a server that cannot be reached at first probably does not exist.

        Raises:
            OSError: the request failed; `strerror` gives the reason.
            DataError: the file system cannot be opened, or `request` raised it.
        """
        files, root = self._files()
        for wait in (*_WAITS, None):
            try:
                return request(files, f"{root}/{name}")
            except DataError:
                raise
            except Exception as raised:  # clients of object stores raise errors of many types
                error = raised
                if isinstance(raised, FileNotFoundError) and isinstance(raised.__cause__, Exception):
                    error = raised.__cause__  # fsspec reports any failure as a missing file
                if isinstance(error, FileNotFoundError) or getattr(error, "status", None) == 404:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name)) from None
                if wait is None or not _is_temporary(error, first=first):
                    raise OSError(errno.EIO, one_line(error), self.path(name)) from None
            time.sleep(wait)
        raise AssertionError("the last attempt has no wait")

    def _files(self) -> tuple[Any, str]:
        """Return fsspec's file system of this process and thread, and the folder's path in it."""
        import fsspec

        protocol = self.location.partition("://")[0]
        try:
            if protocol in ("http", "https"):  # url_to_fs would take the colons of an IPv6 address for a chain
                files, root = fsspec.filesystem(protocol), self.location
            else:
                files, root = fsspec.url_to_fs(self.location)
        except ImportError as error:
            raise DataError(f"{self.location}: {one_line(error)} ({_NEEDED})") from None
        except Exception as error:  # an unknown protocol, no connection, or more than a URL is needed
            raise DataError(
                f"{self.location}: {one_line(error)}; expected the URL of a folder, such as https://…, s3://… or hf://…"
            ) from None
        if getattr(files, "async_impl", False):
            _kept[id(files)] = files
        return files, root.rstrip("/")


_kept: dict[int, Any] = {}
"""File systems with an event loop, kept alive. fsspec drops them after a fork; their destruction in the child
would remove their connections from the kernel's event list, which child and parent share, and the parent would
wait forever."""


def _timeout(files: Any) -> dict[str, Any]:
    """Return the option that limits a request's time; only file systems with an event loop have it."""
    return {"timeout": _TIMEOUT} if getattr(files, "async_impl", False) else {}


def _read_range(files: Any, path: str, start: int, end: int) -> bytes:
    """Read the byte range `[start, end)`. A longer result means that the server ignored the range."""
    if "http" not in files.protocol:
        # a file system without range requests opens the file; it must not read ahead for one image
        options = _timeout(files) or {"cache_type": "none"}
        data: bytes = files.cat_file(path, start, end, **options)
        return data

    if start == end:
        return b""

    async def read() -> bytes:  # files.cat_file would keep an answer of any size, and decompress it
        session = await files.set_session()
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        found = bytearray()
        async with session.get(files.encode_url(path), headers=headers) as answer:
            answer.raise_for_status()
            async for chunk in answer.content.iter_any():
                found += chunk
                if len(found) > end - start or "Content-Encoding" in answer.headers:
                    return bytes(end - start + 1)
        return bytes(found)

    from fsspec.asyn import sync

    return cast("bytes", sync(files.loop, read, timeout=_TIMEOUT))


class _Blocks(io.RawIOBase):
    """A file that is read by byte ranges."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        """Set the function that returns a byte range, and the file's size."""
        self._read_range, self._size, self._position = read_range, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        data = self._read_range(self._position, end) if end > self._position else b""
        buffer[: len(data)] = data
        self._position = end
        return len(data)


def _is_temporary(error: Exception, *, first: bool) -> bool:
    """Return whether the same request may succeed a little later."""
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(status, int):
        return not 400 <= status < 500 or status in (408, 429)
    return not first and not isinstance(error, PermissionError)


class _OpenFiles(threading.local):
    """Descriptors of the shards that a thread read last. Forked processes can share them: reads are positioned."""

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
