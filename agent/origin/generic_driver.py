"""One fsspec file system, asked without its caches, its exceptions translated; blocking.

Drivers raise whatever their libraries raise. Here, at the seam, everything that has no better meaning becomes
OriginUnavailable; only the type's name is kept of it, for a text may hold a signed URL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec  # type: ignore[import-untyped]
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

from agent.errors import (
    AccessDenied,
    BadRequest,
    ObjectMissing,
    OriginError,
    OriginMisbehaved,
    OriginUnavailable,
)

PIECE = 1024 * 1024
# These read local files (past the check for our own mounts), or wrap another file system in a cache.
REFUSED = frozenset(
    {
        *("asynclocal", "data", "dir", "file", "git", "libarchive", "local", "tar", "zip"),
        *("async_wrapper", "asyncwrapper", "blockcache", "cached", "chroot", "dask", "filecache"),
        *("generic", "reference", "simplecache"),
        *("http", "https", "s3", "s3a"),  # these have origins of their own, with conditional reads
    }
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a tree: its key and what the driver says of it."""

    key: str
    info: Mapping[str, Any]


class Driver:
    """A file system and the questions that an origin has."""

    def __init__(self, uri: str) -> None:
        """The file system for URIs with the scheme and host of `uri`. Raises BadRequest, OriginError."""
        protocol = uri.partition("://")[0]
        self._class = _class_of(protocol, uri)
        with translated(f"{protocol}://"):
            options = self._class._get_kwargs_from_urls(uri)
            self._files: Any = self._class(skip_instance_cache=True, **options)
        cache = getattr(self._files, "dircache", None)
        if cache is not None and hasattr(cache, "use_listings_cache"):
            cache.use_listings_cache = False

    def info(self, uri: str) -> Mapping[str, Any]:
        """What the driver says of a file or directory now. Raises OriginError."""
        with translated(uri):
            self._files.invalidate_cache()
            info: Mapping[str, Any] = self._files.info(self._path(uri))
        return info

    def find(self, uri: str) -> list[Listed]:
        """All files below a directory, and the directories with nothing in them (keys end in '/')."""
        root = self._path(uri).rstrip("/")
        with translated(uri):
            self._files.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._files.find(root, withdirs=True, detail=True)
        below = {name[len(root) :].lstrip("/"): info for name, info in found.items() if name != root}
        parents = {key.rpartition("/")[0] for key in below}
        files = [Listed(key, info) for key, info in below.items() if info.get("type") != "directory"]
        empty = [
            Listed(f"{key.rstrip('/')}/", info)
            for key, info in below.items()
            if info.get("type") == "directory" and key.rstrip("/") not in parents and key.strip("/")
        ]
        return files + empty

    def pieces(self, uri: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes `[start, end)` of a file, a MiB at most at a time. Raises OriginError."""
        path = self._path(uri)
        if getattr(self._files, "async_impl", False):
            yield from self._ranges(uri, path, start, end)
            return
        with translated(uri):
            file = self._files.open(path, "rb", cache_type="none")
        with contextlib.closing(file):
            with translated(uri):
                file.seek(start)
            while start < end:
                with translated(uri):
                    piece: bytes = file.read(min(PIECE, end - start))
                start += _counted(piece, min(PIECE, end - start), uri)
                yield piece

    def _ranges(self, uri: str, path: str, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            stop = min(start + PIECE, end)
            with translated(uri):
                piece: bytes = self._files.cat_file(path, start=start, end=stop)
            start += _counted(piece, stop - start, uri)
            yield piece

    def _path(self, uri: str) -> str:
        return str(self._class._strip_protocol(uri))


def _counted(piece: bytes, asked: int, uri: str) -> int:
    if not 0 < len(piece) <= asked:
        raise OriginMisbehaved(f"{uri}: {asked} bytes were asked for and {len(piece)} came")
    return len(piece)


def _class_of(protocol: str, uri: str) -> Any:
    if protocol in REFUSED or protocol not in set(fsspec.available_protocols()):
        raise BadRequest(f"{uri!r}: there is no origin of the kind {protocol}://")
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        hint = known_implementations.get(protocol, {}).get("err") or f"install the driver of {protocol}"
        raise OriginError(f"{uri}: its driver is missing in the agent's environment: {hint}") from error


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what a driver raises into agent.errors; `where` names the object in messages."""
    try:
        yield
    except OriginError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissing(f"{where}: there is no such file or directory") from error
    except PermissionError as error:
        raise AccessDenied(f"{where}: access denied; check the credentials of its driver") from error
    except TimeoutError as error:
        raise OriginUnavailable(f"{where}: the origin does not answer") from error
    except Exception as error:
        raise OriginUnavailable(f"{where}: its driver failed ({type(error).__name__})") from error
