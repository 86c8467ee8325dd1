"""Listing a directory tree of the local file system, one directory at a time; blocking.

Symbolic links are followed only inside the tree. What is neither a file nor a directory, what leads out, and
what lies in a mount of ours is left out and reported.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from agent.content import ListedObject, ObjectRef, Unmapped
from agent.errors import BadRequest
from agent.origin.mounts import OwnMounts, resolve

SCHEME = "file://"
MAX_LINKED_DIRECTORIES = 1000  # a few links to each other's directories would multiply without end


def version_of(found: os.stat_result) -> str:
    """What proves a file's version: inode, size and time of change in nanoseconds."""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory to list: its real path, its path in the tree, and the real paths that lead to it."""

    real: str
    key: str
    above: frozenset[str]


@dataclass(slots=True)
class Walk:
    """A tree being listed: `pending` holds the directories that are still to be listed."""

    root: str
    mounts: OwnMounts
    pending: list[Directory] = field(default_factory=list)
    found: list[ListedObject] = field(default_factory=list)
    left_out: list[Unmapped] = field(default_factory=list)
    linked: int = 0

    def __post_init__(self) -> None:
        self.pending.append(Directory(self.root, "", frozenset()))

    def list_next(self) -> None:
        """List one pending directory. Raises OSError where the root cannot be read."""
        directory = self.pending.pop()
        try:
            names = sorted(os.listdir(directory.real))
        except OSError as error:
            if not directory.key:
                raise
            self._leave_out(directory.key, f"cannot be listed: {error.strerror or error}")
            return
        prefix = f"{directory.key}/" if directory.key else ""
        for name in names:
            self._take(directory, os.path.join(directory.real, name), prefix + name)
        if not names and directory.key:
            marker = ObjectRef(SCHEME + directory.real, "directory", 0)
            self.found.append(ListedObject(f"{directory.key}/", marker))

    def _take(self, directory: Directory, path: str, key: str) -> None:
        try:
            real, linked = self._real(path)
            info = os.lstat(real)
        except BadRequest:
            self._leave_out(key, "a mount of Headrace itself")
        except FileNotFoundError:
            self._leave_out(key, "a symbolic link that leads nowhere")
        except OSError as error:
            self._leave_out(key, f"cannot be read: {error.strerror or error}")
        else:
            self._sort_in(directory, real, key, info, linked)

    def _real(self, path: str) -> tuple[str, bool]:
        self.mounts.refuse(path)
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            return path, False
        return resolve(path, self.mounts), True

    def _sort_in(self, directory: Directory, real: str, key: str, info: os.stat_result, linked: bool) -> None:
        if linked and not _inside(real, self.root):
            self._leave_out(key, "a symbolic link that leads out of the tree")
        elif stat.S_ISREG(info.st_mode):
            ref = ObjectRef(SCHEME + real, version_of(info), info.st_size)
            self.found.append(ListedObject(key, ref, info.st_mtime_ns))
        elif not stat.S_ISDIR(info.st_mode):
            self._leave_out(key, "neither a file nor a directory")
        else:
            self._descend(directory, real, key, linked)

    def _descend(self, directory: Directory, real: str, key: str, linked: bool) -> None:
        above = directory.above | {directory.real}
        self.linked += linked
        if real in above:
            self._leave_out(key, "a symbolic link to a directory above it")
        elif linked and self.linked > MAX_LINKED_DIRECTORIES:
            self._leave_out(key, f"more than {MAX_LINKED_DIRECTORIES} links to directories in this tree")
        else:
            self.pending.append(Directory(real, key, above))

    def _leave_out(self, key: str, reason: str) -> None:
        self.left_out.append(Unmapped(key, reason))


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
