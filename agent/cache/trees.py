"""Trees of hard links to the store's files, which pods read with nobody in between (promotion).

    <directory>/trees/             0700, as everything above what is shown
    <directory>/trees/<name>/      0700
    <directory>/trees/<name>/root  what is bound: directories 0555, files 0444 (links to objects/ab/abcd...)

A tree is made under a name with a leading dot and renamed when it is whole, and renamed back before it is
taken away: what begins with a dot was left by a crash. A file in a tree is never written again: the store
opens complete objects for reading only, and fills an object that was damaged in a new file.
Everything here blocks, for about a second where a tree has 10,000 files. The caller holds the tree's lease.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import StoreFailed

FILE_MODE = 0o444
DIRECTORY_MODE = 0o555


@dataclass(frozen=True, slots=True)
class TreeDirectory:
    """A directory below the root (an empty path is the root itself); `mtime_ns` since 1970."""

    path: bytes
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file below the root: `key` is its object's, `size` what it must have; `mtime_ns` since 1970."""

    path: bytes
    key: str
    size: int
    mtime_ns: int


class Trees:
    """The trees of one store directory. Methods raise StoreFailed."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._directory = store / "trees"

    def names(self) -> list[str]:
        """The trees that are whole."""
        return [name for name in self._all() if not name.startswith(".")]

    def build(self, name: str, directories: Sequence[TreeDirectory], files: Sequence[TreeFile]) -> None:
        """Make the tree, in place of one of that name; `directories` has each before what is in it."""
        made = self._directory / f".{name}"
        try:
            self.remove(name)
            root = os.fsencode(made / "root")
            self._directory.mkdir(mode=0o700, exist_ok=True)
            made.mkdir(mode=0o700)
            for directory in directories:
                os.mkdir(_below(root, directory.path), 0o700)
            for file in files:
                self._link(file, _below(root, file.path))
            for directory in reversed(directories):  # a time changes when something is made inside
                _show(_below(root, directory.path), DIRECTORY_MODE, directory.mtime_ns)
            made.rename(self._directory / name)
        except (OSError, StoreFailed) as error:
            with suppress(OSError):
                _remove(made)
            if isinstance(error, StoreFailed):
                raise
            raise StoreFailed(f"cannot make the tree {name}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Take the tree away, whole or not; nothing where there is none."""
        hidden = f".{name}"
        self._remove(hidden)
        try:
            (self._directory / name).rename(self._directory / hidden)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreFailed(f"cannot remove the tree {name}: {error.strerror}") from error
        self._remove(hidden)

    def clean(self) -> None:
        """Take away what a crash left half made or half removed."""
        for name in self._all():
            if name.startswith("."):
                self._remove(name)

    def open_root(self, name: str) -> int:
        """An O_PATH descriptor of the tree's root, which the caller closes."""
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(self._directory / name / "root", flags)
        except OSError as error:
            raise StoreFailed(f"cannot open the tree {name}: {error.strerror}") from error

    def _all(self) -> list[str]:
        try:
            return os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreFailed(f"cannot list {self._directory}: {error.strerror}") from error

    def _remove(self, name: str) -> None:
        try:
            _remove(self._directory / name)
        except OSError as error:
            raise StoreFailed(f"cannot remove the tree {name}: {error.strerror}") from error

    def _link(self, file: TreeFile, path: bytes) -> None:
        if file.size:
            os.link(os.fsencode(self._store / "objects" / file.key[:2] / file.key), path)
        else:  # an object without bytes need not be in the store
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = os.lstat(path).st_size
        if found != file.size:
            raise StoreFailed(f"the store's file {file.key} has {found} bytes and not {file.size}")
        _show(path, FILE_MODE, file.mtime_ns)


def _below(root: bytes, path: bytes) -> bytes:
    return os.path.join(root, path) if path else root


def _show(path: bytes, mode: int, mtime_ns: int) -> None:
    os.chmod(path, mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def _remove(tree: Path) -> None:
    """Its directories are read-only for their owner too: those are opened first."""
    for path, _, _ in os.walk(os.fsencode(tree)):
        os.chmod(path, 0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(tree)
