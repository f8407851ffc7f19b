"""Folders of object stores and web servers, through fsspec; the extra `remote`.

A web server may ignore the header Range and send the complete file, and then single samples cannot be
read from it. `probe` detects this with one request, and complete files are read there without ranges.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from data_shards.errors import DataError
from data_shards.format.blocks import BLOCK
from data_shards.storage.base import CHUNK, Handle, PermanentError, Storage

WEB = ("http", "https")
PAGE = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)
FORBIDDEN, MISSING = (401, 403, 407), (404, 410)  # statuses of HTTP, RFC 9110
TRANSIENT = (408, 425, 429)  # of those below 500; what is above may pass as well
NO_RANGES = (
    "the server ignores HTTP Range requests, without which no sample can be read by itself: use a server "
    "that answers them, or set data.cache and data.cache_gib, so that whole shards are fetched"
)


class RemoteStorage(Storage):
    """A folder of an object store or web server; `probe` sets `random_access` of the latter."""

    needs_cache = NO_RANGES

    def __init__(self, url: str) -> None:
        base, mark, query = url.partition("?")
        self.web = base.partition(":")[0].lower() in WEB
        # Compressed on the fly, a file has neither a size nor ranges.
        options = {"headers": {"Accept-Encoding": "identity"}} if self.web else {}
        self.query, self.shown = mark + query, _without_secrets(base.rstrip("/"))
        try:
            self.files, self.base = import_module("fsspec.core").url_to_fs(base.rstrip("/"), **options)
        except ImportError as error:
            fix = "`pip install 'swin-moe[remote]'` reads object stores"
            raise DataError(f"{self.shown}: {fix} ({error})") from error

    def describe(self, name: str) -> str:
        """The address of a file."""
        return f"{self.shown}/{name}"

    def path(self, name: str) -> str:
        """The address as fsspec takes it."""
        return f"{self.base}/{name}{self.query}"

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """A call of the fsspec file system whose every failure is an OSError."""
        with self._os_errors():
            return getattr(self.files, method)(*args, **options)

    def probe(self, name: str) -> None:
        """Find out whether `name` can be read in parts; OSError."""
        if self.web:
            with self._response(name, {"Range": "bytes=0-0"}) as response, self._os_errors():
                self.random_access = len(response.read(2)) < 2

    def chunks(self, name: str) -> Iterator[bytes]:
        """A complete file, in chunks: one request to a web server, ranged reads of a store."""
        if self.web:
            yield from self._streamed(name)
            return
        size = self.open(name).size
        for start in range(0, size, CHUNK):
            end = min(start + CHUNK, size)
            yield _complete(self.call("cat_file", self.path(name), start=start, end=end), end - start)

    def open(self, name: str) -> Handle:
        """A file to read anywhere in; its size is requested now."""
        return RemoteFile(self, name)

    def _streamed(self, name: str) -> Iterator[bytes]:
        with self._response(name, {}) as response:
            beginning = True
            while chunk := self._next(response):
                if beginning and PAGE.match(chunk):
                    raise PermanentError(errno.EIO, "the server answers with a web page instead of the file")
                beginning = False
                yield chunk

    def _next(self, response: Any) -> bytes:
        with self._os_errors():
            return bytes(response.read(CHUNK))

    @contextmanager
    def _response(self, name: str, headers: dict[str, str]) -> Iterator[Any]:
        """The answer to one GET, to be read from its begin; it may take any time as long as bytes arrive."""
        timeout = import_module("aiohttp").ClientTimeout(total=None, sock_connect=30, sock_read=60)
        headers = {**self.files.kwargs["headers"], **headers}
        options = {"headers": headers, "timeout": timeout, "block_size": 0, "size": 1}  # a size spares a HEAD
        response = self.call("open", self.path(name), **options)
        try:
            yield response
        finally:
            response.close()

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Turn the exceptions of aiohttp, botocore and Google into OSErrors."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and not self.web:
                raise
            raise _as_os_error(error) from error


class RemoteFile:
    """A file read by ranges, one request a sample."""

    def __init__(self, storage: RemoteStorage, name: str) -> None:
        self.storage, self.name = storage, name
        self.size = storage.call("size", storage.path(name))
        if self.size is None:
            raise PermanentError(errno.EIO, "the server does not say how long it is")

    def member(self, offset: int, size: int) -> tuple[bytes, bytes]:
        """Tar header and bytes in one request, see `Handle.member`."""
        start, end = max(offset - BLOCK, 0), offset + size
        both = self.storage.call("cat_file", self.storage.path(self.name), start=start, end=end)
        if len(both) > end - start:
            raise PermanentError(errno.EIO, NO_RANGES)
        both = _complete(both, end - start)
        return both[: offset - start], both[offset - start :]

    def forget(self, offset: int, size: int) -> None:
        """Nothing is kept."""


def _as_os_error(error: Exception) -> OSError:
    """An error of a web server or of the network, as the class of OSError that decides about a retry."""
    cause = error.__cause__ or error  # fsspec calls every failure of a HEAD a missing file
    status = getattr(cause, "status", None)
    if status is None:
        missing = isinstance(cause, FileNotFoundError)
        kind = FileNotFoundError if missing else OSError
        reason = "no such file" if missing else f"{type(cause).__name__}: {_without_secrets(str(cause))}"
        return kind(errno.ENOENT if missing else errno.EIO, reason)
    message = f"the server answers {status} {getattr(cause, 'message', '')}".rstrip()
    if status in MISSING:
        return FileNotFoundError(errno.ENOENT, message)
    if status in FORBIDDEN:
        return PermissionError(errno.EACCES, message)
    return (
        PermanentError(errno.EIO, message)
        if status < 500 and status not in TRANSIENT
        else OSError(errno.EIO, message)
    )


def _complete(body: bytes, size: int) -> bytes:
    if len(body) != size:
        raise OSError(errno.EIO, f"read {len(body)} of {size} bytes")
    return body


def _without_secrets(text: str) -> str:
    """In one line, without the user and password and without the query of any address."""
    text = " ".join(text.split())
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"//[^/@\s]*@", "//", text))
